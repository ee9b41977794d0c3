package colo

import (
	"fmt"
	"time"
)

// The defaults of the times and the rate in the package comment's table.
const (
	// DefaultPeerTimeout bounds every wait for the peer to make progress, and
	// for the host's own VM, where the configuration says nothing.
	DefaultPeerTimeout = 10 * time.Second
	// DefaultCheckpointTimeout bounds the age of a checkpoint.
	DefaultCheckpointTimeout = 5 * time.Second
	// DefaultCheckpointDelay is QEMU's default of x-checkpoint-delay.
	DefaultCheckpointDelay = 20 * time.Second
	// DefaultMinInterval is the least time between two checkpoints that were
	// asked for.
	DefaultMinInterval = 20 * time.Millisecond
	// DefaultIdleTimeout bounds a secondary's wait for a primary of this package.
	DefaultIdleTimeout = 5 * time.Minute
	// DefaultMinRate is how slow a primary may be in the initial synchronisation, in bytes a
	// second: one that sends a byte now and then, and is never silent for long, comes to no end.
	DefaultMinRate = 1 << 10
	// DefaultMaxDowntime is QEMU's default of downtime-limit.
	DefaultMaxDowntime = 300 * time.Millisecond
)

// times refuses combinations of times that cannot work.
func (c *PrimaryConfig) times() error {
	timeout := c.CheckpointTimeout
	if timeout == 0 && c.Arbiter != nil {
		timeout = DefaultCheckpointTimeout
	}
	if timeout <= 0 {
		return nil
	}
	switch downtime := orDefault(c.MaxDowntime, DefaultMaxDowntime); {
	case downtime >= timeout:
		return fmt.Errorf("colo: MaxDowntime %v must be less than CheckpointTimeout %v: the first checkpoint could not be made in time", downtime, timeout)
	case orDefault(c.MinInterval, DefaultMinInterval) >= timeout:
		return fmt.Errorf("colo: MinInterval %v must be less than CheckpointTimeout %v: a request would wait longer than a checkpoint may take", c.MinInterval, timeout)
	}
	return nil
}

// times refuses combinations of times that cannot work.
func (c *SecondaryConfig) times() error {
	if c.IdleTimeout > 0 && c.PeerTimeout > 0 && c.IdleTimeout < c.PeerTimeout {
		return fmt.Errorf("colo: IdleTimeout %v must not be less than PeerTimeout %v: a primary that waits may be silent for longer than one that works", c.IdleTimeout, c.PeerTimeout)
	}
	return nil
}
