package protect

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

var errReset = errors.New("connection reset by peer")

// A cable is a connection between two hosts as a network gives it: what is sent
// arrives later, in order. Where the way is cut it arrives when the way is mended,
// as TCP repeats what was lost, or never, if the connection breaks before: then the
// last message may have arrived by half.
type cable struct {
	mu      sync.Mutex
	broken  bool
	channel string // what it is for; "": nobody has said so
	mute    int    // bits of the ends that are not heard
	ends    [2]*cableEnd
}

// A cableEnd is one end of a cable, and what is under way to it.
type cableEnd struct {
	w     *cable
	other *cableEnd
	host  *host                // whose end it is; nil: nobody's
	delay func() time.Duration // of the next message that this end sends; nil: none

	in     []arrival
	spare  [][]byte // of messages that have been read
	bytes  int      // of in
	held   bool     // what is under way does not arrive
	closed bool
	read   cableDeadline
	write  cableDeadline

	waiters []*cableWaiter // who reads or writes at this end
	idle    []*cableWaiter // that nobody uses
}

// A cableWaiter is a goroutine that waits at an end of a cable.
type cableWaiter struct {
	bell  chan struct{} // has an element when something has happened
	alarm *time.Timer   // wakes it at a time
	rings time.Time     // when; zero: never
}

// An arrival is a message that is under way.
type arrival struct {
	at    time.Time
	b     []byte // what has not been read of it
	whole []byte // all of it
}

// message returns a copy of a message that is to arrive at this end.
func (e *cableEnd) message(p []byte) []byte {
	if n := len(e.spare); n > 0 {
		b := e.spare[n-1]
		e.spare = e.spare[:n-1]
		return append(b[:0], p...)
	}
	return append([]byte(nil), p...)
}

type cableDeadline struct{ t time.Time }

func (d cableDeadline) over() bool { return !d.t.IsZero() && !time.Now().Before(d.t) }

// cableRoom is how much may be under way before a writer waits.
const cableRoom = 256 << 10

// newCable returns the two ends of a connection.
func newCable(from, to *host, there, back func() time.Duration) (*cableEnd, *cableEnd) {
	w := new(cable)
	a, b := &cableEnd{w: w, host: from, delay: there}, &cableEnd{w: w, host: to, delay: back}
	a.other, b.other = b, a
	w.ends = [2]*cableEnd{a, b}
	return a, b
}

// Read implements net.Conn.
func (e *cableEnd) Read(p []byte) (int, error) {
	e.host.pace()
	n, err := e.get(p)
	e.host.pace() // a host that stands still has heard nothing yet
	if !e.host.lives() {
		return 0, errDead
	}
	return n, err
}

func (e *cableEnd) get(p []byte) (int, error) {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	for {
		var next time.Time
		switch {
		case e.closed:
			return 0, net.ErrClosed
		case !e.host.lives():
			return 0, errDead
		case len(p) == 0:
			return 0, nil
		case len(e.in) > 0 && !e.held:
			if next = e.in[0].at; !time.Now().Before(next) {
				n := copy(p, e.in[0].b)
				e.bytes -= n
				if e.in[0].b = e.in[0].b[n:]; len(e.in[0].b) == 0 {
					if len(e.spare) < 8 {
						e.spare = append(e.spare, e.in[0].whole)
					}
					e.in = append(e.in[:0], e.in[1:]...)
				}
				e.other.wake() // there is room
				return n, nil
			}
		case e.w.broken:
			return 0, errReset
		case e.other.closed && !e.held:
			return 0, io.EOF
		}
		if e.read.over() {
			return 0, os.ErrDeadlineExceeded
		}
		e.wait(next, e.read.t)
	}
}

// Write implements net.Conn. It waits for room alone.
func (e *cableEnd) Write(p []byte) (n int, err error) {
	if said := translated(p, e.host, e.other.host); said != nil {
		if _, err := e.put(said); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	return e.put(p)
}

func (e *cableEnd) put(p []byte) (n int, err error) {
	e.host.pace()
	if !e.host.lives() {
		return 0, errDead
	}
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	var d time.Duration
	if e.delay != nil {
		d = e.delay()
	}
	for {
		switch {
		case e.closed:
			return n, net.ErrClosed
		case !e.host.lives():
			return n, errDead
		case e.w.broken, e.other.closed && !e.held:
			return n, errReset
		case n == len(p):
			return n, nil
		}
		o := e.other
		if room := cableRoom - o.bytes; room > 0 {
			part := o.message(p[n:min(len(p), n+room)])
			if e.w.channel == "" {
				e.w.learn(part)
			}
			at := time.Now().Add(d)
			if k := len(o.in); k > 0 && o.in[k-1].at.After(at) {
				at = o.in[k-1].at
			}
			o.in = append(o.in, arrival{at, part, part})
			o.bytes += len(part)
			n += len(part)
			e.host.trace("sends", len(part))
			if len(o.in) == 1 && !o.held {
				for _, waits := range o.waiters {
					waits.ringAt(at)
				}
			}
			continue
		}
		if e.write.over() {
			return n, os.ErrDeadlineExceeded
		}
		e.wait(time.Time{}, e.write.t)
	}
}

// wait waits for something to happen, at most until one of the times. w.mu is held, but while it
// waits.
func (e *cableEnd) wait(times ...time.Time) {
	var waits *cableWaiter
	if n := len(e.idle); n > 0 {
		waits, e.idle = e.idle[n-1], e.idle[:n-1]
	} else {
		waits = &cableWaiter{bell: make(chan struct{}, 1), alarm: time.NewTimer(longest)}
		waits.alarm.Stop()
	}
	e.waiters = append(e.waiters, waits)
	for _, t := range times {
		if !t.IsZero() {
			waits.ringAt(t)
		}
	}
	e.w.mu.Unlock()
	select {
	case <-waits.bell:
	case <-waits.alarm.C:
	}
	e.w.mu.Lock()
	if !waits.rings.IsZero() {
		waits.alarm.Stop()
		waits.rings = time.Time{}
	}
	select { // it may have rung, too
	case <-waits.bell:
	default:
	}
	e.waiters = slices.DeleteFunc(e.waiters, func(o *cableWaiter) bool { return o == waits })
	e.idle = append(e.idle, waits)
}

// ringAt has wait end at a time and not before, unless something happens.
func (c *cableWaiter) ringAt(t time.Time) {
	now := time.Now()
	switch {
	case !now.Before(t):
		c.wake()
	case c.rings.IsZero() || t.Before(c.rings):
		c.rings = t
		c.alarm.Reset(t.Sub(now))
	}
}

func (c *cableWaiter) wake() {
	select {
	case c.bell <- struct{}{}:
	default:
	}
}

// wake wakes who waits at this end. w.mu is held.
func (e *cableEnd) wake() {
	for _, waits := range e.waiters {
		waits.wake()
	}
}

// wakeAll wakes who waits at either end. w.mu is held.
func (w *cable) wakeAll() {
	for _, e := range w.ends {
		e.wake()
	}
}

// Break breaks the connection. Of what is under way to each end the first message
// arrives by half, and nothing after it.
func (e *cableEnd) Break() {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	if e.w.broken {
		return
	}
	e.w.broken = true
	for _, end := range e.w.ends {
		for i, a := range end.in {
			if end.held || time.Now().Before(a.at) {
				end.in = end.in[:i+1]
				if end.in[i].b = a.b[:len(a.b)/2]; len(end.in[i].b) == 0 {
					end.in = end.in[:i]
				}
				break
			}
		}
		end.held = false
	}
	e.w.wakeAll()
}

// Stall keeps what this end sends under way, from now on.
func (e *cableEnd) Stall() { e.hold(true) }

// Flow lets what this end sends arrive again.
func (e *cableEnd) Flow() { e.hold(false) }

func (e *cableEnd) hold(on bool) {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	if !e.w.broken {
		e.other.held = on
	}
	e.w.wakeAll()
}

// over reports whether nothing more comes of the connection.
func (e *cableEnd) over() bool {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	return e.w.broken || e.closed && e.other.closed
}

// Close implements net.Conn.
func (e *cableEnd) Close() error {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	e.closed = true
	e.w.wakeAll()
	return nil
}

// SetDeadline implements net.Conn.
func (e *cableEnd) SetDeadline(t time.Time) error {
	e.SetReadDeadline(t)
	return e.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (e *cableEnd) SetReadDeadline(t time.Time) error {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	e.read.t = t
	e.wake()
	return nil
}

// SetWriteDeadline implements net.Conn.
func (e *cableEnd) SetWriteDeadline(t time.Time) error {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	e.write.t = t
	e.wake()
	return nil
}

// LocalAddr implements net.Conn.
func (e *cableEnd) LocalAddr() net.Addr { return addr("cable") }

// RemoteAddr implements net.Conn.
func (e *cableEnd) RemoteAddr() net.Addr { return addr("cable") }
