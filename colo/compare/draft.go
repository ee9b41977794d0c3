package compare

import "time"

// A caller that puts a packet together, as a Comparer does, need not have it copied: it gets
// memory that the engine keeps, a draft, and fills it. A plain segment then waits in the draft, and
// a packet that has waited leaves in the memory in which it waited.

// draft returns memory for a packet of n bytes, for compose or giveBack. It does not count as in use.
func (e *Engine) draft(n int) *pkt {
	p := e.pool.get(n)
	e.pool.bytes -= sizeOf(p.class)
	return p
}

// compose is Primary for a packet that is in p, which draft has returned, behind a
// virtio-net header of vnetHdr bytes. A plain segment waits, and leaves, where it is.
func (e *Engine) compose(p *pkt, vnetHdr int, now time.Time) Result {
	f := Frame{Data: p.Data, VNetHdr: vnetHdr}
	e.begin()
	e.drafted = p
	switch {
	case e.strict != nil: // it copies what it keeps
		e.strict.taken = e.strict.taken[:0]
		return e.strict.primary(f, now)
	case e.primaryPlain(&f, now):
		return Result{Release: e.out}
	}
	return e.primary(f, now)
}

// tight reports whether p is no more memory than its packet needs: what waits in memory that is much
// larger takes the room of others. It is not if a draft was made for a longer packet than came.
func (p *pkt) tight() bool {
	return p.class == classOf(len(p.Data)) || p.class == largeClass && len(p.Data) > 1<<15
}

// needs returns how much memory the packet in the draft p takes once it waits or leaves.
func (p *pkt) needs() int {
	if p.tight() {
		return sizeOf(p.class)
	}
	return costOf(len(p.Data))
}

// refusal reports, with Full, whether the engine has no room for a packet of n bytes of the primary's
// guest; then it asks for a checkpoint, as Primary does. With Strict packets are never refused.
func (e *Engine) refusal(n int, now time.Time) Result {
	if e.strict != nil || e.passing || e.room(n, 0) {
		return Result{}
	}
	e.begin()
	e.now = e.instant(now)
	e.res.Full = true
	e.overLimit()
	return e.end()
}

// adopt returns the draft if f lies in it and fills it, after which the engine has no draft any more;
// otherwise it returns nil.
func (e *Engine) adopt(f *Frame) *pkt {
	p := e.drafted
	if p == nil || len(f.Data) == 0 || &f.Data[0] != &p.Data[0] || !p.tight() {
		return nil
	}
	e.drafted = nil
	return p
}

// worthLending is how long a packet is at least that leaves in memory which lend finds: a
// shorter one is copied as quickly.
const worthLending = 1024

// lend returns the lowest of the secondary's segments that wait on c, in whose memory the segment s in f may
// leave, which has the same data: it writes what is around the data into that memory. A caller
// that keeps what leaves need not copy the data then. Otherwise lend returns nil, and has
// changed nothing.
func (e *Engine) lend(c *conn, f *Frame, s *plain) *pkt {
	w := c.s.at(0)
	if len(f.Data) < worthLending || e.drafted != nil && e.drafted.tight() || w.dat != s.dat || w.VNetHdr != f.VNetHdr || len(w.Data) != len(f.Data) {
		return nil
	}
	copy(w.Data[:f.VNetHdr+s.dat], f.Data)
	copy(w.Data[f.VNetHdr+s.end:], f.Data[f.VNetHdr+s.end:])
	return c.s.remove(0)
}

// scrap frees a draft that nobody has adopted: what waits is a copy.
func (e *Engine) scrap() {
	if e.drafted != nil {
		e.pool.keep(e.drafted)
		e.drafted = nil
	}
}

// takeOver returns the i-th packet of the last call's Result, in memory that is the
// caller's until giveBack: that in which the packet has waited, or a copy if it has not. It
// is called once for each.
func (e *Engine) takeOver(i int, f Frame) *pkt {
	if e.strict == nil && e.spent[i].p != nil {
		p := e.spent[i].p
		e.spent[i].p = nil
		e.pool.bytes -= sizeOf(p.class) // p may be shorter than its memory
		return p
	}
	p := e.adopt(&f)
	if p == nil {
		p = e.draft(len(f.Data))
		copy(p.Data, f.Data)
	}
	p.VNetHdr, p.owner = f.VNetHdr, nil
	p.at = e.takenAt(i)
	return p
}

// giveBack takes back the memory of a packet that takeOver has returned.
func (e *Engine) giveBack(p *pkt) { e.pool.keep(p) }

// takenAt returns when a packet of the last call's Result came.
func (e *Engine) takenAt(i int) instant {
	if e.strict != nil {
		return e.strict.taken[i]
	}
	return e.spent[i].at
}
