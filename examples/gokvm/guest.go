package main

import (
	"context"
	"errors"
	"sync"

	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A guest is the machine of this host, whatever its role: a colo.VM that may end
// by itself.
type guest struct {
	machine // nil at first

	mu      sync.Mutex
	ended   error         // how it ended by itself, unless a commit has replaced it since
	alone   bool          // no commit will come
	changed chan struct{} // closed when one of these changes
}

// newGuest returns a guest without a machine yet.
func newGuest(o options) *guest {
	return &guest{changed: make(chan struct{}), alone: o.mode != modeSecondary}
}

// Run runs the guest until it ends by itself for good, or ctx ends. A
// secondary's guest that ends is no more than a guess of what the primary's will
// do: the next commit brings it back.
func (g *guest) Run(ctx context.Context) error {
	for {
		err := g.machine.Run(ctx)
		if ctx.Err() != nil || !errors.Is(err, gokvmhost.ErrPowerOff) && !errors.Is(err, gokvmhost.ErrReset) {
			return err
		}
		g.mu.Lock()
		g.ended = err
		for g.ended != nil && !g.alone {
			changed := g.changed
			g.mu.Unlock()
			select {
			case <-changed:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			g.mu.Lock()
		}
		err = g.ended
		g.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// goAlone says that no commit comes any more.
func (g *guest) goAlone() { g.set(func() { g.alone = true }) }

func (g *guest) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
	close(g.changed)
	g.changed = make(chan struct{})
}

// stage is a secondary's memory, whose commit also brings an ended guest back.
type stage struct {
	*ram.Cache
	guest *guest
}

func (s *stage) Flush() error {
	err := s.Cache.Flush()
	if err == nil {
		s.guest.set(func() { s.guest.ended = nil })
	}
	return err
}

// howEnded says in words how a guest ended by itself, "" if err is something
// else.
func howEnded(err error) string {
	var fault *gokvmhost.TripleFaultError
	switch {
	case errors.As(err, &fault):
		return "the guest restarts, which ends it here: " + fault.Error()
	case errors.Is(err, gokvmhost.ErrPowerOff):
		return "the guest switched itself off"
	case errors.Is(err, gokvmhost.ErrReset):
		return "the guest restarts, which ends it here"
	}
	return ""
}
