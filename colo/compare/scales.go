package compare

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/gocolo/lockstep/internal/packet"
)

// ErrScales says that what was loaded is no table of scales: a connection in it is of an
// unknown kind, or has a scale that no window has, or its end is missing.
var ErrScales = errors.New("compare: malformed table of window scales")

// MaxScales is the greatest number of connections of which the scale of the window is kept
// where nothing is compared. Of others it is unknown then.
const MaxScales = 1 << 14

// Scales has the scales of the windows of a guest's TCP connections, which only their
// handshakes tell (RFC 7323 section 2). A host that nothing is compared on keeps it, and gives
// it to the Comparer that compares what the guest sends on these connections later
// ([Comparer.AdoptScales]). A connection that it has not seen begin is not in it.
//
// It is right if it is given all that the guest sends and is sent, as the guest has it, and
// if it is loaded anew ([Scales.Load]) when the guest becomes another.
//
// The zero value has none. It is used by one goroutine at a time.
type Scales struct {
	table []byte              // what was loaded: records that were checked; of connections in conns they do not count
	conns map[packet.Key]told // what began since, by the guest's direction, as toldOf returns it
	pkt   pkt
}

// Len returns the number of connections, those included whose handshake is not complete.
func (s *Scales) Len() int {
	if len(s.table) == 0 {
		return len(s.conns)
	}
	n := 0
	s.all(func(*packet.Key, told) bool { n++; return true })
	return n
}

// all calls f for each connection, those first that began since the table was loaded, until
// f returns false.
func (s *Scales) all(f func(k *packet.Key, t told) bool) {
	for k, t := range s.conns {
		if !f(&k, t) {
			return
		}
	}
	seen := make(map[packet.Key]bool, len(s.table)/ScaleRecord)
	for b := s.table; len(b) > 0; b = b[ScaleRecord:] {
		k := scaleKeyOf(b)
		if _, ok := s.conns[k]; ok || seen[k] {
			continue
		}
		seen[k] = true
		if !f(&k, told{scale: b[scaleKey], scaled: true}) {
			return
		}
	}
}

// FromGuest looks at a frame that the guest sends. It begins with a virtio-net header of
// vnetHdr bytes.
func (s *Scales) FromGuest(frame []byte, vnetHdr int) {
	p := s.opening(frame, vnetHdr)
	if p == nil {
		return
	}
	var k packet.Key
	p.Key(&k)
	if _, ok := s.conns[k]; !ok && len(s.conns) >= MaxScales {
		s.table = s.table[:0] // it may have another scale for the connection that is forgotten
		for any := range s.conns {
			delete(s.conns, any)
			break
		}
	}
	if s.conns == nil {
		s.conns = make(map[packet.Key]told)
	}
	t := s.conns[k]
	t.note(p)
	s.conns[k] = toldOf(&t)
}

// ToGuest looks at a frame that is sent to the guest, as the guest gets it.
func (s *Scales) ToGuest(frame []byte, vnetHdr int) {
	if len(s.conns) == 0 {
		return
	}
	p := s.opening(frame, vnetHdr)
	if p == nil || p.flags&packet.ACK == 0 {
		return
	}
	var k packet.Key
	p.Key(&k)
	k = k.Reverse()
	t, ok := s.conns[k]
	if ok && t.answered(&p.Packet, packet.VNetOf(frame, vnetHdr), p.synOptions().has.is(hasScale)) {
		s.conns[k] = t
	}
}

// opening returns the segment in a frame if it has a SYN, and nil otherwise.
func (s *Scales) opening(frame []byte, vnetHdr int) *pkt {
	f := Frame{frame, vnetHdr}
	if !f.fits() || len(frame) > maxFrame || !mayOpen(frame[vnetHdr:]) {
		return nil
	}
	p := &s.pkt
	p.Frame = f
	p.Parse(frame[vnetHdr:])
	if !p.IsTCP() || p.Routed || p.deep() {
		return nil
	}
	if p.parseSegment(); !p.opens() {
		return nil
	}
	return p
}

// mayOpen reports whether a frame may have a SYN. It looks at nearly all frames only once.
func mayOpen(b []byte) bool { return mayHave(b, packet.SYN) }

// mayHave reports whether a frame may have a segment with one of these flags.
func mayHave(b []byte, any uint8) bool {
	const four, six = packet.EthernetLen + packet.IPv4Len, packet.EthernetLen + packet.IPv6Len
	const flags = 13 // where they are in the header
	if len(b) < four+packet.TCPLen {
		return false
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case packet.TypeIPv4:
		if b[14] == 0x45 {
			return b[23] == packet.ProtoTCP && b[four+flags]&any != 0
		}
	case packet.TypeIPv6:
		if b[20] == packet.ProtoTCP && len(b) > six+flags {
			return b[six+flags]&any != 0
		}
	}
	return true
}

// answered notes the options of a SYN|ACK of the peer, and reports whether it is the answer
// to the guest's SYN. scales says that the peer scales windows. v is the virtio-net header.
func (t *told) answered(p *packet.Packet, v packet.VNet, scales bool) bool {
	h := p.TCP()
	if h.Flags()&packet.SYN == 0 || !t.open || t.scaled || h.Ack() != t.isn+1 || p.Damaged(v) {
		return false // the guest drops one that is damaged
	}
	if t.scaled = true; !scales {
		t.scale = 0
	}
	return true
}

// adoptScales gives e the scales of s, of connections that it has not seen begin. Packets pass.
func (e *Engine) adoptScales(s *Scales) {
	if !e.passing || e.strict != nil {
		return
	}
	s.all(func(k *packet.Key, t told) bool {
		key := connKey{Key: *k, kind: kindSegment}
		h := e.conns.hash(&key)
		if e.conns.find(h, &key) != nil {
			return true
		}
		if e.conns.n >= e.cfg.MaxConns {
			return false
		}
		e.newConn(&key, h, e.now).tcp.told = t
		return true
	})
}

// A record of a table has the connection, by the guest's direction, and the scale:
//
//	byte kind (4, 6) | byte layers | be16 VLAN | be32 outer | be32 ports |
//	16 bytes source | 16 bytes destination | byte scale
//
// Layers, VLAN and outer are what packet.Key has of the link. An address of IPv4 is followed
// by twelve zero bytes.
const scaleKey = 1 + 1 + 2 + 4 + 4 + 16 + 16 // where the scale is

// ScaleRecord is the length of a connection in a table of scales, in bytes.
const ScaleRecord = 45

func appendScale(b []byte, k *packet.Key, scale uint8) []byte {
	kind := byte(4)
	if k.Kind == packet.IP6 {
		kind = 6
	}
	b = append(b, kind, k.Layers)
	b = binary.BigEndian.AppendUint16(b, k.VLAN)
	b = binary.BigEndian.AppendUint32(b, k.Outer)
	b = binary.BigEndian.AppendUint32(b, k.Ports)
	b = append(b, k.Src[:]...)
	b = append(b, k.Dst[:]...)
	return append(b, scale)
}

// Append appends a record of [ScaleRecord] bytes to b for each connection whose scale is
// known, of at most [MaxScales], in ascending order.
func (s *Scales) Append(b []byte) []byte {
	records := make([][]byte, 0, len(s.conns)+len(s.table)/ScaleRecord)
	s.all(func(k *packet.Key, t told) bool {
		if t.scaled {
			records = append(records, appendScale(make([]byte, 0, ScaleRecord), k, t.scale))
		}
		return len(records) < MaxScales
	})
	slices.SortFunc(records, bytes.Compare)
	for _, r := range records {
		b = append(b, r...)
	}
	return b
}

// appendScales appends the records of at most MaxScales connections, those first that were used
// last, roughly.
func (e *Engine) appendScales(b []byte) []byte {
	n := 0
	for c := e.newest; c != nil && n < MaxScales; c = c.older {
		if t := &c.tcp.told; c.key.kind == kindSegment && t.scaled {
			b = appendScale(b, &c.key.Key, t.scale)
			n++
		}
	}
	return b
}

// Load makes of s the table that b has, as Append and [Comparer.AppendScales] make it, in any
// order; of a connection that is there twice the first record counts. What is no table is
// [ErrScales], and changes nothing. It takes a copy, which later calls use again, and looks into it
// no further before it has to: each checkpoint brings a table, and hardly one is needed.
func (s *Scales) Load(b []byte) error {
	if len(b)%ScaleRecord != 0 || len(b) > MaxScales*ScaleRecord {
		return fmt.Errorf("%w: %d bytes", ErrScales, len(b))
	}
	for n := 0; n < len(b); n += ScaleRecord {
		if !isScale((*[ScaleRecord]byte)(b[n:])) {
			return fmt.Errorf("%w: connection %d", ErrScales, n/ScaleRecord)
		}
	}
	s.table = append(s.table[:0], b...)
	clear(s.conns)
	return nil
}

// Reset makes s have none. It keeps its memory.
func (s *Scales) Reset() {
	s.table = s.table[:0]
	clear(s.conns)
}

// isScale reports whether r is a record of a table.
func isScale(r *[ScaleRecord]byte) bool {
	switch {
	case r[scaleKey] > maxScale:
		return false
	case r[0] == 6:
		return true
	}
	var zero [12]byte
	return r[0] == 4 && [12]byte(r[16:]) == zero && [12]byte(r[32:]) == zero
}

// scaleKeyOf returns the connection of the record that b begins with.
func scaleKeyOf(b []byte) packet.Key {
	k := packet.Key{
		Src: [16]byte(b[12:]), Dst: [16]byte(b[28:]), Ports: binary.BigEndian.Uint32(b[8:]),
		Proto: packet.ProtoTCP, Kind: packet.IP4,
		Layers: b[1], VLAN: binary.BigEndian.Uint16(b[2:]), Outer: binary.BigEndian.Uint32(b[4:]),
	}
	if b[0] == 6 {
		k.Kind = packet.IP6
	}
	return k
}
