package ram

import "github.com/gocolo/lockstep/vmstate"

// Entry returns what a guest's memory is registered as: [SectionName], instance
// 0, [Version].
func Entry() vmstate.Entry {
	return vmstate.Entry{Name: SectionName, Version: Version, MinVersion: Version}
}

// Register registers the saver as the memory of a primary's registry.
func (s *Saver) Register(reg *vmstate.Registry) error { return reg.RegisterLive(Entry(), s, nil) }

// Register registers the cache as the memory of a secondary's registry. It is
// the Stage of its session too.
func (c *Cache) Register(reg *vmstate.Registry) error { return reg.RegisterLive(Entry(), nil, c) }
