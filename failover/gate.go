package failover

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// A Gate is asked before anything leaves that the world sees: a packet, the
// answer to a write. It is open until a time, by the monotonic clock. It is
// asked for every release and no timer is involved, so a process that was
// stopped past that time finds the gate shut by itself when it goes on.
//
// What Open has let pass leaves, even if the gate shuts before it is sent: between the
// answer of Open and the system call that sends lie some instructions. A Gate is as close
// as a process can get; a fencer closes the rest.
//
// The monotonic clock of Linux stands still while the machine is suspended, and
// that of a virtual machine may while its own host has stopped it. A host that
// may be suspended needs a fencer.
//
// It has the methods of the interfaces Gate of packages proxy and replication.
// Its methods may be called from any goroutine. A new Gate is shut.
type Gate struct {
	base  time.Time
	until atomic.Int64 // nanoseconds after base

	mu     sync.Mutex
	opened chan struct{} // the channel of Opened, if somebody waits; nil: nobody does
	barred bool          // it stays shut (Keeper.Bar)
	meant  int64         // while it is barred, what until will be then
}

// NewGate returns a Gate, which is shut.
func NewGate() *Gate { return &Gate{base: time.Now()} }

// Open reports whether what is held may leave now. It costs an atomic load and a
// reading of the clock.
func (g *Gate) Open() bool { return g.until.Load() > int64(time.Since(g.base)) }

// Opened returns a channel that is closed when the gate opens, or is closed
// already if it is open.
func (g *Gate) Opened() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.Open() {
		open := make(chan struct{})
		close(open)
		return open
	}
	if g.opened == nil {
		g.opened = make(chan struct{})
	}
	return g.opened
}

// Until sets the time from which on the gate is shut; one that has passed shuts
// it now. A gate that is barred (Keeper.Bar) stays shut, and takes the time when
// that ends.
func (g *Gate) Until(t time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	until := int64(t.Sub(g.base))
	if Endless(t) {
		until = math.MaxInt64
	}
	g.set(max(0, until))
}

// Shut shuts the gate until the next call of Until.
func (g *Gate) Shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.set(0)
}

// bar shuts the gate, and keeps it shut, until unbar.
func (g *Gate) bar() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.barred {
		g.barred, g.meant = true, g.until.Load()
		g.until.Store(0)
	}
}

// unbar makes the gate what it would be without bar.
func (g *Gate) unbar() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.barred {
		g.barred = false
		g.set(g.meant)
	}
}

// set sets until, and tells who waits. The caller holds mu.
func (g *Gate) set(until int64) {
	if g.barred {
		g.meant = until
		return
	}
	g.until.Store(until)
	if g.opened != nil && g.Open() {
		close(g.opened)
		g.opened = nil
	}
}
