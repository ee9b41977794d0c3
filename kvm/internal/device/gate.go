package device

import (
	"context"
	"fmt"
	"sync"
)

// Gate keeps the goroutines of devices away from a paused guest. Its methods may be
// called from any goroutine.
type Gate struct {
	mu   sync.Mutex
	cond sync.Cond // open, busy, or a context changed
	open bool
	busy int
}

// NewGate returns a closed gate.
func NewGate() *Gate {
	g := &Gate{}
	g.cond.L = &g.mu
	return g
}

// Enter waits until the gate is open and goes in; it returns false if ctx ended
// first. A goroutine that is in must not wait for one that closes the gate.
func (g *Gate) Enter(ctx context.Context) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.open {
		stop := context.AfterFunc(ctx, g.wake)
		defer stop()
	}
	for !g.open && ctx.Err() == nil {
		g.cond.Wait()
	}
	if ctx.Err() != nil {
		return false
	}
	g.busy++
	return true
}

// TryEnter goes in if the gate is open.
func (g *Gate) TryEnter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open {
		g.busy++
	}
	return g.open
}

// Leave undoes one Enter or TryEnter.
func (g *Gate) Leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.busy--; g.busy == 0 {
		g.cond.Broadcast()
	}
}

// Open opens the gate.
func (g *Gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = true
	g.cond.Broadcast()
}

// Close closes the gate and returns when nobody is in any more. If ctx ends first,
// the gate is closed all the same.
func (g *Gate) Close(ctx context.Context) error {
	stop := context.AfterFunc(ctx, g.wake)
	defer stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = false
	for g.busy > 0 {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("a device is busy: %w", err)
		}
		g.cond.Wait()
	}
	return nil
}

func (g *Gate) wake() {
	g.mu.Lock()
	g.cond.Broadcast()
	g.mu.Unlock()
}
