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
	changed chan struct{} // closed and replaced when what follows changes
	open    bool

	// Of a secondary:
	runs  uint64 // the epoch that the guest runs: one more than the last commit
	alone bool   // there is no more to wait for
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

// closed reports whether the guest stands still.
func (g *gate) closed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.open
}

// admit calls fn, with the gate locked, when ready says so, which is asked with
// the gate locked. It returns the cause of the end of ctx if that comes first.
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

// isOpen is the ready of a primary.
func (g *gate) isOpen() bool { return g.open }

// due is the ready of a secondary, for a packet of an epoch: it can be settled
// what becomes of it. An older one is void, whatever the guest does.
func (g *gate) due(epoch uint64) bool {
	return epoch < g.runs || g.open && (epoch == g.runs || g.alone)
}
