package protect

import (
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/vmstate/ram"
)

// cache returns the configuration by which a secondary stages its memory.
func (c *Config) cache() ram.CacheConfig {
	return ram.CacheConfig{StagedOnly: c.NoMemoryCopy, MaxStaged: c.MaxStaged, KeepAfter: c.Session.KeepAfter, Resumable: true, Overlap: true}
}

// checkMemory refuses a configuration of a secondary's memory that does not
// work on this host.
func (c *Config) checkMemory() error {
	if !c.NoMemoryCopy {
		if c.MaxStaged > 0 {
			return errors.New("protect: MaxStaged means nothing without NoMemoryCopy")
		}
		return nil
	}
	trial := []ram.Block{{Name: "trial", Host: make([]byte, ram.PageSize)}}
	cache, err := ram.NewCache(trial, nil, c.cache())
	if err == nil {
		err = cache.Close()
	}
	if err != nil {
		return fmt.Errorf("protect: NoMemoryCopy: %w", err)
	}
	return nil
}

// keeps reports, as an error, that this host would need a copy of the memory of a primary that
// offers o, and is to keep none.
func (c *Config) keeps(o *offer) error {
	if c.NoMemoryCopy && !o.Resends {
		return refuse("%s keeps no copy of the memory, and the other side does not send again what the guest here writes", c.Host)
	}
	return nil
}
