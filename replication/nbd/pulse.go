package nbd

import (
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// pulse records when something has moved over a client's connection last. By that a slow
// link is told from a lost one: while bytes move, in either direction, the client waits for
// an answer, however much is queued before it. Client.mu guards the fields that are not
// atomic.
//
// It says nothing that the kernel has taken the bytes of a write, since it has room for
// megabytes also when the link is lost. Where the kernel can be asked, it says how much
// the other host has got; elsewhere a write counts that had to wait for room and has
// ended.
type pulse struct {
	base  time.Time                  // other times are relative to it
	heard atomic.Int64               // when something was read last
	since time.Duration              // when the first of what is owed was asked for, or something was seen to move
	moved func() (n uint64, ok bool) // how many bytes the kernel has moved, either way; nil: it cannot say

	timer   *time.Timer
	armed   bool   // the timer runs
	partial bool   // an answer is being read
	seen    uint64 // moved, when it was asked last
	busy    bool   // the sender was in a system call then
	calls   uint64 // and had ended so many
}

// heardReader is what a client reads from.
type heardReader struct {
	conn io.Reader
	s    *pulse
}

func (h *heardReader) Read(p []byte) (int, error) {
	n, err := h.conn.Read(p)
	if n > 0 {
		h.s.heard.Store(int64(time.Since(h.s.base)))
	}
	return n, err
}

// rawConn returns the connection below TLS.
func rawConn(conn net.Conn) net.Conn {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		return rawConn(t.NetConn())
	}
	return conn
}

// listen begins to watch the connection of r, a client's reader.
func (s *pulse) listen(conn net.Conn, r *reader) {
	s.base = time.Now()
	s.moved = bytesMoved(rawConn(conn))
	r.src.conn = &heardReader{conn, s}
}

// watch has silence noticed from now on, if nothing was owed before. The caller holds mu.
func (c *Client) watch() {
	s := &c.pulse
	if c.active == 0 && !s.partial {
		s.since = max(s.since, time.Since(s.base))
	}
	if s.armed {
		return
	}
	s.armed = true
	if d := c.cfg.Timeout / looks; s.timer == nil {
		s.timer = time.AfterFunc(d, c.look)
	} else {
		s.timer.Reset(d)
	}
}

// looks is how often, in a Timeout, a client looks whether anything moves.
const looks = 8

// look ends the connection if it was silent for too long.
func (c *Client) look() {
	c.mu.Lock()
	s := &c.pulse
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	now := time.Since(s.base)
	quiet := now - c.lastMove(now)
	if c.active == 0 && !s.partial && !s.busy {
		s.armed = false
		c.mu.Unlock()
		return
	}
	if left := c.cfg.Timeout - quiet; left > 0 {
		s.timer.Reset(min(left, c.cfg.Timeout/looks))
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	c.fail(fmt.Errorf("%w: nothing has moved for %v", ErrTimeout, c.cfg.Timeout))
}

// lastMove returns when something moved last, as far as can be seen now. The caller holds
// mu.
func (c *Client) lastMove(now time.Duration) time.Duration {
	s := &c.pulse
	busy, calls := c.out.state()
	n, known := uint64(0), false
	if s.moved != nil {
		n, known = s.moved()
	}
	if known && n != s.seen || !known && s.busy && calls != s.calls {
		s.since = now
	}
	s.seen, s.busy, s.calls = n, busy, calls
	return max(s.since, time.Duration(s.heard.Load()))
}

// Moved implements replication.Mover.
func (c *Client) Moved() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pulse.base.Add(c.lastMove(time.Since(c.pulse.base)))
}

// why returns err, or why the connection had ended before that.
func (c *Client) why(err error) error {
	if err != nil && c.Err() != nil {
		return c.Err()
	}
	return ended(err)
}

// patientReader is what a server reads from. While it is bounded, each piece of what comes
// has its time.
type patientReader struct {
	net.Conn
	timeout time.Duration
	bounded bool
	came    int // since the deadline was set
}

// piece is how many bytes, at least, have to move within a server's Timeout.
const piece = 64 << 10

func (r *patientReader) Read(p []byte) (int, error) {
	for {
		n, err := r.Conn.Read(p)
		r.came += n
		if n > 0 || err == nil || !r.bounded || r.came < piece || !isTimeout(err) {
			return n, err
		}
		if err := r.begin(); err != nil {
			return 0, err
		}
	}
}

// begin bounds the reads that follow.
func (r *patientReader) begin() error {
	r.bounded, r.came = true, 0
	return r.SetReadDeadline(time.Now().Add(r.timeout))
}

// end lets reads wait again.
func (r *patientReader) end() error {
	r.bounded = false
	return r.SetReadDeadline(time.Time{})
}
