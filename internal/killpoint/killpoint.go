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
// and waits there to be killed. Its hooks are called on the goroutine of the
// session; the nil Point never stops.
type Point struct {
	Place string // a place of -kill-at other than any and each
	Epoch uint64 // the number of the checkpoint
	Rand  *rand.Rand
	Stop  func(detail string) // says where it stopped, and waits

	device uint64 // size of the last device state, bytes
	total  uint64 // bytes of the last checkpoint
	limit  limit
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
			// Received is in the middle of the commit; see stage.
			atRAM:    "stage device state",
			atDevice: "commit",
		},
	}
	countFrom = map[string]map[string]string{
		onPrimary:   {atRAM: "send vmstate-send", atDevice: "send device state"},
		onSecondary: {atRAM: "stage ram", atDevice: "stage device state"},
	}
)

// Step is the Step hook of a side's session.
func (k *Point) Step(side string) func(op string, epoch uint64) {
	if k == nil {
		return nil
	}
	return func(op string, epoch uint64) {
		if epoch != k.Epoch {
			return
		}
		switch op {
		case k.Place, stopBefore[side][k.Place]:
			k.Stop("before " + op)
		case countFrom[side][k.Place]:
			k.arm(side)
		}
	}
}

// Trace is the Trace hook: it learns how large the device state is.
func (k *Point) Trace(_ string, m colo.Message, value uint64) {
	if k != nil && m == colo.VMStateSize {
		k.device = value
	}
}

// Committed is told how many bytes a checkpoint had.
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
		k.limit.set(n, true, func(int64) { k.Stop(fmt.Sprintf("%d bytes before the end of its device state", n)) })
		return
	}
	within, what := max(k.total, k.device+1)-k.device, "memory"
	if k.Place == atDevice {
		within, what = max(k.device, 1), "device state"
	}
	n := int64(k.Rand.Uint64N(within)) + 1
	k.limit.set(n, false, func(done int64) { k.Stop(fmt.Sprintf("%d bytes into its %s", done, what)) })
}

// Conn puts the limit on a connection.
func (k *Point) Conn(c *net.TCPConn, side string) net.Conn {
	if k == nil {
		return c
	}
	return &limitedConn{TCPConn: c, limit: &k.limit, reads: side == onSecondary}
}

// Stage stops in the middle of a secondary's commit: vmstate-received has been
// sent and nothing has been loaded.
func (k *Point) Stage(s colo.Stage, epoch func() uint64) colo.Stage {
	if k == nil || k.Place != AtReceived {
		return s
	}
	return &stoppingStage{Stage: s, point: k, epoch: epoch}
}

// stoppingStage stops at its point in the commit.
type stoppingStage struct {
	colo.Stage
	point *Point
	epoch func() uint64 // the last one committed
}

func (s *stoppingStage) Flush() error {
	if s.epoch()+1 == s.point.Epoch {
		s.point.Stop("in the commit")
	}
	return s.Stage.Flush()
}

// limit ends a stream after a number of bytes.
type limit struct {
	mu      sync.Mutex
	armed   bool
	fromEnd bool  // left counts from the end of the next write
	left    int64 // bytes that may still pass
	done    int64
	hit     func(done int64)
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

// passed counts bytes; if they were the last, it waits for the end, or until the
// stream is to go on without a limit.
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
	*net.TCPConn
	limit *limit
	reads bool
}

func (c *limitedConn) Read(p []byte) (int, error) {
	if !c.reads {
		return c.TCPConn.Read(p)
	}
	n, ok := c.limit.allow(int64(len(p)))
	k, err := c.TCPConn.Read(p[:n])
	c.limit.passed(int64(k), !ok && int64(k) == n)
	return k, err
}

func (c *limitedConn) Write(p []byte) (int, error) {
	if c.reads {
		return c.TCPConn.Write(p)
	}
	n, ok := c.limit.allow(int64(len(p)))
	k, err := c.TCPConn.Write(p[:n])
	c.limit.passed(int64(k), !ok)
	if !ok && err == nil { // it goes on
		var rest int
		rest, err = c.TCPConn.Write(p[n:])
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
		k, err := b.WriteTo(c.TCPConn)
		if !c.reads {
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
	k, err := part.WriteTo(c.TCPConn)
	c.limit.passed(k, true)
	if err == nil { // it goes on
		var m int64
		m, err = rest.WriteTo(c.TCPConn)
		k += m
	}
	return k, err
}
