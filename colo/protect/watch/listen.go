package watch

import (
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// maxConnections is the number of connections that Listen lets in at a time. Without a bound
// a client could use up the descriptors that the connections of the guest need.
const maxConnections = 128

const (
	// lurking is how long a connection keeps its place though no byte goes either way.
	lurking = 2 * time.Minute

	// mute is how long a connection over which no whole request has come yet keeps its place while
	// another waits for one. Where they come faster than that lets go, it is halved each time that as many
	// have been closed as there are places, so often as haste says at most. A browser across an ocean
	// still gets in then.
	mute  = time.Second
	haste = 3
)

// Listen listens for browsers at an address: HOST:PORT, or :PORT or PORT, which is
// on the loopback interface. It lets 128 connections in at a time; others wait until one
// ends. One over which no byte goes for two minutes is closed, and so is one over which a [Page]
// was asked for nothing, and nothing was sent, within a second while another waits, so that those
// who connect and say nothing, or never come to an end, keep nobody out.
func Listen(address string) (net.Listener, error) {
	if !strings.Contains(address, ":") {
		address = ":" + address
	}
	if strings.HasPrefix(address, ":") {
		address = "127.0.0.1" + address
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return newListener(l, maxConnections), nil
}

func newListener(l net.Listener, most int) *listener {
	return &listener{Listener: l, most: most, in: make(map[*visitor]struct{}), left: make(chan struct{}, 1), over: make(chan struct{})}
}

// listener lets as many connections in at a time as there are places.
type listener struct {
	net.Listener
	most int           // places
	left chan struct{} // has an element if a visitor has left since it was empty
	once sync.Once
	over chan struct{} // closed by Close

	mu     sync.Mutex
	in     map[*visitor]struct{} // those that have a place
	closed int                   // of late for another, but for those that found a place at once
}

// accept accepts a connection, which has no place yet. An error that passes, as where there is no
// descriptor left, would end an http.Server in some cases: it tries again.
func (l *listener) accept() (net.Conn, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, time.Second) {
		conn, err := l.Listener.Accept()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return conn, err
		}
		again := time.NewTimer(pause)
		select {
		case <-again.C:
		case <-l.over:
			again.Stop()
			return nil, net.ErrClosed
		}
	}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.accept()
	if err != nil {
		return nil, err
	}
	v := &visitor{Conn: conn, l: l, came: time.Now()}
	for first := true; ; first = false {
		next := l.enter(v, first)
		if next == 0 {
			return v, nil
		}
		late := time.NewTimer(next)
		select {
		case <-l.left:
		case <-late.C:
		case <-l.over:
			late.Stop()
			conn.Close()
			return nil, net.ErrClosed
		}
		late.Stop()
	}
}

// enter gives v a place, and returns 0; or it returns when to look again. first says that v
// has not looked before.
func (l *listener) enter(v *visitor, first bool) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if len(l.in) < l.most {
		if first && l.closed > 0 {
			l.closed--
		}
		l.in[v] = struct{}{}
		v.bored = time.AfterFunc(lurking, func() { v.end() })
		if len(l.in) < l.most {
			l.wake() // for another that waits
		}
		return 0
	}
	var oldest *visitor
	for one := range l.in {
		if !one.known.Load() && (oldest == nil || one.came.Before(oldest.came)) {
			oldest = one
		}
	}
	if oldest == nil {
		return mute // until one leaves
	}
	patience := mute >> min(l.closed/l.most, haste)
	if left := patience - now.Sub(oldest.came); left > 0 {
		return left
	}
	l.closed = min(l.closed+1, l.most*haste)
	delete(l.in, oldest)
	l.wake()
	oldest.Conn.Close()
	return mute
}

// wake wakes one that waits for a place.
func (l *listener) wake() {
	select {
	case l.left <- struct{}{}:
	default:
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.over) })
	return l.Listener.Close()
}

// visitor is a connection that was let in; Close gives its place back.
type visitor struct {
	net.Conn
	l     *listener
	came  time.Time
	bored *time.Timer // closes it
	known atomic.Bool // a request has come whole, or was answered
}

// Read implements net.Conn.
func (v *visitor) Read(p []byte) (int, error) {
	n, err := v.Conn.Read(p)
	v.moved(n)
	return n, err
}

// Write implements net.Conn.
func (v *visitor) Write(p []byte) (int, error) {
	n, err := v.Conn.Write(p)
	v.known.Store(true)
	v.moved(n)
	return n, err
}

// SetWriteDeadline implements net.Conn. A Page sets it as soon as it has a request.
func (v *visitor) SetWriteDeadline(t time.Time) error {
	v.known.Store(true)
	return v.Conn.SetWriteDeadline(t)
}

// moved notes that n bytes went one way. It does not wake a timer that Close has stopped.
func (v *visitor) moved(n int) {
	if n > 0 && v.bored.Stop() {
		v.bored.Reset(lurking)
	}
}

// Close implements net.Conn.
func (v *visitor) Close() error {
	v.bored.Stop()
	return v.end()
}

// end closes the connection and gives its place back.
func (v *visitor) end() error {
	v.l.mu.Lock()
	if _, in := v.l.in[v]; in {
		delete(v.l.in, v)
		v.l.wake()
	}
	v.l.mu.Unlock()
	return v.Conn.Close()
}
