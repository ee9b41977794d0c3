package ram

// A Forgetter is a DirtyLog that sees also what a Cache writes: [Cache.Flush] asks it to
// forget those writes, with the guest still paused. Otherwise each Flush would copy again
// what the ones before have copied.
//
// What cannot be forgotten is reported again, which costs a copy and harms nothing where
// the cache keeps one. Where it does not (CacheConfig.StagedOnly) the primary is asked for
// those pages again, so they are sent at each checkpoint; and so they must be reported when
// SaveDirty asks, as what comes up only afterwards ends the session ([ErrNotResent]).
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
