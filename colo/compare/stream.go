package compare

import (
	"time"

	"github.com/gocolo/lockstep/internal/packet"
)

// A stream has what is known of a TCP connection besides the packets that wait.
// Each of its parts changes at other moments, and that is what keeps apart what
// the world may know from what it may not:
//
//	          Primary   Secondary   Mark      Received   a packet leaves
//	flight    begins    begins      may end   -          grows, as when the peer is heard
//	told      grows     -           -         -          -
//	cover     -         grows       shrinks   := mark    done, fin, syn
//	mark      -         -           := told   is used    -
//	said      -         grows       cleared   -          what has matched
//	left      -         -           -         -          grows
//
// Nothing leaves that goes beyond cover. A new connection between the same
// addresses (reopen) begins with an empty stream.
//
// What each packet needs of two parts lies together, at the end of the first of them and in
// front of the second, so that it takes few lines of the processor's cache: of told and
// cover, and of said and left.
type stream struct {
	flight *flight // nil: nothing was repeated of late

	told  told
	cover cover
	mark  snapshot
	said  said
	left  left

	urgent   *urgent   // nil: neither guest has sent an urgent pointer
	dataAcks *dataAcks // nil: neither guest has acknowledged data of Multipath TCP
	refusals *refusals // nil: no refusal of the secondary's guest waits behind another one
}

// told has what the primary's guest has said. It changes with each of its packets,
// before that is judged, and a checkpoint does not take it back. Only what is known of the scale
// also comes from elsewhere: from the peer's answer to the guest's SYN, and from a table of scales.
type told struct {
	isn    uint32 // of its last SYN, if it has not reset the connection since
	fin    uint32 // the sequence number of its FIN
	ack    uint32 // the greatest acknowledgment number
	edge   uint32 // the greatest right edge of its receive window (RFC 9293 section 3.3.1)
	end    uint32 // the greatest end of its data
	open   bool   // isn is known
	fins   bool   // fin is known
	acks   bool   // ack is known
	edges  bool   // edge is known
	data   bool   // end is known
	scaled bool   // scale is known
	pieces bool   // some of its data has come in fragments; once true, it stays
	scale  uint8  // of its window, by its last SYN and that of the peer (RFC 7323 section 2)

	options synOptions // of its last SYN
}

// next returns the number behind all that the guest has sent, which its acknowledgments have.
func (t *told) next() (seq uint32, known bool) {
	if t.fins && (!t.data || !after(t.end, t.fin)) {
		return t.fin + 1, true
	}
	return t.end, t.data
}

// cover has what the guest that would go on if the primary died now knows at
// least. What leaves must not go beyond it. It grows with what the secondary's
// guest says, as long as that is heard. At a mark it shrinks to what the primary's
// guest knows: until the receipt either of the two may go on, the secondary's old
// guest or the one of the checkpoint. At the receipt it becomes what the primary's
// guest knew at the mark, which may be more or less. A SYN with which the secondary's guest
// begins another connection empties it.
type cover struct {
	ack   uint32 // what that guest has acknowledged: no more is acknowledged to the peer
	edge  uint32 // the right edge of its receive window
	done  uint32 // it has said everything before it, as the primary's guest did; it grows when a packet leaves
	acks  bool   // ack is known; if not, nothing is acknowledged
	edges bool   // edge is known

	agreed bool // done is known
	inStep bool // the primary's next byte is at done; otherwise it may be anywhere
	fin    bool // it has said the FIN at done too
	syn    bool // it has said the primary's SYN too

	repeats bool       // repeat is known, and beyond done or done is not known; false from then on at which done reaches it
	options synOptions // of that SYN, as this guest has said it last
	repeat  uint32     // how far the primary's guest had sent data at the mark of the last received checkpoint
	sack    ranges     // what this guest holds beyond ack, by the last packet that says it; emptied at a mark
}

// snapshot has what the primary's guest knew at a mark. It is set at the mark, used at the
// receipt, and then cleared.
type snapshot struct {
	is    bool
	epoch uint64
	told  told
}

// said has what the secondary's guest has sent, besides data, for which no packet of the
// primary's has come yet. It grows with the secondary's packets. A packet of the primary
// that matches some of it removes that when it leaves, and a mark clears all but what tells which
// connection they are of: isn, open and past.
type said struct {
	rst streamEvent
	fin streamEvent // seq: where the FIN is
	syn synEvent

	isn  uint32 // of its last SYN; a mark leaves it; at the receipt, or at another SYN of the primary's guest, it becomes the primary's number as it was at the mark
	end  uint32 // the greatest end of its data; a mark clears it
	open bool   // isn is known
	past bool   // it is in another connection: from the primary's SYN until its own, or from one of its own that was missed until the next, or a receipt; also of a connection that had no room when it may have begun
	ends bool   // end is known
	rsts bool   // rst waits
	fins bool   // fin waits
	syns bool   // syn waits
	acks bool   // the ack of rst is known
}

// left has what the peer has been told. It changes only when a packet leaves, but for raised, of which
// Inbound forgets what the peer has acknowledged.
type left struct {
	last  uint64 // the last packet with an acknowledgment, by its place in the order of arrival
	ack   uint32 // the greatest acknowledgment number
	edge  uint32 // the greatest right edge of the window
	end   uint32 // the greatest end of data, SYN and FIN
	ts    uint32 // the newest timestamp (RFC 7323)
	win   uint16 // the window that was sent with ack, in units of its scale
	acks  bool   // ack is known
	edges bool   // edge is known
	ends  bool   // end is known
	tss   bool   // ts is known

	pasts  bool       // past is known
	next   uint8      // the index in raised that is written next
	past   uint32     // the newest timestamp of the connection before this one, packets of which may still wait
	sack   ranges     // the blocks of the last packet with any
	raised *[8]raised // nil: there is none
}

// A streamEvent is an event of the secondary's stream that waits for the primary's.
type streamEvent struct {
	seq, ack uint32
	when     instant
}

// synEvent is the opening of a stream, by what the secondary's guest has said.
type synEvent struct {
	streamEvent
	flags   uint8
	options synOptions
}

// reaches reports whether the secondary's guest has said all before seq.
func (t *said) reaches(seq uint32) bool { return t.ends && !after(seq, t.end) }

// resets notes a RST of the secondary's guest.
func (t *said) resets(p *pkt) {
	t.rsts, t.rst, t.acks = true, streamEvent{p.seq, p.ack, p.at}, p.flags&packet.ACK != 0
	t.open = t.open && !t.acks // the next SYN begins another connection, also with the same number
}

// refusals are refusals of SYNs that the secondary's guest has sent while one of its RSTs waits for the
// primary's. A client may try again and again from one port, and both guests refuse each time.
type refusals struct {
	at [8]streamEvent // more than these do not count
	n  int
}

// refuses reports whether a RST that has this number and acknowledges something refuses a SYN: a guest that has
// no connection answers so, and begins at the number 0 (RFC 9293 section 3.10.7.1). Where the primary's guest
// goes on at 0, a RST may be of the connection.
func (t *stream) refuses(seq uint32, acks bool) bool {
	if !acks || seq != 0 {
		return false
	}
	next, known := t.told.next()
	return !known || next != 0
}

// refused reports whether the secondary's guest has refused the SYN that p refuses, and no packet of the
// primary's has come for that yet; it does so once.
func (t *stream) refused(p *pkt) bool {
	if p.dack != 0 {
		return false // there is no connection of which it could acknowledge data
	}
	if t.said.rsts && t.said.acks && t.said.rst.seq == 0 && t.said.rst.ack == p.ack {
		t.wasReset()
		return true
	}
	r := t.refusals
	if r == nil {
		return false
	}
	for i := range r.n {
		if r.at[i].ack == p.ack {
			r.remove(i)
			if r.n == 0 {
				t.refusals = nil
			}
			return true
		}
	}
	return false
}

// remove removes the refusal i.
func (r *refusals) remove(i int) {
	copy(r.at[i:], r.at[i+1:r.n])
	r.n--
}

// resets notes a RST of the secondary's guest. If another one waits, a refusal waits behind
// it: a guest that resets a connection may do so with any number of RSTs.
func (t *stream) resets(p *pkt) {
	switch r := t.refusals; {
	case !t.said.rsts:
		t.said.resets(p)
	case p.flags&packet.ACK == 0 || p.seq != 0:
	case r == nil:
		t.refusals = &refusals{at: [8]streamEvent{{p.seq, p.ack, p.at}}, n: 1} // rare
	case r.n < len(r.at):
		r.at[r.n] = streamEvent{p.seq, p.ack, p.at}
		r.n++
	}
}

// wasReset is called when the RST of the secondary's guest that waits has met one of the primary's. The
// next refusal takes its place.
func (t *stream) wasReset() {
	r := t.refusals
	if r == nil {
		t.said.rsts = false
		return
	}
	t.said.rst, t.said.acks = r.at[0], true
	r.remove(0)
	if r.n == 0 {
		t.refusals = nil
	}
}

// narrow is called at a mark. From then on the guest that goes on may be the primary's as
// it is at the mark, which knows only what it has said.
func (t *stream) narrow(epoch uint64) {
	c := &t.cover
	if t.said.syns {
		*c = cover{} // it is of a connection that is over for the primary's guest
	}
	if c.acks = c.acks && t.told.acks; c.acks && after(c.ack, t.told.ack) {
		c.ack = t.told.ack
	}
	if c.edges = c.edges && t.told.edges; c.edges && after(c.edge, t.told.edge) {
		c.edge = t.told.edge
	}
	c.inStep = false
	c.syn = c.syn && c.options == t.told.options
	c.sack = ranges{}
	t.urgent.narrow()
	t.dataAcks.narrow()
	t.said.syns, t.said.fins, t.said.rsts, t.said.ends = false, false, false, false
	t.refusals = nil
	t.mark = snapshot{true, epoch, t.told}
}

// receive is called at the receipt of epoch. From then on the guest that goes on is the
// primary's as it was at the mark. covers says that all data before the mark counts as
// compared.
func (t *stream) receive(epoch uint64, covers bool) {
	if !t.mark.is || t.mark.epoch > epoch {
		return
	}
	m := &t.mark.told
	v := cover{
		ack: m.ack, acks: m.acks,
		edge: m.edge, edges: m.edges,
		done: t.cover.done, agreed: t.cover.agreed, fin: t.cover.fin,
		syn: m.open, options: m.options,
		repeat: m.end, repeats: m.data && !covers,
	}
	if covers && m.data {
		v.done, v.agreed, v.inStep = m.end, true, true
	}
	if m.fins && (covers || !m.data || m.fin == m.end) {
		v.done, v.agreed = m.fin, true
	}
	v.fin = v.fin || m.fins && v.done == m.fin
	t.cover = v
	t.urgent.receive()
	t.dataAcks.receive()
	t.said.isn, t.said.open, t.said.past = m.isn, m.open, false
	t.mark = snapshot{}
}

// reaches says that all before seq has been compared and may have left. A number that v.done has passed
// is forgotten: once it is half of the number space behind it would count as ahead.
func (v *cover) reaches(seq uint32) {
	v.done, v.agreed, v.inStep = seq, true, true
	if v.repeats && !after(v.repeat, seq) {
		v.repeats = false
	}
}

// holds adds to r what the guest holds of b, which is not all acknowledged to the peer.
func (v *cover) holds(b [2]uint32, r *ranges) {
	from := b[0]
	if v.acks && after(v.ack, from) { // it has what the primary's guest lacks
		from = earlier(v.ack, b[1])
	}
	rest := ranges{at: [4][2]uint32{{from, b[1]}}, n: 1}
	rest = rest.and(&v.sack)
	if rest.n > 0 && rest.at[0][0] == from {
		from = rest.at[0][1]
		copy(rest.at[:], rest.at[1:rest.n])
		rest.n--
	}
	r.add(b[0], from)
	for _, x := range rest.at[:rest.n] {
		r.add(x[0], x[1])
	}
}

// tells reports whether s says only what the primary's guest had said before the last
// mark that was received, so that no packet need come for it.
func (v *cover) tells(s *pkt) bool { return v.repeats && !after(s.end, v.repeat) }

func (t *stream) late(now instant, timeout time.Duration) bool {
	s := &t.said
	return s.syns && now.Sub(s.syn.when) > timeout || s.fins && now.Sub(s.fin.when) > timeout || s.rsts && now.Sub(s.rst.when) > timeout
}

func serialMax(v *uint32, known *bool, n uint32) {
	if !*known || after(n, *v) {
		*v, *known = n, true
	}
}

// covers reports whether cover holds for the connection of p, and knows numbers of each kind
// that p acknowledges. It does not for a SYN of the secondary's that the primary's guest has
// not answered, which begins another connection; nor where the two guests acknowledge numbers
// more than a quarter of the number space apart, which are not those of one connection.
func (t *stream) covers(p *pkt) bool {
	return t.cover.acks && t.cover.ack-p.ack+1<<30 < 1<<31 && (p.dack == 0 || t.dataAcks.known()) && (!t.said.syns || p.flags&packet.SYN != 0)
}

// acknowledged reports whether ack, a number of the primary's guest, is one that the
// secondary's guest has acknowledged, which has come to cover.
func acknowledged(ack, cover uint32) bool { return cover-ack < 1<<30 }

// ahead reports whether seq is beyond the data that has been compared. A number more than
// a quarter of the number space behind that is no retransmission, and counts as ahead.
func (v *cover) ahead(seq uint32) bool { return v.done-seq > 1<<30 }

// ranges are up to four stretches of sequence numbers, as many as a SACK option has (RFC
// 2018 section 3).
type ranges struct {
	at [4][2]uint32 // each has its first number, and the one after its last
	n  uint8
}

// add adds the numbers between from and to. Where there is no room, it first drops stretches that are
// within others: a duplicate (RFC 2883) tells the peer less than what it lacks.
func (r *ranges) add(from, to uint32) {
	if r.n == uint8(len(r.at)) && !r.has(from, to) {
		r.squeeze()
	}
	if r.n < uint8(len(r.at)) && after(to, from) {
		r.at[r.n] = [2]uint32{from, to}
		r.n++
	}
}

// absorb adds the numbers between from and to, unless one of the stretches has them all, and
// drops those that this one has: a duplicate (RFC 2883) may be part of another block.
func (r *ranges) absorb(from, to uint32) {
	if r.has(from, to) {
		return
	}
	n := uint8(0)
	for _, b := range r.at[:r.n] {
		if after(from, b[0]) || after(b[1], to) {
			r.at[n] = b
			n++
		}
	}
	clear(r.at[n:r.n]) // as in every value of this type, which are compared
	r.n = n
	r.add(from, to)
}

// trim drops stretches until there are n, for which a packet has room: first those that are within
// others, then the last ones.
func (r *ranges) trim(n uint8) {
	if r.n > n {
		r.squeeze()
	}
	if r.n > n {
		clear(r.at[n:r.n])
		r.n = n
	}
}

// squeeze drops stretches that are within others.
func (r *ranges) squeeze() {
	var all ranges
	for _, b := range r.at[:r.n] {
		all.absorb(b[0], b[1])
	}
	*r = all
}

// pass drops stretches that end before the number ack or at it: once they are half of the number space behind,
// nothing tells them from new ones.
func (r *ranges) pass(ack uint32) {
	n := uint8(0)
	for _, b := range r.at[:r.n] {
		if after(b[1], ack) {
			r.at[n] = b
			n++
		}
	}
	clear(r.at[n:r.n])
	r.n = n
}

// has reports whether one of the stretches contains all numbers between from and to.
func (r *ranges) has(from, to uint32) bool {
	for _, b := range r.at[:r.n] {
		if !after(b[0], from) && !after(to, b[1]) {
			return true
		}
	}
	return false
}

// within reports whether s has all of r, however the two are cut and ordered.
func (r *ranges) within(s *ranges) bool {
	for _, b := range r.at[:r.n] {
		if !s.has(b[0], b[1]) {
			return false
		}
	}
	return true
}

// and returns the numbers that are in both, in up to four stretches. It leaves out a
// fifth.
func (r *ranges) and(s *ranges) (both ranges) {
	for _, a := range r.at[:r.n] {
		for _, b := range s.at[:s.n] {
			from, to := a[0], a[1]
			if after(b[0], from) {
				from = b[0]
			}
			if after(to, b[1]) {
				to = b[1]
			}
			both.absorb(from, to)
		}
	}
	return both
}
