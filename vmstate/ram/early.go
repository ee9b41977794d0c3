package ram

import "math"

// TakesEarly returns how many bytes of memory the cache takes of a checkpoint that has not
// begun, while its guest runs, and whether some of it may come as differences: a page of it is
// staged like any other, so that Discard drops it, and the guest's memory changes in Flush. 0
// says none: a cache that keeps no copy (CacheConfig.StagedOnly) knows a page that is not
// staged only while its guest stands still, and could not tell what a difference is one from.
// With CacheConfig.MaxStaged it is half of that, so that there is room for the checkpoint. It
// makes a Cache a colo.EarlyStage, and is called after the first Flush of a session.
func (c *Cache) TakesEarly(differences bool) uint64 {
	switch {
	case c.KeepsCopy():
		return math.MaxUint64
	case differences:
		return 0
	case c.cfg.MaxStaged > 0:
		return c.cfg.MaxStaged / 2
	}
	return math.MaxUint64
}
