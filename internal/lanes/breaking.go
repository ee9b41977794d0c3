package lanes

import (
	"errors"
	"io"
	"sync"
)

// breaking ends all lanes at once.
type breaking struct {
	conns  []io.Closer
	fail   func(error)
	once   sync.Once
	bad    chan struct{}
	err    error // valid when bad is closed
	closed sync.Once
}

func (b *breaking) init(conns []io.Closer, fail func(error)) {
	b.conns, b.fail, b.bad = conns, fail, make(chan struct{})
}

// Spoil makes every call that waits for a lane return err, or the error with which the
// lanes broke before; Spoil returns that error too. The lanes cannot be used any more,
// but their connections stay open: the other side does not hear of it yet. It may be
// called from any goroutine.
func (b *breaking) Spoil(err error) error {
	b.spoil(err)
	return b.err
}

// spoil does what Spoil does, and reports whether nothing had ended the lanes before.
func (b *breaking) spoil(err error) (first bool) {
	b.once.Do(func() {
		b.err, first = err, true
		close(b.bad)
	})
	return first
}

// Break does what Spoil does, and closes the connections.
func (b *breaking) Break(err error) error {
	b.spoil(err)
	b.closed.Do(func() {
		for _, c := range b.conns {
			c.Close()
		}
	})
	return b.err
}

// broke is called by a lane that fails: it does what Break does, and calls Fail, since the
// goroutine that drives the stream may not be waiting for a lane.
func (b *breaking) broke(err error) {
	first := b.spoil(err)
	b.Break(err)
	if first && b.fail != nil {
		b.fail(err)
	}
}

// Err returns why the lanes cannot be used any more; nil if they can, or were closed
// before they could break.
func (b *breaking) Err() error {
	if err := b.ended(); !errors.Is(err, errClosed) {
		return err
	}
	return nil
}

// ended returns what Err returns, or errClosed if the lanes were closed in order.
func (b *breaking) ended() error {
	select {
	case <-b.bad:
		return b.err
	default:
		return nil
	}
}
