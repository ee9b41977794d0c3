package compare

import (
	"cmp"
	"fmt"
	"slices"
)

// Mark ends an epoch: the primary's guest is paused, and the packets that it has sent
// belong to epoch. Those that wait go on waiting until Received; the secondary's are void.
// The time of a mark is the one that was given to the call before it. Epochs are marked in
// order, beginning with 0; another number is [ErrEpoch].
func (e *Engine) Mark(epoch uint64) error {
	if epoch != 0 && (epoch != e.next || e.passing) {
		return fmt.Errorf("%w: mark %d, %s", ErrEpoch, epoch, e.marks())
	}
	if e.strict != nil {
		e.strict.mark()
	}
	if epoch == 0 {
		e.received = 0
		for i := range e.marked {
			e.marked[i].epoch = 0 // the session before this one ended without a failover: this one covers what it held
		}
	}
	e.passing, e.loaded = false, false
	e.next = epoch + 1
	e.deaf = true
	e.lastMark = e.now
	e.gathered, e.covered = 0, max(e.gathered, e.covered-1)
	e.notes = e.notes[:0]
	first := len(e.marked)
	for _, p := range e.ownerless.all() {
		e.marked = append(e.marked, marked{p, epoch})
	}
	e.ownerless.clear()
	e.raised, e.repeats, e.sents = false, false, 0
	for c := e.newest; c != nil; c = c.older {
		e.markConn(c, epoch)
		if w := c.tcp.flight; w != nil {
			e.sents += len(w.parts)
		}
		e.raised = e.raised || c.tcp.left.waits()
		e.repeats = e.repeats || c.tcp.flight != nil
	}
	clear(e.loners)
	clear(e.crossing)
	e.crossing = e.crossing[:0]
	for _, c := range e.flights {
		c.awaits = false
	}
	clear(e.flights)
	e.flights = e.flights[:0]
	clear(e.partials)
	e.partials = e.partials[:0]
	slices.SortFunc(e.marked[first:], func(a, b marked) int { return cmp.Compare(a.p.id, b.p.id) })
	e.crowded, e.asked, e.pieced, e.pace, e.soon = false, false, false, 0, 0
	return nil
}

// markConn does what Mark does to one connection.
func (e *Engine) markConn(c *conn, epoch uint64) {
	if c.owed != nil {
		c.p.push(c.owed)
		c.owed = nil
	}
	if c.p.len() > 0 && !c.apart && !c.diverged {
		e.waited(c.p.at(0).at)
	}
	if c.key.kind == kindFragment {
		c.datagrams = c.datagrams.narrow(c, e.now)
	}
	for _, p := range c.p.all() {
		e.marked = append(e.marked, marked{p, epoch})
	}
	c.marked += c.p.len()
	c.p.clear()
	e.drop(&c.s)
	e.review(c)
	c.diverged, c.blind, c.loner, c.crossed, c.partial = false, false, neither, 0, 0
	switch c.key.kind {
	case kindSegment:
		c.tcp.narrow(epoch)
		e.unkeep(c.tcp.flight)
		if w := c.tcp.flight; w != nil && !w.used {
			c.tcp.flight = nil
		} else if w != nil {
			w.used = false
		}
	case kindClaim:
		c.claim.narrow(epoch)
	}
}

// marks says which marks there can be, for errors.
func (e *Engine) marks() string {
	switch {
	case e.passing:
		return "while packets pass, until mark 0"
	case e.next == 0:
		return "and none is marked"
	}
	return fmt.Sprintf("and the last that is marked is %d", e.next-1)
}

// Received releases the packets that were marked with epoch or an earlier one, because the
// secondary has all of that checkpoint. Packets that have come since leave too, as far as
// the checkpoint covers them. Its time is the one that was given to the call before it. An
// epoch that is not marked is [ErrEpoch].
func (e *Engine) Received(epoch uint64) (Result, error) {
	if e.passing || epoch >= e.next {
		return Result{}, fmt.Errorf("%w: received %d, %s", ErrEpoch, epoch, e.marks())
	}
	if e.strict != nil {
		e.strict.taken = e.strict.taken[:0]
		return e.strict.received(), nil
	}
	e.begin()
	e.receive(epoch)
	return e.end(), nil
}

// receive does what Received does, where epoch is not received yet.
func (e *Engine) receive(epoch uint64) {
	if epoch < e.received {
		return
	}
	e.received = epoch + 1
	if e.received == e.next {
		e.took = e.now.Sub(e.lastMark)
	}
	for c := e.newest; c != nil; c = c.older {
		switch c.key.kind {
		case kindSegment:
			c.tcp.receive(epoch, e.cfg.ReleaseRetransmits)
		case kindClaim:
			c.claim.receive(epoch)
		}
	}
	n := 0
	for n < len(e.marked) && e.marked[n].epoch <= epoch {
		p := e.marked[n].p
		if p.owner != nil {
			p.owner.marked--
		}
		switch c := e.ownerOf(p); {
		case c == nil || !p.segment.is:
			e.release(p, &e.stats.Checkpoint)
		case e.wasPaid(c, p):
			e.owe(c, p) // at a later mark less may be allowed
		default:
			e.leave(c, p, &e.stats.Checkpoint)
		}
		n++
	}
	e.marked = slices.Delete(e.marked, 0, n)
	for c := e.newest; c != nil; c = c.older {
		switch {
		case c.key.kind == kindSegment:
			if c.p.len() > 0 {
				e.advance(c, false)
			}
			if c.owed != nil {
				e.payOwed(c, false)
			}
		case c.key.kind == kindClaim && c.claim.said:
			e.secondaryClaim(c)
		}
	}
	if e.loaded && e.received == e.next {
		e.hear()
	}
}

// ownerOf returns the connection of a marked packet, which may have been made after the
// packet came.
func (e *Engine) ownerOf(p *pkt) *conn {
	if p.owner != nil || !p.segment.is {
		return p.owner
	}
	k := connKey{kind: kindSegment}
	p.Key(&k.Key)
	return e.conns.find(e.conns.hash(&k), &k)
}

// SecondaryMark says that the secondary's packets from now on belong to the
// epoch after this one. A marker of an epoch that is over is ignored; one of an
// epoch that is not marked yet is [ErrEpoch], for the secondary cannot know of
// it. What was marked with epoch is released: the secondary has it.
func (e *Engine) SecondaryMark(epoch uint64) (Result, error) {
	if e.passing || epoch >= e.next {
		return Result{}, fmt.Errorf("%w: secondary's mark %d, %s", ErrEpoch, epoch, e.marks())
	}
	if epoch+1 != e.next {
		return Result{}, nil
	}
	res, err := e.Received(epoch)
	e.hear()
	return res, err
}

// Loaded says that the secondary's guest runs epoch. Without Marks its packets
// count from here on, or from Received, if that comes later. An epoch that is not
// marked is [ErrEpoch].
func (e *Engine) Loaded(epoch uint64) error {
	if e.passing || epoch >= e.next {
		return fmt.Errorf("%w: loaded %d, %s", ErrEpoch, epoch, e.marks())
	}
	if !e.cfg.Marks && epoch+1 == e.next {
		if e.loaded = true; e.received == e.next || e.strict != nil {
			e.hear()
		}
	}
	return nil
}

// Deafen says that the secondary's packets arrive no more, or not all of them, since its
// connection is lost or a new one begins within an epoch. Packets that arrive are void
// until the next SecondaryMark or, without Marks, Loaded. Packets that have arrived before
// count.
func (e *Engine) Deafen() {
	e.deaf = true
	if e.strict != nil {
		e.strict.deaf = true
	}
}

// Deaf reports whether the secondary's packets are void at present: they are of
// an older epoch, or some are missing.
func (e *Engine) Deaf() bool { return e.deaf }

// Covered calls fn for each packet that was sent before the last mark and is not released,
// oldest first. fn must not keep the packet's memory.
func (e *Engine) Covered(fn func(Frame)) {
	if e.strict != nil {
		for _, p := range e.strict.marked {
			fn(p.Frame)
		}
		return
	}
	for _, m := range e.marked {
		fn(m.p.Frame)
	}
}

// hear has the packets of the secondary's guest count from now on.
func (e *Engine) hear() {
	if e.deaf {
		e.heard = e.now
	}
	e.deaf = false
	if !e.pace.IsZero() {
		e.pace = e.paced()
		e.sooner(e.pace)
	}
	if e.strict != nil {
		e.strict.deaf = false
	}
}

// Failover releases everything, oldest first, and lets packets pass from now on:
// this side goes on alone, or has no secondary yet. Mark(0) ends that.
func (e *Engine) Failover() Result {
	if !e.passing {
		_ = e.Mark(e.next) // it is the next one
	} else {
		e.begin() // what the last call has released is not released again
	}
	res, _ := e.Received(e.next - 1)
	e.passing, e.next = true, 0
	if e.strict != nil {
		e.strict.passing = true
	}
	for c := e.newest; c != nil; {
		older := c.older
		if c.owed != nil {
			e.payAll(c)
		}
		if told := c.tcp.told; told.scaled {
			e.unlist(c)
			*c = conn{key: c.key, hash: c.hash, number: c.number, plain: c.plain, newer: c.newer, older: c.older, used: c.used, p: c.p, s: c.s}
			c.tcp.told = toldOf(&told)
		} else {
			e.forget(c)
		}
		c = older
	}
	e.aparts, e.raised, e.repeats = 0, false, false
	if e.strict == nil {
		res.Release = e.out
	}
	return res
}

// toldOf returns what is kept of told beyond a session.
func toldOf(t *told) told {
	return told{isn: t.isn, open: t.open, scale: t.scale, scaled: t.scaled, options: t.options}
}
