package protect

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
)

// A lane is the network of one side of a Proxy, for as long as it is the present
// one. Packets come by give, and go to the uplink. One packet may wait in it.
type lane struct {
	out *uplinkWriter

	filled, free chan struct{} // of capacity one: there is a packet; there is room for one
	closed       chan struct{}
	over         atomic.Bool // closed by end, not by what was wrong with the uplink
	once         sync.Once
	in, last     []byte // the packet that waits; the one that was read last
	idle         chan struct{}
}

var errLane = errors.New("protect: this side's turn is over")

func newLane() *lane {
	l := &lane{
		filled: make(chan struct{}, 1), free: make(chan struct{}, 1), closed: make(chan struct{}), idle: make(chan struct{}),
	}
	l.free <- struct{}{}
	return l
}

// give hands a packet to the side, and returns when there was room for it. It keeps
// nothing.
func (l *lane) give(ctx context.Context, p []byte) error {
	select {
	case <-l.free:
	case <-l.closed:
		return errLane
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	l.in = append(l.in[:0], p...)
	l.filled <- struct{}{}
	return nil
}

// ReadPacket implements proxy.Network.
func (l *lane) ReadPacket() ([]byte, error) {
	for {
		select {
		case <-l.filled:
			l.in, l.last = l.last, l.in
			l.free <- struct{}{}
			return l.last, nil
		case l.idle <- struct{}{}: // there is none, and none is on its way to the guest
		case <-l.closed:
			return nil, errLane
		}
	}
}

// settled returns when the side has done with all that was given, and nobody gives it
// more meanwhile.
func (l *lane) settled(ctx context.Context) error {
	for {
		select {
		case <-l.idle:
			if len(l.filled) == 0 {
				return nil
			}
		case <-l.closed:
			return errLane
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// WritePacket implements proxy.Network.
func (l *lane) WritePacket(p []byte) error { return l.out.WritePacket(p) }

// Close implements io.Closer.
func (l *lane) Close() error { l.once.Do(func() { close(l.closed) }); return nil }

// An uplinkWriter writes the packets of a side, and of an announcement, to the
// uplink.
type uplinkWriter struct {
	mu     sync.Mutex
	uplink Uplink
}

func (w *uplinkWriter) WritePacket(p []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.uplink.WritePacket(p)
}
