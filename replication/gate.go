package replication

import (
	"sync"
	"sync/atomic"
	"syscall"
)

// Gate says whether this side may let anything out, and so whether a guest's write may be
// answered. [failover.Gate] is one.
//
// [failover.Gate]: https://pkg.go.dev/github.com/gocolo/lockstep/failover#Gate
type Gate interface {
	// Open reports whether the gate is open now. Any goroutine may ask.
	Open() bool
	// Opened returns a channel that is closed at the next opening. It is asked
	// for after Open has said false; if the gate has opened meanwhile, the
	// channel is closed already.
	Opened() <-chan struct{}
}

// ErrFenced is the answer to a guest's changes after Fence: the guest must not go on here.
// EIO.
var ErrFenced error = &sentinel{"the guest is fenced off", syscall.EIO}

// gate combines a Gate and a fence.
type gate struct {
	g       Gate
	once    sync.Once
	fenced  chan struct{}
	waiting atomic.Int64 // answers that wait; up before one waits, down after
}

func (g *gate) init(of Gate) { g.g, g.fenced = of, make(chan struct{}) }

// pass returns when the gate is open, or, if the guest is fenced, ErrFenced.
// The caller holds no lock.
func (g *gate) pass() error {
	for {
		select {
		case <-g.fenced:
			return ErrFenced
		default:
		}
		if g.g == nil || g.g.Open() {
			return nil
		}
		opened := g.g.Opened()
		if g.g.Open() {
			continue // the gate opened between the two calls
		}
		g.waiting.Add(1)
		select {
		case <-opened:
		case <-g.fenced:
		}
		g.waiting.Add(-1)
	}
}

// answer returns err at once if there is one, or else what pass returns.
func (g *gate) answer(err error) error {
	if err != nil {
		return err
	}
	return g.pass()
}

func (g *gate) fence() { g.once.Do(func() { close(g.fenced) }) }

// Fence ends the guest's use of the disk for good: answers that wait for the Gate become
// ErrFenced, and so do those to all later changes and flushes. It is for a side that has
// lost its guest, so that a vCPU which waits for an answer can be stopped. Reads go on.
// Any goroutine may call it; it does not block.
func (p *Primary) Fence() { p.gate.fence() }

// Gated returns how many answers to the guest wait for the Gate. A vCPU that waits for one
// cannot be paused before the gate opens, or Fence is called. Any goroutine may call it; it
// does not block.
func (p *Primary) Gated() int { return int(p.gate.waiting.Load()) }

// Fence does what [Primary.Fence] does, for the guest of a secondary that has taken over.
func (s *Secondary) Fence() { s.gate.fence() }
