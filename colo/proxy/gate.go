package proxy

import (
	"context"
	"sync"
)

// A gate lets input to the guest while the guest runs. A packet is delivered with
// the gate locked, so a pause comes before or after it.
type gate struct {
	vm VM

	mu      sync.Mutex
	changed chan struct{} // is closed, and replaced, when one of the following changes
	open    bool

	// On a secondary only:
	runs  uint64 // the epoch in which the guest is: one more than the last commit
	alone bool   // there was a failover: input does not wait for commits any more
}

func newGate(vm VM, open bool) gate {
	return gate{vm: vm, open: open, changed: make(chan struct{})}
}

func (g *gate) set(fn func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	fn()
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *gate) pause(ctx context.Context) error {
	g.mu.Lock()
	was := g.open
	g.open = false
	g.mu.Unlock()
	err := g.vm.Pause(ctx)
	if err != nil && was {
		g.set(func() { g.open = true })
	}
	return err
}

func (g *gate) resume(ctx context.Context) error {
	err := g.vm.Resume(ctx)
	if err == nil {
		g.set(func() { g.open = true })
	}
	return err
}

// closed reports whether the guest is paused.
func (g *gate) closed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.open
}

// admit waits until ready returns true and then calls fn. Both are called with the gate
// locked. It returns the cause of the end of ctx if that comes first.
func (g *gate) admit(ctx context.Context, ready func() bool, fn func()) error {
	for {
		g.mu.Lock()
		if ctx.Err() != nil {
			g.mu.Unlock()
			return context.Cause(ctx)
		}
		if ready() {
			fn()
			g.mu.Unlock()
			return nil
		}
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// isOpen is the function ready for a primary.
func (g *gate) isOpen() bool { return g.open }

// due is the function ready for a secondary and a packet of an epoch. It reports whether
// it is decided what happens to the packet: a packet of an older epoch is dropped at once,
// a later one has to wait.
func (g *gate) due(epoch uint64) bool {
	return epoch < g.runs || g.open && (epoch == g.runs || g.alone)
}
