package compare

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// An urgent pointer says where the peer is to be told of something sooner (RFC 9293 section
// 3.8.5), and most peers take the byte there out of the stream. So it is compared, by the
// place that it points to. Guests repeat it in each segment before that place, and may cut
// their streams otherwise: a segment of the primary's guest leaves if the last place that the
// secondary's has pointed to is the same.

// An urgent has the places that the urgent pointers of a connection point to.
type urgent struct {
	told    pointer // the last one of the primary's guest, which changes with its packets; forgotten at a SYN of the secondary's
	covered pointer // the last one of the guest that would go on if the primary died: as cover changes, so does this
	marked  pointer // told, as it was at the last mark
}

// A pointer is the sequence number that an urgent pointer points to, if there is one.
type pointer struct {
	is bool
	at uint32
}

// urgent returns what the urgent pointer of p points to. p has the flag URG.
func (p *pkt) urgent() pointer {
	return pointer{true, p.seq + uint32(binary.BigEndian.Uint16(p.Packet.Frame[p.L4+18:]))}
}

// points notes the urgent pointer of p, which who has sent. With a RST nobody looks at it, and
// with a SYN it counts from a number that differs between the guests.
func (t *stream) points(p *pkt, who side) {
	if p.flags&(packet.SYN|packet.RST) != 0 {
		return
	}
	if t.urgent == nil {
		t.urgent = new(urgent) // rare
	}
	switch {
	case who == primary:
		t.urgent.told = p.urgent()
	case p.scatters():
		t.urgent.covered = pointer{} // no segment of the primary's guest has all of these
	default:
		t.urgent.covered = p.urgent()
	}
}

// scatters reports whether a device cuts p into several segments. It puts the urgent pointer of p,
// which counts from the segment's number, into each of them, and so each points to another place.
func (p *pkt) scatters() bool {
	size := gsoSize(&p.Frame)
	return size > 0 && len(p.data()) > size
}

// narrow is called at a mark and receive at a receipt, as stream's methods of these names
// are. u may be nil.
func (u *urgent) narrow() {
	if u == nil {
		return
	}
	if u.covered != u.told {
		u.covered = pointer{}
	}
	u.marked = u.told
}

func (u *urgent) receive() {
	if u != nil {
		u.covered = u.marked
	}
}

// urges reports whether p may leave as far as its urgent pointer is concerned: p has none, or
// the guest that would go on has given the same one. If p may not leave, why is ReasonFlags if
// that guest will not give the pointer any more, because it has sent the data at that place
// without one. A SYN with an urgent pointer waits for the checkpoint, and so does a segment that a device cuts into several.
func (t *stream) urges(p *pkt) (ok bool, why Reason) {
	switch {
	case p.flags&packet.URG == 0 || p.flags&packet.RST != 0:
		return true, ReasonNone
	case p.flags&packet.SYN != 0, p.scatters():
		return false, ReasonFlags
	}
	at := p.urgent()
	switch {
	case t.urgent != nil && t.urgent.covered == at:
		return true, ReasonNone
	case t.said.ends && !after(at.at, t.said.end):
		return false, ReasonFlags
	}
	return false, ReasonNone
}
