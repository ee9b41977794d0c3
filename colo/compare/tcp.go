package compare

import (
	"bytes"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
)

// A stream is what is known of a TCP connection besides the packets that wait.
type stream struct {
	done   uint32 // everything before it has been compared, and agreed
	agreed bool   // done is known
	inStep bool   // the primary's next byte is at done; otherwise it may be anywhere
	fin    bool   // the FIN at done has been compared too

	pAck, sAck   uint32 // the greatest acknowledgment numbers
	pAcks, sAcks bool   // they are known

	pEnd, pFin uint32 // the greatest end of the primary's data; where its FIN is
	pSaid      bool   // pEnd is known
	pFinned    bool   // pFin is known
	covered    uint32 // the last mark's pEnd
	isCovered  bool

	pISN, sISN   uint32
	pOpen, sOpen bool // the ISNs are known
	synDone      bool // the primary's SYN has been compared
	sSyn         synEvent
	sFin         event // at: the sequence number of the FIN
	sRst         event
}

// An event of the secondary's stream that waits for the primary's.
type event struct {
	is   bool
	seq  uint32
	when time.Time
}

type synEvent struct {
	event
	flags uint8
}

// rollBack is called at a mark: the secondary's guest will be the primary's. It
// will know what that has acknowledged, opened and closed, and send from where
// that is.
func (t *stream) rollBack() {
	t.inStep = false
	t.sSyn, t.sFin, t.sRst = synEvent{}, event{}, event{}
	t.sAck, t.sAcks = t.pAck, t.pAcks
	t.sISN, t.sOpen, t.synDone = t.pISN, t.pOpen, t.pOpen
	t.covered, t.isCovered = t.pEnd, t.pSaid
	if t.pFinned {
		t.done, t.agreed, t.fin = t.pFin, true, true
	}
}

// repeats says that a packet of the secondary's tells nothing that the
// primary's guest had not said before the last mark. Nobody need answer it.
func (t *stream) repeats(s *pkt) bool { return t.isCovered && !after(s.end, t.covered) }

func (t *stream) late(now time.Time, timeout time.Duration) bool {
	for _, ev := range [...]event{t.sSyn.event, t.sFin, t.sRst} {
		if ev.is && now.Sub(ev.when) > timeout {
			return true
		}
	}
	return false
}

func serialMax(v *uint32, known *bool, n uint32) {
	if !*known || after(n, *v) {
		*v, *known = n, true
	}
}

func (e *Engine) primaryTCP(c *conn, p *pkt) {
	t := &c.tcp
	if p.flags&packet.SYN != 0 && !(t.pOpen && t.pISN == p.seq) {
		e.reopen(c, p)
	}
	if p.flags&packet.ACK != 0 {
		serialMax(&t.pAck, &t.pAcks, p.ack)
	}
	if p.flags&packet.RST == 0 {
		serialMax(&t.pEnd, &t.pSaid, p.end)
	}
	if p.flags&packet.FIN != 0 {
		t.pFin, t.pFinned = p.end, true
	}
	// The usual cases need no copy: the queue is empty and p may leave.
	if c.p.len() == 0 && !c.blind {
		switch ok, why := e.judge(c, p, c.s.len() > 0); {
		case ok:
			e.release(p, &e.stats.Matched)
			e.consume(c)
			return
		case why != ReasonNone:
			e.diverge(c, why)
		}
		c.p.push(e.pool.copy(p))
		return
	}
	c.p.bySeq(e.pool.copy(p))
	e.advance(c, c.s.len() > 0)
}

// reopen begins a new connection on an old pair of addresses.
func (e *Engine) reopen(c *conn, p *pkt) {
	t := &c.tcp
	if c.p.len() > 0 {
		// The old connection is not finished. What is left of it must leave
		// first, and its twins will not come.
		c.blind = true
		e.diverge(c, ReasonFlags)
	}
	syn := t.sSyn
	n := stream{pISN: p.seq, pOpen: true, sISN: t.sISN, sOpen: t.sOpen}
	if syn.is {
		// The secondary has come here before: what it said since is of the
		// new connection.
		n.sSyn, n.sFin, n.sRst, n.sAck, n.sAcks = syn, t.sFin, t.sRst, t.sAck, t.sAcks
	} else {
		e.drop(&c.s)
		n.sOpen = false
	}
	*t = n
}

func (e *Engine) secondaryTCP(c *conn, p *pkt) {
	t := &c.tcp
	if p.flags&packet.SYN != 0 {
		if !t.sOpen || t.sISN != p.seq {
			e.drop(&c.s)
			if c.p.len() > 0 && c.p.at(0).flags&packet.SYN == 0 {
				e.diverge(c, ReasonFlags)
			}
			t.sISN, t.sOpen = p.seq, true
			t.sSyn = synEvent{event{true, p.seq, p.at}, p.flags}
			t.sFin, t.sRst, t.sAcks = event{}, event{}, false
		}
	}
	if p.flags&packet.ACK != 0 {
		serialMax(&t.sAck, &t.sAcks, p.ack)
	}
	if p.flags&packet.RST != 0 && !t.sRst.is {
		t.sRst = event{true, p.seq, p.at}
	}
	if p.flags&packet.FIN != 0 && !t.sFin.is && !(t.fin && p.end == t.done) {
		t.sFin = event{true, p.end, p.at}
	}
	if len(p.data()) > 0 && !(t.agreed && !t.ahead(p.end)) {
		if c.p.len() > 0 && !c.blind {
			// The queue may be satisfied with p as it is, without a copy.
			c.s.bySeq(p)
			e.advance(c, true)
			e.keep(c, p)
			return
		}
		c.s.bySeq(e.pool.copy(p))
		return
	}
	e.advance(c, true)
}

// keep replaces the caller's packet in the secondary's queue by a copy, if it
// is still there.
func (e *Engine) keep(c *conn, p *pkt) {
	for i, q := range c.s.all() {
		if q == p {
			c.s.items[c.s.head+i] = e.pool.copy(p)
			return
		}
	}
}

// ahead reports whether seq is beyond what has been compared. What is a quarter
// of the number space behind is no retransmission.
func (t *stream) ahead(seq uint32) bool { return t.done-seq > 1<<30 }

// advance releases the primary's packets, from the lowest on, as long as they
// agree. kick says that the secondary's guest has just sent something, or has
// something waiting.
func (e *Engine) advance(c *conn, kick bool) {
	for c.p.len() > 0 && !c.blind {
		p := c.p.at(0)
		ok, why := e.judge(c, p, kick)
		if !ok {
			if why != ReasonNone {
				e.diverge(c, why)
			}
			return
		}
		c.p.remove(0)
		e.release(p, &e.stats.Matched)
		e.consume(c)
		if c.diverged && c.p.len() == 0 {
			c.diverged = false
			e.stats.Recovered++
		}
	}
}

// consume forgets the secondary's packets that have been compared.
func (e *Engine) consume(c *conn) {
	t := &c.tcp
	for c.s.len() > 0 && t.agreed && !t.ahead(c.s.at(0).end) {
		e.pool.put(c.s.remove(0))
	}
}

// judge says whether p, the lowest of the primary's, may leave; if not, whether
// it never will. If it may, the stream has moved on.
func (e *Engine) judge(c *conn, p *pkt, kick bool) (ok bool, why Reason) {
	t := &c.tcp
	data := p.data()
	switch {
	case p.flags&packet.RST != 0:
		if t.sFin.is || t.sSyn.is {
			return false, ReasonFlags
		}
		if ok = t.sRst.is; ok {
			t.sRst.is = false
		}
		return ok, ReasonNone

	case p.flags&packet.SYN != 0:
		if t.synDone {
			return (kick || e.cfg.ReleaseRetransmits) && t.ackOK(p), ReasonNone
		}
		switch {
		case t.sRst.is, len(data) > 0:
			return false, ReasonFlags // data with a SYN (RFC 7413) waits for the checkpoint
		case !t.sSyn.is:
			return false, ReasonNone
		case (t.sSyn.flags^p.flags)&(packet.ACK|packet.FIN|packet.RST) != 0:
			return false, ReasonFlags
		case !t.ackOK(p):
			return false, e.impatient()
		}
		t.sSyn.is, t.synDone = false, true
		t.done, t.agreed, t.inStep = p.seq+1, true, true
		return true, ReasonNone

	case len(data) == 0 && p.flags&packet.FIN == 0:
		if !t.sAcks && p.flags&packet.ACK != 0 {
			// Nothing is known of the secondary's guest. This one passes; from
			// now on it is held to what it says.
			t.sAck, t.sAcks = p.ack, true
		}
		return t.ackOK(p), ReasonNone
	}

	old := t.agreed && !t.ahead(p.end)
	if old && (p.flags&packet.FIN == 0 || t.fin || p.end != t.done) {
		return (kick || e.cfg.ReleaseRetransmits) && t.ackOK(p), ReasonNone
	}
	from := p.ok
	if t.agreed && !t.ahead(from) {
		from = t.done
	} else if t.inStep && from == p.seq && from != t.done {
		return false, ReasonNone // a hole in the primary's stream: what is missing will come
	}
	if !old {
		from, why = e.agree(c, p, from)
		p.ok = from
		switch {
		case why != ReasonNone:
			return false, why
		case from != p.end && t.sRst.is:
			return false, ReasonFlags
		case from != p.end && t.sFin.is && !after(t.sFin.seq, from):
			return false, ReasonFlags
		case from != p.end:
			return false, ReasonNone
		}
	}
	if p.flags&packet.FIN != 0 {
		switch {
		case t.sRst.is, t.sFin.is && t.sFin.seq != p.end:
			return false, ReasonFlags
		case !t.sFin.is && c.s.len() > 0 && after(c.s.at(c.s.len()-1).end, p.end):
			return false, ReasonFlags // the secondary's guest goes on sending
		case !t.sFin.is:
			return false, ReasonNone
		}
	}
	if !t.ackOK(p) {
		return false, e.impatient()
	}
	t.done, t.agreed, t.inStep = p.end, true, true
	if t.fin = p.flags&packet.FIN != 0; t.fin {
		t.sFin.is = false
	}
	return true, ReasonNone
}

func (e *Engine) impatient() Reason {
	if e.cfg.PatientAcks {
		return ReasonNone
	}
	return ReasonAck
}

// ackOK is the acknowledgment rule. It is asked last, and notes that there is
// nothing else that p waits for.
func (t *stream) ackOK(p *pkt) bool {
	p.waitsAck = p.flags&packet.ACK != 0 && !(t.sAcks && !after(p.ack, t.sAck))
	return !p.waitsAck
}

// agree compares the data of p, from a sequence number on, with what waits of
// the secondary's. It returns how far they agree; the reason says that they
// never will further.
func (e *Engine) agree(c *conn, p *pkt, from uint32) (uint32, Reason) {
	data := p.data()
	for _, s := range c.s.all() {
		if !after(s.end, from) {
			continue
		}
		if after(s.seq, from) {
			// Packets reach us in the order in which the guest sent them. It
			// will not send what it has left out.
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
