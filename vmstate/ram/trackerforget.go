package ram

// A Forgetter is a DirtyLog that sees also what a Cache writes: [Cache.Flush] asks it to
// forget that, with the guest still paused. Without, each Flush would copy again what the
// ones before have copied.
//
// What cannot be forgotten is reported again, which costs a copy and harms nothing.
type Forgetter interface {
	ForgetDirty(block string)
}

// forget has the log forget what Flush has written.
func (c *Cache) forget() {
	f, ok := c.log.(Forgetter)
	if !ok {
		return
	}
	for i := range c.blocks {
		if b := &c.blocks[i]; b.page != nil {
			f.ForgetDirty(b.Name)
		}
	}
}
