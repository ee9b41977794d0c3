package proxy

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
)

var (
	// ErrFull says that there is no room for a packet of the guest. Nothing was
	// taken; the NIC keeps the packet and tries again after Room.
	ErrFull = filter.ErrFull

	// ErrRunning says that a step of a checkpoint came while the guest runs, as the proxy
	// sees it. The session has to pause the guest through its proxy.
	ErrRunning = errors.New("proxy: the guest was not paused through its proxy")

	// ErrPeer says that the other end of a connection is no proxy of the other side, or
	// has another configuration.
	ErrPeer = errors.New("proxy: peer does not fit")
)

// DefaultLimit is the Limit of a configuration that sets none, in bytes.
const DefaultLimit = 64 << 20

// A VM is a guest that can be paused and resumed (colo.VM).
type VM interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// A Network is where a guest's packets go and come from, for example a tap.Device or a
// filter.Conn. ReadPacket and WritePacket are called by one goroutine each. What
// ReadPacket returns is valid until its next call, and WritePacket does not keep its
// argument. If the Network is an io.Closer, its Close must end reads and writes that wait.
type Network interface {
	ReadPacket() ([]byte, error)
	WritePacket(p []byte) error
}

// deliverPoll is the time between two tries to deliver a packet to the secondary's guest
// while its ring is full, and deliverTries is the number of tries.
const (
	deliverPoll  = time.Millisecond
	deliverTries = 100
)

// together runs functions that need one another: when the first returns, or ctx ends, it
// closes c, which ends the others. It returns the error of the first.
func together(ctx context.Context, c io.Closer, here func(context.Context) error, there ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	closed := make(chan struct{})
	context.AfterFunc(ctx, func() { defer close(closed); c.Close() })
	var group sync.WaitGroup
	for _, loop := range there {
		group.Go(func() { cancel(loop(ctx)) })
	}
	cancel(here(ctx))
	group.Wait()
	<-closed
	return context.Cause(ctx)
}

// closerOf returns n if that can be closed.
func closerOf(n Network) io.Closer {
	if c, ok := n.(io.Closer); ok {
		return c
	}
	return nopCloser{}
}

// nopCloser has a Close that does nothing.
type nopCloser struct{}

func (nopCloser) Close() error { return nil }

// A slot has room for one connection. A new connection ends the one before it, since the
// other side may know earlier that a connection is dead.
type slot struct {
	mu   sync.Mutex
	end  context.CancelFunc // nil: free
	done chan struct{}
}

// take waits until the slot is free. The context that it returns ends when the slot must
// be given up, and free gives it up. It closes conn if it fails.
func (s *slot) take(ctx context.Context, conn io.Closer) (_ context.Context, free func(), err error) {
	for {
		s.mu.Lock()
		if s.end == nil {
			ctx, cancel := context.WithCancel(ctx)
			done := make(chan struct{})
			s.end, s.done = cancel, done
			s.mu.Unlock()
			return ctx, func() {
				cancel()
				s.mu.Lock()
				s.end = nil
				s.mu.Unlock()
				close(done)
			}, nil
		}
		s.end()
		done := s.done
		s.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			conn.Close()
			return nil, nil, context.Cause(ctx)
		}
	}
}

// close ends the connection, if there is one.
func (s *slot) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end != nil {
		s.end()
	}
}

// A latch lets goroutines wait until there is a connection.
type latch struct {
	mu      sync.Mutex
	is      bool
	changed chan struct{}
}

func (l *latch) set(is bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.is = is
	if is && l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

func (l *latch) wait(ctx context.Context) error {
	l.mu.Lock()
	if l.is {
		l.mu.Unlock()
		return nil
	}
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	changed := l.changed
	l.mu.Unlock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// room returns the memory that a Buffer takes for a packet of n bytes, in bytes.
func room(n int) int { return (n + 4 + 3) &^ 3 }
