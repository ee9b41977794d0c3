package filter

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// A translation is how far the numbers of one connection's guest are ahead of
// those that the other end of the connection knows.
type translation struct {
	seq  uint32 // sequence numbers
	time uint32 // timestamps (RFC 7323)
}

// inward changes all that the client says of the guest's numbers: the
// acknowledgment, the edges of the selective ones (RFC 2018 section 3, RFC 2883),
// and the timestamp that it echoes. Without the bit ACK none of them means
// anything.
func (t translation) inward(h packet.TCP) {
	if h.Flags()&packet.ACK == 0 {
		return
	}
	h.SetAck(h.Ack() + t.seq)
	opts := h.Options()
	if len(opts) == 0 {
		return
	}
	if len(opts) == 12 && usual(opts) {
		add32(opts[8:], t.time)
		return
	}
	for {
		kind, data, rest, ok := packet.NextOption(opts)
		switch {
		case !ok:
			return
		case kind == packet.OptSACK:
			for ; len(data) >= 4; data = data[4:] {
				add32(data, t.seq)
			}
		case kind == packet.OptTimestamps && len(data) == 8:
			add32(data[4:], t.time)
		}
		opts = rest
	}
}

// outward changes what the guest says of its numbers.
func (t translation) outward(h packet.TCP) {
	h.SetSeq(h.Seq() - t.seq)
	if t.time == 0 {
		return
	}
	opts := h.Options()
	if len(opts) == 12 && usual(opts) {
		add32(opts[4:], -t.time)
		return
	}
	for {
		kind, data, rest, ok := packet.NextOption(opts)
		switch {
		case !ok:
			return
		case kind == packet.OptTimestamps && len(data) == 8:
			add32(data, -t.time)
		}
		opts = rest
	}
}

// quoted changes the segment that an ICMP error quotes. Inward that is one which
// the guest has sent: it gets its own sequence number, so that the guest believes
// the error (RFC 5927 section 4.1). Outward it is one which the guest was given:
// the acknowledgment is the client's again, if it is quoted. Timestamps are looked
// at by nobody there, and stay.
func (t translation) quoted(p *packet.Packet, q *packet.Quoted, inward bool) {
	switch {
	case inward:
		addQuoted(p, q, 4, t.seq)
	case q.End-q.L4 >= 12:
		addQuoted(p, q, 8, -t.seq)
	}
}

// addQuoted adds n to the number at a place of the quoted segment, and puts right
// the checksum of that, if it is quoted too, and then that of the error.
func addQuoted(p *packet.Packet, q *packet.Quoted, place int, n uint32) {
	sumAt, at := p.L4+packet.ICMPChecksumAt, q.L4+place
	old := binary.BigEndian.Uint32(p.Frame[at:])
	packet.Replace32(p.Frame, sumAt, at, old+n)
	if q.End-q.L4 >= packet.TCPLen { // the checksum and the urgent pointer
		at := q.L4 + packet.TCPChecksumAt
		sum := binary.BigEndian.Uint32(p.Frame[at:])
		packet.Replace32(p.Frame, sumAt, at, uint32(packet.Update(uint16(sum>>16), old, old+n))<<16|sum&0xffff)
	}
}

// ofGuest returns the key of a quoted segment in the guest's direction: errors
// that go inward are about what the guest has sent.
func ofGuest(k packet.Key, inward bool) packet.Key {
	if inward {
		return k
	}
	return k.Reverse()
}

// headSum returns the sum of a segment's header, for seal.
func headSum(h packet.TCP) uint16 { return packet.Sum(0, h[:h.HeaderLen()]) }

// seal changes the checksum of a segment with its header, whose sum was another before: it
// is as right or wrong as it was. A segment that was damaged on its way must not become
// a good one, or the guest would take the damage for data. One that has no checksum, but a
// zero, which is what a sender leaves for its hardware to fill in, gets one, as in QEMU, if all of
// it is there. If the virtio-net header says that the sender has left the checksum to somebody
// else, the field has the sum of the pseudo-header, which has not changed.
func seal(p *packet.Packet, v packet.VNet, was uint16) {
	if v.PartialChecksum(p, packet.TCPChecksumAt) {
		return
	}
	h := p.TCP()
	if h.Checksum() == 0 && !p.Fragment {
		h.SetChecksum(p.TCPChecksum())
		return
	}
	h.SetChecksum(packet.Update(h.Checksum(), uint32(was), uint32(headSum(h))))
}

func add32(b []byte, n uint32) { binary.BigEndian.PutUint32(b, binary.BigEndian.Uint32(b)+n) }

// usual reports whether options begin in the way that RFC 7323 appendix A
// recommends, with the timestamps.
func usual(opts []byte) bool {
	return len(opts) >= 12 && binary.BigEndian.Uint32(opts) == 0x0101080a
}

// timestamps returns the timestamp and the one that it echoes, nil if the segment has none. Of
// several the last one counts, as it does to those who read the options one after the other.
func timestamps(h packet.TCP) (last []byte) {
	opts := h.Options()
	if len(opts) == 12 && usual(opts) {
		return opts[4:12]
	}
	for {
		kind, data, rest, ok := packet.NextOption(opts)
		switch {
		case !ok:
			return last
		case kind == packet.OptTimestamps && len(data) == 8:
			last = data
		}
		opts = rest
	}
}
