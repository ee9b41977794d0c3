package colotest

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"os"
	"sync"
	"time"
)

// ErrBroken is returned by reads and writes of a connection that has broken.
var ErrBroken = errors.New("colotest: connection broke")

// Op is a kind of call on a connection, which a [Point] counts.
type Op uint8

// The operations of one direction of a connection.
const (
	Never Op = iota
	Byte     // a byte sent
	Write    // a call of the sender's Write
	Read     // a call of the receiver's Read
)

// String returns the name of the operation in lower case, such as "write".
func (o Op) String() string {
	switch o {
	case Byte:
		return "byte"
	case Write:
		return "write"
	case Read:
		return "read"
	}
	return "never"
}

// Point is a moment in the life of one direction of a connection: its N-th
// operation, counted from 0. The zero Point never comes.
type Point struct {
	Op Op
	N  int64
}

// String returns the operation and its number, such as "write 3", or "never".
func (p Point) String() string {
	if p.Op == Never {
		return "never"
	}
	return fmt.Sprintf("%v %d", p.Op, p.N)
}

// Flow says which faults the bytes of one direction meet. With a zero Flow they all arrive.
type Flow struct {
	// Break is where the connection breaks, in both directions. The
	// operation that it names is the first that fails: bytes before that one
	// have been sent.
	Break Point
	// Drop says that what is in flight at the break is lost, in both
	// directions. Otherwise it can still be read.
	Drop bool
	// Stall is the point after which nothing arrives any more: a write succeeds as long
	// as there is room, and a read waits. It counts bytes or reads.
	Stall Point
	// Corrupt is exclusive-ored with the byte at each index.
	Corrupt map[int64]byte
	// Chunk is the most that one Read gets. 0: no such limit.
	Chunk int
	// Capacity is how many bytes may be in flight; a writer waits for room.
	// 0: 64 KiB.
	Capacity int
}

const defaultCapacity = 64 << 10

// Traffic counts the operations of one direction.
type Traffic struct{ Bytes, Writes, Reads int64 }

// Points returns every point of the traffic, operation by operation. Of the
// bytes it takes only those for which want says so; nil means all.
func (t Traffic) Points(want func(i int64) bool) iter.Seq[Point] {
	return func(yield func(Point) bool) {
		for _, c := range []struct {
			op Op
			n  int64
		}{{Write, t.Writes}, {Read, t.Reads}, {Byte, t.Bytes}} {
			for i := range c.n {
				if c.op == Byte && want != nil && !want(i) {
					continue
				}
				if !yield(Point{c.op, i}) {
					return
				}
			}
		}
	}
}

// Pipe returns the two ends of a connection in memory: what a writes is subject
// to ab, and what b writes to ba. Each end is a net.Conn with deadlines; like
// those of a socket, its writes do not wait for the reader while there is room.
func Pipe(ab, ba Flow) (a, b *Conn) {
	p := &pipe{}
	p.cond.L = &p.mu
	there, back := newHalf(p, ab), newHalf(p, ba)
	return &Conn{p: p, in: back, out: there}, &Conn{p: p, in: there, out: back}
}

// pipe is the part that the two ends share. One lock and one condition serve both
// directions: there are never more than four waiters.
type pipe struct {
	mu     sync.Mutex
	cond   sync.Cond
	broken bool
}

// half is one direction.
type half struct {
	Flow
	buf     []byte // in flight; buf[:at] is read
	at      int
	traffic Traffic
	reads   int64 // of the bytes in traffic, those that were read
	stalled bool  // nothing that is written arrives any more
	closedW bool  // the writer has closed its end
	closedR bool  // the reader has closed its end
	readBy  deadline
	writeBy deadline
}

// deadline is a time at which those who wait at one end of a pipe give up.
type deadline struct {
	t     time.Time
	timer *time.Timer // wakes the waiters at t; armed only while one waits
}

func newHalf(p *pipe, f Flow) *half {
	if f.Capacity <= 0 {
		f.Capacity = defaultCapacity
	}
	return &half{Flow: f}
}

// Conn is one end of a [Pipe].
type Conn struct {
	p       *pipe
	in, out *half
}

var _ net.Conn = (*Conn)(nil)

// Read implements io.Reader.
func (c *Conn) Read(b []byte) (int, error) {
	p, h := c.p, c.in
	p.mu.Lock()
	defer p.mu.Unlock()
	if h.Break == (Point{Read, h.traffic.Reads}) {
		p.snap(c)
	}
	if h.Stall == (Point{Read, h.traffic.Reads}) {
		h.stalled = true
	}
	h.traffic.Reads++
	for {
		switch {
		case h.closedR:
			return 0, io.ErrClosedPipe
		case len(h.buf) > h.at && !h.stalled:
			n := len(b)
			if h.Chunk > 0 {
				n = min(n, h.Chunk)
			}
			if h.Stall.Op == Byte {
				n = min(n, int(h.Stall.N-h.reads))
			}
			n = copy(b[:n], h.buf[h.at:])
			h.at += n
			h.reads += int64(n)
			if h.Stall.Op == Byte && h.reads >= h.Stall.N {
				h.stalled = true
			}
			p.cond.Broadcast()
			if n > 0 || len(b) == 0 {
				return n, nil
			}
			continue
		case len(b) == 0:
			return 0, nil
		case p.broken:
			return 0, ErrBroken
		case h.closedW && !h.stalled:
			return 0, io.EOF
		}
		if err := p.wait(&h.readBy); err != nil {
			return 0, err
		}
	}
}

// Write implements io.Writer.
func (c *Conn) Write(b []byte) (n int, err error) {
	p, h := c.p, c.out
	p.mu.Lock()
	defer p.mu.Unlock()
	if h.Break == (Point{Write, h.traffic.Writes}) {
		p.snap(c)
	}
	h.traffic.Writes++
	for {
		switch {
		case h.closedW:
			return n, io.ErrClosedPipe
		case p.broken:
			return n, ErrBroken
		case h.closedR:
			return n, fmt.Errorf("%w: the other end is closed", ErrBroken)
		case n == len(b):
			return n, nil
		}
		room := h.Capacity - (len(h.buf) - h.at)
		if room <= 0 {
			if err := p.wait(&h.writeBy); err != nil {
				return n, err
			}
			continue
		}
		part := b[n:min(len(b), n+room)]
		if h.Break.Op == Byte && h.traffic.Bytes+int64(len(part)) > h.Break.N {
			part = part[:h.Break.N-h.traffic.Bytes]
			h.put(part)
			n += len(part)
			p.snap(c)
			continue
		}
		h.put(part)
		n += len(part)
		p.cond.Broadcast()
	}
}

// put sends bytes for which there is room.
func (h *half) put(b []byte) {
	if h.at > 0 && len(h.buf)+len(b) > cap(h.buf) {
		h.buf = h.buf[:copy(h.buf, h.buf[h.at:])]
		h.at = 0
	}
	start := len(h.buf)
	h.buf = append(h.buf, b...)
	for at, mask := range h.Corrupt {
		if i := at - h.traffic.Bytes; i >= 0 && i < int64(len(b)) {
			h.buf[start+int(i)] ^= mask
		}
	}
	h.traffic.Bytes += int64(len(b))
}

// snap breaks the connection.
func (p *pipe) snap(c *Conn) {
	p.broken = true
	if c.in.Drop || c.out.Drop {
		c.in.buf, c.in.at = nil, 0
		c.out.buf, c.out.at = nil, 0
	}
	p.cond.Broadcast()
}

// wait waits for something to happen, at most until the deadline.
func (p *pipe) wait(d *deadline) error {
	if !d.t.IsZero() {
		left := time.Until(d.t)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		if d.timer == nil {
			d.timer = time.AfterFunc(left, p.wakeAll)
		} else {
			d.timer.Reset(left)
		}
		defer d.timer.Stop()
	}
	p.cond.Wait()
	return nil
}

func (p *pipe) wakeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cond.Broadcast()
}

// Break breaks the connection now, as a [Flow]'s Break would.
func (c *Conn) Break() {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.p.snap(c)
}

// Stall stops what this end sends from arriving, from now on.
func (c *Conn) Stall() {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.out.stalled = true
}

// Broken reports whether the connection has broken (not: was closed).
func (c *Conn) Broken() bool {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	return c.p.broken
}

// Sent returns what this end has sent, and how often the other has read it.
func (c *Conn) Sent() Traffic {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	return c.out.traffic
}

// Close implements io.Closer. What is in flight can still be read by the other
// end.
func (c *Conn) Close() error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.out.closedW, c.in.closedR = true, true
	c.p.cond.Broadcast()
	return nil
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.set(&c.in.readBy, t)
	c.set(&c.out.writeBy, t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.set(&c.in.readBy, t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.set(&c.out.writeBy, t)
	return nil
}

func (c *Conn) set(d *deadline, t time.Time) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	d.t = t
	c.p.cond.Broadcast()
}

// addr is the address of both ends of a pipe.
type addr struct{}

func (addr) Network() string { return "pipe" }
func (addr) String() string  { return "pipe" }

// LocalAddr implements net.Conn.
func (*Conn) LocalAddr() net.Addr { return addr{} }

// RemoteAddr implements net.Conn.
func (*Conn) RemoteAddr() net.Addr { return addr{} }
