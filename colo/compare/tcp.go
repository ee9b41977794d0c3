package compare

import (
	"bytes"

	"github.com/gocolo/lockstep/internal/packet"
)

func (e *Engine) primaryTCP(c *conn, p *pkt) {
	t := &c.tcp
	if p.flags&packet.SYN != 0 && !(t.told.open && t.told.isn == p.seq) {
		e.reopen(c, p)
	}
	again := t.told.data && p.seq != p.end && !after(p.end, t.told.end)
	t.told.note(p)
	if p.flags&packet.URG != 0 {
		t.points(p, primary)
	}
	t.acknowledges(p, primary)
	switch {
	case !e.cfg.LowerAcks:
	case e.takesBack(c, p):
		c.blind = true // until a checkpoint has the bytes that the guest says now
		e.diverge(c, ReasonData)
		c.p.bySeq(e.hold(c, p))
		return
	case p.bare() && !c.blind:
		e.primaryAck(c, p)
		return
	case again && (e.repeat(c, p) || e.turn(c, p)):
		return
	}
	// The usual cases need no copy: the queue is empty and p may leave.
	if c.p.len() == 0 && !c.blind {
		switch ok, why := e.judge(c, p, c.s.len() > 0); {
		case ok:
			e.leave(c, p, &e.stats.Matched)
			e.consume(c)
			return
		case why != ReasonNone:
			e.diverge(c, why)
		}
		c.p.push(e.hold(c, p))
		e.dates(c)
		return
	}
	c.p.bySeq(e.hold(c, p))
	e.advance(c, c.s.len() > 0)
	e.dates(c)
}

// note updates t by a packet of the primary's guest.
func (t *told) note(p *pkt) {
	if p.flags&packet.SYN != 0 {
		o := p.synOptions()
		// The peer's SYN says whether the peer scales too. It has come before a SYN|ACK, and
		// perhaps before a SYN that is repeated.
		if again := t.open && t.isn == p.seq && t.options == o; !again || !t.scaled {
			t.scale, t.scaled = o.scale, p.flags&packet.ACK != 0
		}
		t.isn, t.open, t.options = p.seq, true, o
	}
	if p.flags&packet.ACK != 0 {
		serialMax(&t.ack, &t.acks, p.ack)
		if edge, ok := t.edgeOf(p); ok {
			serialMax(&t.edge, &t.edges, edge)
		}
	}
	end := p.end
	if p.flags&packet.SYN != 0 {
		end++
	}
	if p.flags&packet.RST == 0 {
		serialMax(&t.end, &t.data, end)
	} else if p.flags&packet.ACK != 0 {
		t.open = false // the next SYN begins another connection, also with the same number
	}
	if p.flags&packet.FIN != 0 {
		t.fin, t.fins = end, true
	}
}

// edgeOf returns the right edge of the window that p offers. TCP does not scale the
// window of a SYN (RFC 7323 section 2.2).
func (t *told) edgeOf(p *pkt) (edge uint32, ok bool) {
	switch {
	case p.flags&packet.ACK == 0:
		return 0, false
	case p.flags&packet.SYN != 0:
		return p.ack + uint32(p.win), true
	}
	return p.ack + uint32(p.win)<<t.scale, t.scaled
}

// reopen begins a new connection on an old pair of addresses. What is known of
// the old one is void, whatever checkpoint comes.
func (e *Engine) reopen(c *conn, p *pkt) {
	t := &c.tcp
	if c.p.len() > 0 {
		// The old connection is not finished. What is left of it must leave first, and the
		// packets that match it will not come.
		c.blind = true
		e.diverge(c, ReasonFlags)
	}
	e.settle(c)
	e.land(t.flight)
	n := stream{said: said{isn: t.said.isn, open: t.said.open}}
	if t.mark.is { // the secondary's guest is heard again when it is the one of the mark
		n.said.isn, n.said.open = t.mark.told.isn, t.mark.told.open
	}
	if t.said.syns {
		// The secondary's guest has begun the new connection before the primary's; its
		// packets since belong to the new one.
		n.said = t.said
		if t.cover.edges { // or its SYN acknowledges nothing, and no answer to it can have come
			n.cover.ack, n.cover.acks, n.cover.edge, n.cover.edges = t.cover.ack, t.cover.acks, t.cover.edge, true
		}
		n.dataAcks, n.refusals = t.dataAcks.reopen(), t.refusals
	} else {
		e.drop(&c.s)
		n.said.past = true
	}
	n.left.past, n.left.pasts = t.left.past, t.left.pasts
	if t.left.tss {
		n.left.past, n.left.pasts = t.left.ts, true
	}
	*t = n
	c.age++
}

func (e *Engine) secondaryTCP(c *conn, p *pkt) {
	t := &c.tcp
	if p.flags&packet.SYN != 0 && !(t.said.open && t.said.isn == p.seq) && !t.repeatsSYN(p) {
		e.drop(&c.s)
		if c.p.len() > 0 && c.p.at(0).flags&packet.SYN == 0 {
			e.diverge(c, ReasonFlags)
		}
		t.said = said{isn: p.seq, open: true, syns: true, syn: synEvent{streamEvent{p.seq, p.ack, p.at}, p.flags, p.synOptions()}}
		t.cover = cover{}
		t.urgent, t.refusals = nil, nil
		t.dataAcks.reset()
	}
	// The initial numbers of the guests differ, and what a RST carries is no data.
	const events = packet.SYN | packet.RST
	if p.flags&packet.SYN != 0 {
		t.cover.options = p.synOptions() // a guest may repeat it with others
	}
	if t.said.past {
		// But a refusal of a connection that the primary's guest accepts is about this
		// one.
		const refusal = packet.RST | packet.ACK
		if p.flags&refusal == refusal && t.told.acks && p.ack == t.told.ack && !c.apart {
			t.resets(p)
			e.advance(c, true)
		}
		return
	}
	repeats := p.flags&events == 0 && t.said.repeats(p)
	if e.cfg.LowerAcks && p.flags&events == 0 && (repeats || p.seq != p.end && t.cover.agreed && !t.cover.ahead(p.end)) {
		w := e.flies(t, p.seq)
		if p.ts > 0 {
			serialMax(&w.twin, &w.twins, p.stamped())
		}
		if !e.turned(c, p) && p.ordinary() {
			e.relay(c, p)
		}
	}
	if p.flags&packet.URG != 0 {
		t.points(p, secondary)
	}
	again := p.bare() && t.cover.acks && p.ack == t.cover.ack
	t.acknowledges(p, secondary)
	if p.flags&packet.ACK != 0 {
		room := t.cover.edge
		t.hear(p)
		again = again && t.cover.edge == room
	}
	if p.flags&packet.RST != 0 && !c.apart {
		t.resets(p)
	}
	if p.flags&packet.FIN != 0 && p.flags&events == 0 && !t.said.fins && !(t.cover.fin && p.end == t.cover.done) && !c.apart {
		t.said.fins, t.said.fin = true, streamEvent{p.end, p.ack, p.at}
	}
	if c.owed != nil && !e.paySelective(c, p) {
		e.payOwed(c, again)
	}
	if c.p.len() > 0 && c.s.len() == 0 && t.twins(c.p.at(0), p) && !c.blind && !c.apart {
		// In nearly all cases the two have sent the same, and nothing else waits.
		q := c.p.remove(0)
		t.cover.reaches(q.end)
		e.leave(c, q, &e.stats.Matched)
		e.recovered(c)
		e.advance(c, false)
		return
	}
	if len(p.data()) > 0 && p.flags&events == 0 && !(t.cover.agreed && !t.cover.ahead(p.end)) && !c.blind && !c.apart {
		if c.p.len() > 0 {
			// The queue may need p only during this call, and then no copy.
			c.s.bySeq(p)
			e.advance(c, true)
			e.keep(c, p)
			if repeats {
				e.part(c)
			}
			e.dates(c)
			return
		}
		c.s.bySeq(e.hold(c, p))
		return
	}
	e.advance(c, true)
}

// twins reports whether p is the next segment of the primary's stream and s is equal to
// it, both without SYN, FIN or RST. judge would come to the same result.
func (t *stream) twins(p, s *pkt) bool {
	const events = packet.SYN | packet.FIN | packet.RST | packet.URG
	v := &t.cover
	return p.seq == s.seq && p.end == s.end && p.seq != p.end && (p.flags|s.flags)&events == 0 &&
		v.inStep && v.agreed && v.done == p.seq && p.ok == p.seq && !v.fin &&
		t.covers(p) && p.flags&packet.ACK != 0 && !t.exceeds(p) && !p.multi &&
		bytes.Equal(p.data(), s.data())
}

// repeatsSYN reports whether p, a SYN of the secondary's guest, is the one that has met the primary's, once
// more, with the primary's number: it is translated since the peer has answered that. The guest has said
// nothing after it, so that the cover holds for another connection that begins so, too.
func (t *stream) repeatsSYN(p *pkt) bool {
	v := &t.cover
	acks := p.flags&packet.ACK != 0
	return v.syn && !t.said.syns && t.told.open && t.told.isn == p.seq && v.agreed && v.done == p.seq+1 && !v.fin &&
		v.acks == acks && (!acks || v.ack == p.ack)
}

// hear updates t.cover by the acknowledgment in p, a packet of the secondary's guest. It applies
// the primary's window scale: if the secondary's SYN had another one, the guests have
// diverged. Before the primary's SYN has come its scale is that of another connection, if
// there was one, and only the window of a SYN can be told.
func (t *stream) hear(p *pkt) {
	v := &t.cover
	serialMax(&v.ack, &v.acks, p.ack)
	if edge, ok := t.told.edgeOf(p); ok && (!t.said.syns || p.flags&packet.SYN != 0) {
		serialMax(&v.edge, &v.edges, edge)
	}
	if p.nsck > 0 {
		v.sack = p.blocks()
	} else if v.sack.n > 0 {
		v.sack.pass(v.ack)
	}
}

// keep replaces p, whose memory belongs to the caller, by a copy, if it is in the
// secondary's queue.
func (e *Engine) keep(c *conn, p *pkt) {
	for i, q := range c.s.all() {
		if q == p {
			c.s.items[c.s.head+i] = e.hold(c, p)
			return
		}
	}
}

// advance releases the primary's packets, from the lowest on, as long as they agree with
// the secondary's. kick says that the secondary's guest has just sent something, or that
// some of its packets wait.
func (e *Engine) advance(c *conn, kick bool) {
	for c.p.len() > 0 && !c.blind {
		p := c.p.at(0)
		if p.turn && e.tooLate(c, p) {
			e.pool.put(c.p.remove(0))
			e.recovered(c)
			continue
		}
		ok, why := e.judge(c, p, kick)
		if !ok {
			if why != ReasonNone {
				e.diverge(c, why)
			}
			return
		}
		c.p.remove(0)
		e.leave(c, p, &e.stats.Matched)
		e.consume(c)
		e.recovered(c)
	}
}

// consume removes the secondary's packets that have been compared whole.
func (e *Engine) consume(c *conn) {
	t := &c.tcp
	for c.s.len() > 0 && t.cover.agreed && !t.cover.ahead(c.s.at(0).end) {
		e.pool.put(c.s.remove(0))
	}
}

// judge reports whether p, the lowest of the primary's packets, may leave, and updates the
// stream if so. If p may not leave now, why is the reason for which it never will, or
// ReasonNone.
func (e *Engine) judge(c *conn, p *pkt, kick bool) (ok bool, why Reason) {
	t := &c.tcp
	v := &t.cover
	data := p.data()
	if ok, why = t.urges(p); !ok {
		return ok, why
	}
	if p.multipath() {
		return false, ReasonOptions
	}
	switch {
	case p.flags&packet.RST != 0:
		switch {
		case t.said.fins || t.said.syns || len(data) > 0:
			return false, ReasonFlags // what a RST says of its reason is no part of the stream
		case t.refuses(p.seq, p.flags&packet.ACK != 0):
			return t.refused(p), ReasonNone
		case !t.said.rsts, t.refuses(t.said.rst.seq, t.said.acks):
			return false, ReasonNone
		case !(p.flags&packet.ACK != 0 && p.dack == 0 && t.said.acks && t.said.rst.ack == p.ack) && !e.ackOK(t, p):
			return false, e.impatient()
		}
		t.wasReset()
		return true, ReasonNone

	case p.flags&packet.SYN != 0:
		if v.syn && !v.beyond(p) {
			same := v.options == p.synOptions()
			return same && (kick || e.cfg.ReleaseRetransmits) && e.ackOK(t, p), ReasonNone
		}
		switch {
		case t.said.rsts, len(data) > 0, v.syn:
			return false, ReasonFlags // data with a SYN (RFC 7413) waits for the checkpoint
		case !t.said.syns:
			return false, ReasonNone
		case (t.said.syn.flags^p.flags)&(packet.ACK|packet.FIN|packet.RST) != 0:
			return false, ReasonFlags
		case t.said.syn.options != p.synOptions(), t.said.syn.options.has.is(hasMultipath):
			return false, ReasonOptions
		case !e.ackOK(t, p), p.flags&packet.ACK != 0 && t.said.syn.ack != p.ack:
			return false, e.impatient() // they answer two SYNs
		}
		t.said.syns, v.syn, v.options = false, true, p.synOptions()
		v.reaches(p.seq + 1)
		return true, ReasonNone

	case len(data) == 0 && p.flags&packet.FIN == 0:
		if p.flags&packet.URG != 0 && e.cfg.LowerAcks && t.early(p) {
			return false, ReasonNone // its pointer counts from its number, which stays as it is
		}
		if ok = e.ackOK(t, p); !ok && t.said.rsts {
			why = ReasonFlags // the secondary's guest will acknowledge nothing more
		}
		return ok, why
	}

	old := v.agreed && !v.ahead(p.end)
	if old && (p.flags&packet.FIN == 0 || v.fin && p.end == v.done) {
		return (kick || e.cfg.ReleaseRetransmits) && e.ackOK(t, p), ReasonNone
	}
	from := p.ok
	if v.agreed && !v.ahead(from) {
		from = v.done
	} else if v.inStep && from == p.seq && from != v.done {
		if t.told.pieces {
			return false, ReasonPosition // it may have come in fragments
		}
		return false, ReasonNone // data is missing in the primary's stream, and will come
	}
	if !old {
		from, why = e.agree(c, p, from)
		p.ok = from
		switch {
		case why != ReasonNone:
			return false, why
		case from != p.end && t.said.rsts:
			return false, ReasonFlags
		case from != p.end && t.said.fins && !after(t.said.fin.seq, from):
			return false, ReasonFlags
		case from != p.end:
			return false, ReasonNone
		}
	}
	if p.flags&packet.FIN != 0 {
		switch {
		case t.said.rsts && !t.said.fins, t.said.fins && t.said.fin.seq != p.end:
			return false, ReasonFlags
		case !t.said.fins && c.s.len() > 0 && after(c.s.at(c.s.len()-1).end, p.end):
			return false, ReasonFlags // the secondary's guest goes on sending
		case !t.said.fins:
			return false, ReasonNone
		}
	}
	if !e.ackOK(t, p) {
		return false, e.impatient()
	}
	v.reaches(p.end)
	if v.fin = p.flags&packet.FIN != 0; v.fin {
		t.said.fins = false
	}
	return true, ReasonNone
}

// beyond reports whether a repeated SYN has data or a FIN that v does not know of.
func (v *cover) beyond(p *pkt) bool {
	end := p.end + 1
	switch {
	case p.flags&packet.FIN != 0:
		return !v.fin || v.done != end
	case p.seq == p.end, v.repeats && !after(end, v.repeat):
		return false
	}
	return !v.agreed || v.ahead(end)
}

func (e *Engine) impatient() Reason {
	if e.cfg.PatientAcks {
		return ReasonNone
	}
	return ReasonAck
}

// ackOK is the rule for acknowledgments: no segment leaves that acknowledges more than the
// secondary's guest has, unless its number can be lowered. It is asked last, so if the
// answer is no, p waits for nothing else.
func (e *Engine) ackOK(t *stream, p *pkt) bool {
	ok := p.flags&packet.ACK == 0 && p.dack == 0 || t.covers(p) && (!t.exceeds(p) || e.cfg.LowerAcks && t.lowers(p))
	p.waitsAck = !ok
	return ok
}

// agree compares the data of p, from a sequence number on, with the secondary's packets
// that wait. It returns how far they agree, and a reason if they never will beyond that.
func (e *Engine) agree(c *conn, p *pkt, from uint32) (uint32, Reason) {
	data := p.data()
	for _, s := range c.s.all() {
		if !after(s.end, from) {
			continue
		}
		if after(s.seq, from) {
			// Packets arrive in the order in which the secondary's guest sent them. It has
			// left this data out and will not send it.
			return from, ReasonPosition
		}
		n := min(p.end-from, s.end-from)
		a, b := data[from-p.seq:], s.data()[from-s.seq:]
		if !bytes.Equal(a[:n], b[:n]) {
			return from, ReasonData
		}
		if from += n; from == p.end {
			break
		}
	}
	return from, ReasonNone
}
