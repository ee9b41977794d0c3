package compare

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// A TCP connection may be one subflow of a Multipath TCP connection (RFC 8684). The peer takes
// data for delivered when the other end acknowledges it by the connection's own numbers
// (DATA_ACK). It then sends the data on no other subflow, and forgets it when this subflow
// acknowledges it too. So a DATA_ACK is treated as an acknowledgment: none leaves that the
// secondary's guest has not given on the same subflow, since the engine does not know which
// subflows belong together. With LowerAcks the part leaves that this guest has given, and the
// rest follows.
//
// The option may say more: that the data ends, that all subflows end at once, that an address
// is new or lost. The secondary's guest would have to know that, and may say it at another
// time and on another subflow, so such a segment waits for the checkpoint. The option also
// says where the data of the segment belongs in the whole connection. That is not compared,
// since the peer keeps nothing of it that a repetition would not say again.

// Kinds of the option (RFC 8684 section 3), in the upper half of its first byte.
const (
	multipathCapable = 0
	multipathJoin    = 1
	multipathDSS     = 2 // DATA_ACK, and where the data belongs
	multipathReset   = 8 // why this subflow ends
)

// Flags of a DSS option.
const (
	dssAck     = 1 << 0 // it has a DATA_ACK
	dssLongAck = 1 << 1 // of eight bytes, and not four
	dssFin     = 1 << 4 // the data ends
)

// parseMultipath sets what an option of Multipath TCP says; data is its content, which begins at
// the offset at.
func (s *segment) parseMultipath(data []byte, at int) {
	if len(data) == 0 {
		s.multi = true
		return
	}
	switch data[0] >> 4 {
	case multipathCapable, multipathJoin, multipathReset:
		return // with a SYN it waits for the checkpoint, which then has all that follows from it
	case multipathDSS:
	default:
		s.multi = true
		return
	}
	n := 0
	switch {
	case len(data) < 2 || data[1]&dssFin != 0 || s.dack > 0: // of two of them nobody knows which one counts
		s.multi = true
		return
	case data[1]&dssAck == 0:
		return
	case data[1]&dssLongAck != 0:
		n = 8
	default:
		n = 4
	}
	if len(data) < 2+n {
		s.multi = true
		return
	}
	s.dack, s.long = at+2+n-4, n == 8
}

// dataAck returns the lower half of p's DATA_ACK. It has one if p.dack is not 0.
func (p *pkt) dataAck() uint32 { return binary.BigEndian.Uint32(p.Packet.Frame[p.dack:]) }

// lowerDataAck makes p's DATA_ACK lower by less. p's memory is the engine's.
func (p *pkt) lowerDataAck(less uint32) {
	f := p.Packet.Frame
	if p.long {
		binary.BigEndian.PutUint64(f[p.dack-4:], binary.BigEndian.Uint64(f[p.dack-4:])-uint64(less))
		return
	}
	binary.BigEndian.PutUint32(f[p.dack:], p.dataAck()-less)
}

// A dataAcks has the DATA_ACKs of a connection.
type dataAcks struct {
	told    dataAck // the greatest one of the primary's guest, which grows with its packets
	covered dataAck // the greatest one of the guest that would go on if the primary died: as cover changes, so does this
	marked  dataAck // told, as it was at the last mark
	left    dataAck // the greatest one that has left
}

// A dataAck is the lower half of a DATA_ACK, if there is one.
type dataAck struct {
	is bool
	n  uint32
}

func (a *dataAck) grow(n uint32) { serialMax(&a.n, &a.is, n) }

// acknowledges notes the DATA_ACK of p, if it has one. who has sent p.
func (t *stream) acknowledges(p *pkt, who side) {
	if p.dack == 0 {
		return
	}
	if t.dataAcks == nil {
		t.dataAcks = new(dataAcks)
	}
	if who == primary {
		t.dataAcks.told.grow(p.dataAck())
	} else {
		t.dataAcks.covered.grow(p.dataAck())
	}
}

// narrow is called at a mark and receive at a receipt, as stream's methods of these names
// are. a may be nil.
func (a *dataAcks) narrow() {
	if a == nil {
		return
	}
	if a.covered.is = a.covered.is && a.told.is; a.covered.is && after(a.covered.n, a.told.n) {
		a.covered.n = a.told.n
	}
	a.marked = a.told
}

func (a *dataAcks) receive() {
	if a != nil {
		a.covered = a.marked
	}
}

// reset forgets what the secondary's guest has given, which begins another connection.
// a may be nil.
func (a *dataAcks) reset() {
	if a != nil {
		a.covered = dataAck{}
	}
}

// reopen returns what is known of the connection after a's, which the secondary's guest has
// begun and the primary's guest begins now. a may be nil.
func (a *dataAcks) reopen() *dataAcks {
	if a == nil {
		return nil
	}
	return &dataAcks{covered: a.covered}
}

// known reports whether it is known what the guest has given that would go on. a may be nil.
func (a *dataAcks) known() bool { return a != nil && a.covered.is }

// excess returns by how much p's DATA_ACK is greater than what that guest has given, if that
// is known.
func (a *dataAcks) excess(p *pkt) uint32 {
	if p.dack == 0 || !a.known() || !after(p.dataAck(), a.covered.n) {
		return 0
	}
	return p.dataAck() - a.covered.n
}

// leave notes that p leaves, with the DATA_ACK that it has now. a may be nil.
func (a *dataAcks) leave(p *pkt) {
	if a != nil && p.dack > 0 {
		a.left.grow(p.dataAck())
	}
}

// tells reports whether the peer has been told of a DATA_ACK. a may be nil.
func (a *dataAcks) tells() bool { return a != nil && a.left.is }

// news reports whether p has a DATA_ACK that is news to the peer, if it is lowered by less.
// a may be nil.
func (a *dataAcks) news(p *pkt, less uint32) bool {
	return p.dack > 0 && (!a.tells() || after(p.dataAck()-less, a.left.n))
}

// exceeds reports whether p acknowledges more, by numbers of either kind, than the guest has
// that would go on if the primary died now. It counts only where covers is true.
func (t *stream) exceeds(p *pkt) bool {
	return after(p.ack, t.cover.ack) || t.dataAcks.excess(p) > 0
}

// multipath reports whether p says something of Multipath TCP for which it has to wait for
// the checkpoint. Of a SYN judge decides otherwise.
func (p *pkt) multipath() bool { return p.multi && p.flags&packet.SYN == 0 }
