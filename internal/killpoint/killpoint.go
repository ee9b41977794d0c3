// Package killpoint stops a side of a session at a chosen place of a chosen checkpoint: before
// a step, or at a byte of what it sends or receives. It is for tests that kill or stop
// a process exactly there; the side says where it stands, and waits for its end or
// for leave to go on.
package killpoint

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
)

// Places where a side can stop; the steps are others.
const (
	AtAny      = "any"  // a random instant, which is no place
	AtEach     = "each" // step, one after the other
	atRequest  = "request"
	atRAM      = "ram"
	atDevice   = "device"
	AtReceived = "received"
	atLoaded   = "loaded"
)

// The sides.
const (
	onPrimary   = string(event.ModePrimary)
	onSecondary = string(event.ModeSecondary)
)

// Places are all that a side may be told to stop at, but for the steps.
var Places = []string{AtAny, AtEach, atRequest, atRAM, atDevice, AtReceived, atLoaded}

// A Point stops a side at a chosen place of a chosen checkpoint, says so,
// and waits there to be killed. It does so once: a host that was stopped there and goes
// on has other sessions. Step, Trace and Conn are the hooks of a protect.SessionConfig,
// called on the goroutine of the session; those of the nil Point do nothing.
type Point struct {
	Place string // a place of -kill-at other than any and each
	Epoch uint64 // the number of the checkpoint
	Rand  *rand.Rand
	Stop  func(detail string) // says where it stopped, and waits

	spent  bool   // it has stopped the side
	device uint64 // size of the last device state, bytes
	total  uint64 // bytes of the last checkpoint
	limit  limit
}

// stop stops the side, the first time.
func (k *Point) stop(detail string) {
	if !k.spent {
		k.spent = true
		k.Stop(detail)
	}
}

// Steps are those of a checkpoint (see package colo), for each side, which can stop before each of
// them. A primary with much memory to send has one more, "send ram ahead".
var Steps = map[string][]string{
	onPrimary: {
		"send checkpoint-request", "expect checkpoint-reply", "pause", "mark", "capture", "early resume",
		"send vmstate-send", "send ram", "send device state", "expect vmstate-received", "expect vmstate-loaded", "late resume",
	},
	onSecondary: {
		"pause", "send checkpoint-reply", "expect vmstate-send", "stage ram", "stage device state", "stage disks",
		"commit", "resume", "send vmstate-loaded", "wait",
	},
}

// The step before which a side stops at a place, and those from which
// on the bytes are counted for places inside the stream.
var (
	stopBefore = map[string]map[string]string{
		onPrimary: {
			atRequest:  "pause", // the secondary has replied
			AtReceived: "expect vmstate-loaded",
			atLoaded:   "late resume",
			// If fewer bytes than expected were written:
			atRAM:    "expect vmstate-received",
			atDevice: "expect vmstate-received",
		},
		onSecondary: {
			atRequest: "send checkpoint-reply",
			atLoaded:  "wait", // for the next one
			// Received is in the middle of the commit; see limit.said.
			atRAM:    "stage device state",
			atDevice: "commit",
		},
	}
	countFrom = map[string]map[string]string{
		onPrimary:   {atRAM: "send vmstate-send", atDevice: "send device state"},
		onSecondary: {atRAM: "stage ram", atDevice: "stage device state"},
	}
)

// Step is called before each step of a session.
func (k *Point) Step(side event.Mode, op string, epoch uint64) {
	if k == nil || epoch != k.Epoch || k.spent {
		return
	}
	switch at := string(side); {
	case op == k.Place, op == stopBefore[at][k.Place]:
		k.stop("before " + op)
	case op == countFrom[at][k.Place]:
		k.arm(at)
	case at == onSecondary && k.Place == AtReceived && op == "commit":
		k.limit.said(func() { k.stop("in the commit") })
	}
}

// Trace learns how large the device state is.
func (k *Point) Trace(_ event.Mode, _ string, m colo.Message, value uint64) {
	if k != nil && m == colo.VMStateSize {
		k.device = value
	}
}

// Committed is called with the number of bytes that a checkpoint had.
func (k *Point) Committed(bytes uint64) {
	if k != nil {
		k.total = bytes
	}
}

// arm draws a byte of the stream to stop at: of memory as much as the last
// checkpoint had, of device state its own size.
func (k *Point) arm(side string) {
	if k.Place == atDevice && side == onPrimary {
		// Half of the time all of it leaves: the secondary then has a
		// checkpoint whose output the primary has not yet released.
		if k.Rand.IntN(2) == 0 {
			return
		}
		// It leaves in one write with the end of memory before it: count
		// from its end.
		n := int64(k.Rand.Uint64N(max(k.device, 1))) + 1
		k.limit.set(n, true, func(int64) { k.stop(fmt.Sprintf("%d bytes before the end of its device state", n)) })
		return
	}
	within, what := max(k.total, k.device+1)-k.device, "memory"
	if k.Place == atDevice {
		within, what = max(k.device, 1), "device state"
	}
	n := int64(k.Rand.Uint64N(within)) + 1
	k.limit.set(n, false, func(done int64) { k.stop(fmt.Sprintf("%d bytes into its %s", done, what)) })
}

// Conn puts the limit on a connection.
func (k *Point) Conn(side event.Mode, c net.Conn) net.Conn {
	if k == nil {
		return c
	}
	return &limitedConn{Conn: c, limit: &k.limit, reads: side == event.ModeSecondary}
}

// limit stops a stream after a number of bytes, where the side waits to be
// killed or to go on.
type limit struct {
	mu      sync.Mutex
	armed   bool             // a limit is set
	fromEnd bool             // left counts from the end of the next write
	left    int64            // bytes that may still pass
	done    int64            // bytes that have passed since
	hit     func(done int64) // is called when the last byte has passed
	next    func()           // is called once, after the next write of a side that the limit has read; nil: nothing is
}

// said calls hit when the side, a secondary, has written its next message: that of a commit is
// vmstate-received, before anything is loaded.
func (l *limit) said(hit func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next = hit
}

// wrote is called after each write on a connection whose reads the limit
// bounds.
func (l *limit) wrote() {
	l.mu.Lock()
	hit := l.next
	l.next = nil
	l.mu.Unlock()
	if hit != nil {
		hit()
	}
}

func (l *limit) set(n int64, fromEnd bool, hit func(int64)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed, l.left, l.fromEnd, l.hit, l.done = true, n, fromEnd, hit, 0
}

// allow returns how many of n bytes may pass; fewer than n is the end.
func (l *limit) allow(n int64) (int64, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.armed:
		return n, true
	case l.fromEnd && n >= l.left:
		return n - l.left, false
	case l.fromEnd || n < l.left:
		return n, true
	}
	return l.left, false
}

// passed counts bytes; if they were the last that may pass, it waits for the end, or until
// the stream is to go on without a limit.
func (l *limit) passed(n int64, final bool) {
	l.mu.Lock()
	if l.armed && !l.fromEnd {
		l.left -= n
	}
	l.done += n
	hit, done := l.hit, l.done
	l.mu.Unlock()
	if final {
		hit(done)
		l.mu.Lock()
		l.armed = false
		l.mu.Unlock()
	}
}

// limitedConn is a connection with a limit on what is written to it, or on
// what is read from it.
type limitedConn struct {
	net.Conn
	limit *limit
	reads bool
}

func (c *limitedConn) Read(p []byte) (int, error) {
	if !c.reads {
		return c.Conn.Read(p)
	}
	n, ok := c.limit.allow(int64(len(p)))
	k, err := c.Conn.Read(p[:n])
	c.limit.passed(int64(k), !ok && int64(k) == n)
	return k, err
}

func (c *limitedConn) Write(p []byte) (int, error) {
	if c.reads {
		n, err := c.Conn.Write(p)
		c.limit.wrote()
		return n, err
	}
	n, ok := c.limit.allow(int64(len(p)))
	k, err := c.Conn.Write(p[:n])
	c.limit.passed(int64(k), !ok)
	if !ok && err == nil { // it goes on
		var rest int
		rest, err = c.Conn.Write(p[n:])
		k += rest
	}
	return k, err
}

// WriteBuffers keeps the vectored writes of pages that a *net.TCPConn has.
func (c *limitedConn) WriteBuffers(b *net.Buffers) (int64, error) {
	var total int64
	for _, p := range *b {
		total += int64(len(p))
	}
	n, ok := total, true
	if !c.reads {
		n, ok = c.limit.allow(total)
	}
	if ok {
		k, err := b.WriteTo(c.Conn)
		if c.reads {
			c.limit.wrote()
		} else {
			c.limit.passed(k, false)
		}
		return k, err
	}
	var part, rest net.Buffers
	for _, p := range *b {
		m := min(int64(len(p)), n)
		n -= m
		part, rest = append(part, p[:m]), append(rest, p[m:])
	}
	k, err := part.WriteTo(c.Conn)
	c.limit.passed(k, true)
	if err == nil { // it goes on
		var m int64
		m, err = rest.WriteTo(c.Conn)
		k += m
	}
	return k, err
}
