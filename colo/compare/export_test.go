package compare

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
