package socket

import (
	"net"
	"sync/atomic"
	"time"
)

// A Lingering is a listener for tests of code that has to close one. No connection comes. The first
// Close takes effect at once and returns a second later, as Close of a socket does that is still in
// use; later calls return at once.
type Lingering struct {
	begun  atomic.Bool
	gone   chan struct{} // closed when the first Close begins
	closed chan struct{} // and when it returns
}

// NewLingering returns a Lingering.
func NewLingering() *Lingering {
	return &Lingering{gone: make(chan struct{}), closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *Lingering) Accept() (net.Conn, error) {
	<-l.gone
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (l *Lingering) Close() error {
	if l.begun.CompareAndSwap(false, true) {
		close(l.gone)
		time.Sleep(time.Second)
		close(l.closed)
	}
	return nil
}

// Addr implements net.Listener.
func (l *Lingering) Addr() net.Addr { return &net.UnixAddr{Net: "unix", Name: "nobody"} }

// Closed reports whether the first Close has returned.
func (l *Lingering) Closed() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}
