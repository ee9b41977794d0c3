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
	// ErrFull says that there is no room for a packet of the guest's. Nothing was
	// taken; the NIC keeps the packet and tries again after Room.
	ErrFull = filter.ErrFull

	// ErrRunning says that a checkpoint's step came while the guest runs, as far as
	// the proxy knows: the session pauses a guest past its proxy.
	ErrRunning = errors.New("proxy: the guest was not paused through its proxy")

	// ErrPeer says that the other end of a connection is not the other side of
	// this proxy, or is configured otherwise.
	ErrPeer = errors.New("proxy: peer does not fit")
)

// DefaultLimit is the limit that a configuration without one has, in bytes.
const DefaultLimit = 64 << 20

// A VM is a guest that can be paused and resumed (colo.VM).
type VM interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// A Network is where a guest's packets go and come from: a tap.Device, say, or a
// filter.Conn. ReadPacket and WritePacket are called by one goroutine each; what
// ReadPacket returns is valid until the next call, and WritePacket keeps nothing.
// One that is an io.Closer must have reads and writes that wait end when it is
// closed.
type Network interface {
	ReadPacket() ([]byte, error)
	WritePacket(p []byte) error
}

// deliverPoll is how often a packet that found the guest's ring full is tried
// again on the secondary, and deliverTries how often in all.
const (
	deliverPoll  = time.Millisecond
	deliverTries = 100
)

// together runs loops of which none goes on without the others: the end of one, or
// of ctx, closes what they wait for. It returns why the first ended.
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

// closerOf returns the Close of a network that has one.
func closerOf(n Network) io.Closer {
	if c, ok := n.(io.Closer); ok {
		return c
	}
	return nopCloser{}
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }

// A slot is for one connection at a time. A new one ends the one before it:
// somebody who connects again may know sooner than we that a connection is dead.
type slot struct {
	mu   sync.Mutex
	end  context.CancelFunc // nil: free
	done chan struct{}
}

// take waits until the slot is free, and returns a context that ends when the
// slot is to be given back, and what gives it back. It closes conn if it fails.
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

// A latch tells who waits that there is a connection.
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

// room is the memory that a Buffer takes for a packet.
func room(p []byte) int { return (len(p) + 4 + 3) &^ 3 }
