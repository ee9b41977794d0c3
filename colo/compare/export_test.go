package compare

import "time"

// TakeNothingAsPlain has the engine look at each packet as if none were plain.
func (e *Engine) TakeNothingAsPlain() { e.thorough = true }

// TookPlain reports whether the last packet was taken as a plain segment.
func (e *Engine) TookPlain() bool { return e.in.id != e.ids }

// InUse returns how many bytes of memory hold packets that wait for their twins or for a
// checkpoint, and packets that may leave.
func (c *Comparer) InUse() (wait, leave int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.eng.begin()
	return c.eng.pool.bytes, c.bytes
}

// Kept returns how many bytes of memory wait for further packets.
func (c *Comparer) Kept() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.eng.pool.kept
}

// A Draft is memory for one packet, which its engine keeps.
type Draft struct{ p *pkt }

// Draft returns memory for a packet of n bytes.
func (e *Engine) Draft(n int) Draft { return Draft{e.draft(n)} }

// Data returns the memory.
func (d Draft) Data() []byte { return d.p.Data }

// Composed is Primary for the packet in d, behind a virtio-net header of some length. It is
// called once.
func (e *Engine) Composed(d Draft, vnetHdr int, now time.Time) Result {
	return e.compose(d.p, vnetHdr, now)
}

// TakeOver returns the memory of the i-th packet that the last call has released.
func (e *Engine) TakeOver(i int, f Frame) Draft { return Draft{e.takeOver(i, f)} }

// GiveBack gives memory back that Draft or TakeOver has returned.
func (e *Engine) GiveBack(d Draft) { e.giveBack(d.p) }

// MaxSent returns how many stretches of data are kept of what has left, of a connection and
// of all.
func MaxSent() (one, all int) { return maxSent, maxAllSent }

// Sents returns how many stretches the engine counts as kept, of all connections. SetSents
// sets that number; the next mark counts anew.
func (e *Engine) Sents() int     { return e.sents }
func (e *Engine) SetSents(n int) { e.sents = n }

// SentsMemory returns for how many stretches the connections have memory.
func (e *Engine) SentsMemory() (n int) {
	for c := e.newest; c != nil; c = c.older {
		if w := c.tcp.flight; w != nil {
			n += cap(w.parts)
		}
	}
	return n
}
