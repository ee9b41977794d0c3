package protect

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A host may lack for a while what it needs for its side of a session: memory for a copy of the
// guest's, a disk that is not there, a network that is not ready. A host that waits for a primary
// then goes on waiting, and one that has the guest runs on alone; both try again whether they
// have it. Meanwhile primaries are refused, and told why, instead of being let into a session
// that ends as it begins.

// unready does what unable does, for a host that waits, and has primaries told as well.
func (j *Job) unready(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil // it was not the reason
	}
	j.turnsAway(err)
	return j.unable(ctx, Waiting, err)
}

// sayCannotFollow tells a primary why this host does not follow, and waits until that was heard: who
// has heard it closes its connections. Nobody else reads what comes.
func (p *peer) sayCannotFollow(why string) {
	if p.say(note{Say: sayCannot, Reason: why}) != nil {
		return
	}
	p.control.SetReadDeadline(time.Now().Add(hearTime))
	io.Copy(io.Discard, p.control)
}

// rehearse notes which devices there are here. After an attempt to follow that has failed it also
// returns what would make the next one fail. Disks from which the guest may still be started
// stay as they are.
func (j *Job) rehearse(ctx context.Context) (err error) {
	if err := j.describe(); err != nil || j.hindered == "" || j.restart > 0 {
		return err
	}
	if err := j.followNetworks(ctx); err != nil {
		return err
	}
	cache := j.copy
	if cache == nil {
		if cache, err = j.newCopy(); err != nil {
			return err
		}
		defer cache.Close()
	}
	if _, err := j.registerSecondary(cache); err != nil {
		return err
	}
	return j.followDisks(ctx)
}

// followNetworks makes the networks a secondary's.
func (j *Job) followNetworks(ctx context.Context) error {
	return sided(j.cfg.Network, func(n Sided) error {
		if err := n.Follow(ctx); err != nil {
			name, _ := n.Link()
			return fmt.Errorf("protect: network %q: %w", name, err)
		}
		return nil
	})
}

// followDisks makes the disks a secondary's. The guest is paused.
func (j *Job) followDisks(ctx context.Context) error {
	for _, d := range j.cfg.Disks {
		if err := d.follow(ctx); err != nil {
			return err
		}
	}
	return nil
}

// registerSecondary returns a registry with the devices here and the memory of a secondary.
func (j *Job) registerSecondary(cache *ram.Cache) (*vmstate.Registry, error) {
	reg := new(vmstate.Registry)
	if err := reg.RegisterLive(ramEntry(), nil, cache); err != nil {
		return nil, err
	}
	if err := j.register(reg); err != nil {
		return nil, err
	}
	return reg, nil
}

// newCopy returns a cache for all of the guest's memory.
func (j *Job) newCopy() (*ram.Cache, error) {
	cache, err := ram.NewCache(j.cfg.Guest.Blocks(), j.cfg.Guest, j.cfg.cache())
	if err != nil {
		return nil, fmt.Errorf("protect: memory to follow with: %w", err)
	}
	return cache, nil
}
