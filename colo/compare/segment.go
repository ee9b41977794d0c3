package compare

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// A segment has the header fields of a whole TCP segment within a frame. The zero segment
// stands for a packet that is no TCP segment.
type segment struct {
	is       bool
	dat      int // where its data begins
	seq, ack uint32
	end      uint32 // seq and the length of the data
	ok       uint32 // the data before this sequence number equals the secondary's
	win      uint16
	flags    uint8
	signed   bool // a signature covers its header (RFC 2385, RFC 5925, RFC 4302): it leaves unchanged or not at all
	counts   bool // it is owed, and begins behind what has left if it says anything new; see owe
	waitsAck bool // nothing keeps it from leaving but its acknowledgment, which the secondary's guest has not given

	ts   int // the offset of its timestamps' value; 0: it has none
	sack int // the offset of its SACK blocks; 0: it has none
	nsck int // the number of its SACK blocks

	dack  int  // the offset of the lower half of its DATA_ACK; 0: it has none; see multipath.go
	long  bool // its DATA_ACK has an upper half
	multi bool // it says something of Multipath TCP for which it has to wait for a checkpoint
}

// A synOptions has what a SYN says that holds for the whole connection.
type synOptions struct {
	mss   uint16
	scale uint8
	has   synHas
	other uint32 // a digest of the options that are not known here; 0: there are none
}

// A synHas says which options a SYN has, and in the upper half AE, CWR and ECE, by which the ends
// agree on marks of congestion (RFC 3168 section 6.1.1, RFC 9768 section 3.1).
type synHas uint8

const (
	hasScale synHas = 1 << iota
	hasSACK
	hasTimestamps
	hasMultipath // Multipath TCP: its keys are random, and so those of two guests differ (RFC 8684 section 3.1)
)

// is reports whether all of some options are there.
func (h synHas) is(o synHas) bool { return h&o == o }

// maxScale is the greatest shift of a window. A greater one counts as this (RFC 7323
// section 2.3).
const maxScale = 14

// parseSegment sets all of p.segment from the header of p, which is a whole TCP segment.
func (p *pkt) parseSegment() {
	h := p.TCP()
	n := h.HeaderLen()
	s := &p.segment
	s.is, s.dat = true, p.L4+n
	s.seq, s.ack, s.flags, s.win = h.Seq(), h.Ack(), h.Flags(), binary.BigEndian.Uint16(h[14:])
	s.end, s.ok = s.seq+uint32(p.End-s.dat), s.seq
	s.counts, s.waitsAck, s.signed, s.ts, s.sack, s.nsck = false, false, p.Sealed, 0, 0, 0
	s.dack, s.long, s.multi = 0, false, false
	if s.flags&packet.RST != 0 {
		s.flags &^= packet.SYN | packet.FIN // which nobody looks at then (RFC 9293 section 3.10.7)
	}
	switch {
	case n == packet.TCPLen:
	case n == packet.TCPLen+12 && binary.BigEndian.Uint32(h[packet.TCPLen:]) == 0x0101080a:
		s.ts = p.L4 + packet.TCPLen + 4 // where nearly all segments have it
	default:
		all := h.Options()
		for kind, data, rest, ok := packet.NextOption(all); ok; kind, data, rest, ok = packet.NextOption(rest) {
			at := p.L4 + packet.TCPLen + len(all) - len(rest) - len(data)
			switch {
			case kind == packet.OptTimestamps && len(data) == 8:
				s.ts = at
			case kind == packet.OptMD5, kind == packet.OptAO:
				s.signed = true
			case kind == packet.OptSACK && len(data) > 0 && len(data)%8 == 0 && len(data) <= 32:
				s.sack, s.nsck = at, len(data)/8
			case kind == packet.OptMultipath:
				s.parseMultipath(data, at)
			}
		}
	}
}

// synOptions returns what a SYN says that holds for the whole connection. A signature holds
// for the SYN alone, and those of two guests differ with their numbers.
func (p *pkt) synOptions() (o synOptions) {
	h := p.TCP()
	o.has = synHas(h[12]&1<<2|h[13]>>6) << 4
	for kind, data, rest, ok := packet.NextOption(p.TCP().Options()); ok; kind, data, rest, ok = packet.NextOption(rest) {
		switch {
		case kind == packet.OptMSS && len(data) == 2:
			o.mss = binary.BigEndian.Uint16(data)
		case kind == packet.OptWScale && len(data) == 1:
			o.scale = min(data[0], maxScale)
			o.has |= hasScale
		case kind == packet.OptSACKPermit && len(data) == 0:
			o.has |= hasSACK
		case kind == packet.OptTimestamps && len(data) == 8:
			o.has |= hasTimestamps
		case kind == packet.OptMultipath:
			o.has |= hasMultipath
		case kind > packet.OptTimestamps && kind != packet.OptMD5 && kind != packet.OptAO:
			o.other += digest(kind, data) // in whatever order they are
		}
	}
	return o
}

// digest returns a number for an option (FNV-1a).
func digest(kind uint8, data []byte) uint32 {
	const basis, prime = 2166136261, 16777619
	n := (uint32(basis) ^ uint32(kind)) * prime
	for _, b := range data {
		n = (n ^ uint32(b)) * prime
	}
	return n
}

// stamped returns the value of p's timestamps. It has them if p.ts is not 0.
func (p *pkt) stamped() uint32 { return binary.BigEndian.Uint32(p.Packet.Frame[p.ts:]) }

// restamp sets the value of p's timestamps, if it has them and ts is newer. p's memory is
// the engine's.
func (p *pkt) restamp(ts uint32) {
	if p.ts == 0 || p.signed || !after(ts, p.stamped()) {
		return
	}
	f := p.Packet.Frame
	h := packet.TCP(f[p.L4:p.dat])
	was := packet.Sum(0, h[packet.TCPLen:])
	binary.BigEndian.PutUint32(f[p.ts:], ts)
	if p.VNetHdr == 0 || p.Data[0]&1 == 0 {
		h.SetChecksum(packet.Update(h.Checksum(), uint32(was), uint32(packet.Sum(0, h[packet.TCPLen:]))))
	}
}

func (p *pkt) data() []byte { return p.Packet.Frame[p.dat:p.End] }

// bare reports whether the segment is an acknowledgment and nothing else.
func (p *pkt) bare() bool {
	return p.dat == p.End && p.flags&(packet.SYN|packet.FIN|packet.RST|packet.URG|packet.ACK) == packet.ACK && !p.multi
}

// blocks returns the SACK blocks of p.
func (p *pkt) blocks() (r ranges) {
	for i := range p.nsck {
		b := p.Packet.Frame[p.sack+8*i:]
		r.add(binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]))
	}
	return r
}
