package colo

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/qemufile"
)

// Link is the connection of a session: COLO messages and, between them, vmstate
// streams, in both directions over one reader and one writer. It belongs to the
// goroutine in Run; only Close may be called from another.
type Link struct {
	R *qemufile.Reader
	W *qemufile.Writer

	// Trace, if set, is told of every message: dir is "<" for received and
	// ">" for sent. Value is the number that follows the message, 0 if none does:
	// bytes after vmstate-size, nanoseconds after hello.
	Trace func(dir string, m Message, value uint64)

	conn *timedConn
}

// NewLink makes a link of a connection, which it owns from now on. A read or a
// write that makes no progress for timeout fails with ErrTimeout; zero means
// that they may take for ever. A write makes progress when any byte of it is
// taken. The deadline methods of a net.Conn are used where conn has them;
// otherwise a connection that is too slow is closed.
func NewLink(conn io.ReadWriteCloser, timeout time.Duration) *Link {
	t := &timedConn{conn: conn, cut: make(chan struct{})}
	t.timeout.Store(int64(timeout))
	t.deadlines, _ = conn.(deadliner)
	var w io.Writer = t
	switch c := conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		w = &vectorConn{t, func(b *net.Buffers) (int64, error) { return b.WriteTo(conn) }}
	case qemufile.BuffersWriter:
		w = &vectorConn{t, c.WriteBuffers}
	}
	l := &Link{R: qemufile.NewReader(t), W: qemufile.NewWriter(w), conn: t}
	t.ahead = l.R.Buffered
	return l
}

// Send queues a message; Flush, or the next Expect, sends it. Messages and the
// state that follows them leave in as few writes as possible: a lone four-byte
// write is what makes a stock QEMU lose 44 ms to delayed acknowledgement.
func (l *Link) Send(m Message) error {
	l.trace(">", m, 0)
	l.W.PutBE32(uint32(m))
	return l.W.Err()
}

// SendValue queues a message that carries a be64 (vmstate-size, hello).
func (l *Link) SendValue(m Message, v uint64) error {
	l.trace(">", m, v)
	l.W.PutBE32(uint32(m))
	l.W.PutBE64(v)
	return l.W.Err()
}

// Flush sends what is queued.
func (l *Link) Flush() error { return l.W.Flush() }

// Expect flushes and reads one message, which must be want; otherwise the error
// is a *MessageError, or a *GoodbyeError where the peer said goodbye instead.
func (l *Link) Expect(want Message) error {
	got, at, err := l.next()
	if err != nil {
		return err
	}
	return l.is(got, want, at)
}

// ExpectValue is Expect for a message that carries a be64. The peer chooses the value:
// the caller checks it.
func (l *Link) ExpectValue(want Message) (uint64, error) {
	got, at, err := l.next()
	if err != nil {
		return 0, err
	}
	if got != want {
		return 0, l.is(got, want, at)
	}
	return l.value(want)
}

// value reads the be64 that a message carries.
func (l *Link) value(m Message) (uint64, error) {
	v := l.R.BE64()
	if err := l.R.Err(); err != nil {
		return 0, err
	}
	l.trace("<", m, v)
	return v, nil
}

// next flushes and reads the word of a message, which begins at offset at.
func (l *Link) next() (got Message, at int64, err error) {
	if err := l.W.Flush(); err != nil {
		return 0, 0, err
	}
	at = l.R.Offset()
	got = Message(l.R.BE32())
	return got, at, l.R.Err()
}

// is returns nil if got is want. Otherwise it returns a *MessageError, or the
// *GoodbyeError of a peer that has said Goodbye.
func (l *Link) is(got, want Message, at int64) error {
	switch got {
	case want:
		l.trace("<", got, 0)
		return nil
	case Goodbye:
		return l.goodbye()
	}
	return &MessageError{Got: got, Want: want, Offset: at}
}

// Close closes the connection; a read or write in progress ends. Safe from any
// goroutine, any number of times.
func (l *Link) Close() error { return l.conn.Close() }

func (l *Link) trace(dir string, m Message, v uint64) {
	if l.Trace != nil {
		l.Trace(dir, m, v)
	}
}

// patience sets how long the following reads and writes may stand still.
func (l *Link) patience(d time.Duration) { l.conn.timeout.Store(int64(d)) }

// until sets when the following reads and writes fail with ErrStalled, however
// much progress they make. The zero time: never.
func (l *Link) until(t time.Time) { l.conn.until = t }

// interrupt ends the read or write in progress, and those to come, with
// errInterrupted, until allow is called. The connection stays open, unless it
// has no deadlines to set: then it is closed. Safe from any goroutine.
func (l *Link) interrupt() { l.conn.interrupt() }

// allow lets reads and writes happen again after an interrupt.
func (l *Link) allow() { l.conn.allow() }

// errInterrupted is returned by a read or a write that interrupt has ended.
var errInterrupted = errors.New("interrupted")

// deadliner is a connection that can end a wait at a time, as a net.Conn can.
type deadliner interface {
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// timedConn gives every single read and write its own deadline, so that a long
// transfer is bounded by its progress and not by its size.
type timedConn struct {
	conn      io.ReadWriteCloser
	deadlines deadliner    // nil: closing is the only way to end a wait
	timeout   atomic.Int64 // a time.Duration: how long an operation may stand still; 0: for ever
	until     time.Time    // belongs to the goroutine in Run
	ahead     func() int   // bytes that the reader of the Link has buffered
	half      bool         // a write ended in the middle
	inlet     *inlet       // nil: reads go to the connection

	// alive, if set, is asked when an operation has stood still for timeout: it
	// goes on waiting while that is true. Set before the first operation.
	alive  func() bool
	strict atomic.Bool // alive is no longer asked: the session is ending

	beside  *beside       // channels, which end with this connection; nil: none
	crossed atomic.Uint64 // bytes that had crossed beside when the wait began or lives was called last
	pace    pace          // of the peer, for reads

	mu      sync.Mutex
	stopped bool          // interrupted; guarded by mu
	cut     chan struct{} // closed by the first interrupt

	once     sync.Once
	closed   atomic.Bool
	closeErr error
}

// Read implements io.Reader.
func (t *timedConn) Read(p []byte) (n int, err error) {
	if t.inlet != nil {
		return t.inlet.read(p, t)
	}
	for {
		err = t.timed(true, func() (e error) { n, e = t.conn.Read(p); return })
		t.pace.came(n)
		if n == 0 && t.again(err) && t.lives() {
			continue
		}
		return n, err
	}
}

// writePart is how much is written at a time to a connection without deadlines.
const writePart = 64 << 10

// Write implements io.Writer.
func (t *timedConn) Write(p []byte) (n int, err error) {
	if err := t.turn(); err != nil {
		return 0, err
	}
	for {
		part := p[n:]
		if t.deadlines == nil {
			part = part[:min(len(part), writePart)]
		}
		var m int
		err = t.timed(false, func() (e error) { m, e = t.conn.Write(part); return })
		n += m
		switch {
		case err == nil && n < len(p):
			continue
		case n < len(p) && t.again(err) && (m > 0 || t.lives()):
			continue
		}
		t.half = n > 0 && n < len(p)
		return n, err
	}
}

// turn returns an error if the peer has said something that has not been read: while
// this side sends, it is not the turn of the other.
func (t *timedConn) turn() error {
	if t.inlet != nil && (t.ahead() > 0 || t.inlet.ready()) {
		return ErrOutOfTurn
	}
	return nil
}

// lives reports whether the peer is known to live: its heartbeat says so, or bytes
// have crossed the channels since the wait began, or since lives was called last. An
// operation that has stood still for the whole timeout then goes on waiting, unless the bytes
// were too few.
func (t *timedConn) lives() bool {
	if t.strict.Load() {
		return false
	}
	if n := t.beside.bytes(); t.crossed.Swap(n) != n && t.pace.slow() == nil {
		return true
	}
	if t.alive == nil || !t.alive() {
		return false
	}
	t.pace.excuse()
	return true
}

// again reports whether only the timeout has ended an operation, so that the
// caller may go on with it while the peer lives.
func (t *timedConn) again(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, ErrStalled) && !errors.Is(err, errInterrupted)
}

// deadline begins a wait: it returns the time at which an operation that begins now has
// to end, zero: never. From now on lives counts only bytes that cross the channels later.
func (t *timedConn) deadline() (at time.Time, d time.Duration) {
	t.crossed.Store(t.beside.bytes())
	if d = time.Duration(t.timeout.Load()); d > 0 {
		at = time.Now().Add(d)
	}
	if !t.until.IsZero() && (at.IsZero() || t.until.Before(at)) {
		at = t.until
	}
	return at, d
}

// late returns the error of an operation that was not done in time.
func (t *timedConn) late(d time.Duration, err error) error {
	if !t.until.IsZero() && !time.Now().Before(t.until) {
		return fmt.Errorf("%w: %w", ErrStalled, err)
	}
	if slow := t.pace.slow(); slow != nil {
		return fmt.Errorf("%w: %w: %w", ErrTimeout, slow, err)
	}
	return fmt.Errorf("%w: peer silent for %v: %w", ErrTimeout, d, err)
}

func (t *timedConn) timed(read bool, f func() error) error {
	at, d := t.deadline()
	if read {
		at = t.pace.wait(at)
	}
	if t.deadlines != nil {
		set := t.deadlines.SetWriteDeadline
		if read {
			set = t.deadlines.SetReadDeadline
		}
		if err := t.arm(set, at); err != nil {
			return err
		}
		err := f()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if t.interrupted() {
				return errInterrupted
			}
			return t.late(d, err)
		}
		return err
	}
	if t.interrupted() {
		return errInterrupted
	}
	if at.IsZero() {
		return f()
	}
	stop, late := t.closeAt(at, d)
	err := f()
	stop()
	if err != nil && late() {
		return t.late(d, fmt.Errorf("%w: %w", os.ErrDeadlineExceeded, err))
	}
	return err
}

// closeAt closes the connection at the time at. If the peer lives then, and the
// time set by until has not come, it looks again after each further d instead.
// late reports whether it has closed the connection.
func (t *timedConn) closeAt(at time.Time, d time.Duration) (stop func(), late func() bool) {
	var mu sync.Mutex
	var timer *time.Timer
	var stopped, closed bool
	until := t.until
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(time.Until(at), func() {
		mu.Lock()
		defer mu.Unlock()
		switch now := time.Now(); {
		case stopped:
		case d > 0 && (until.IsZero() || now.Before(until)) && t.lives():
			next := d
			if !until.IsZero() {
				next = min(next, until.Sub(now))
			}
			timer.Reset(next)
		default:
			closed = true
			t.Close()
		}
	})
	stop = func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
	}
	return stop, func() bool { mu.Lock(); defer mu.Unlock(); return closed }
}

// arm sets a deadline, unless there was an interrupt.
func (t *timedConn) arm(set func(time.Time) error, at time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return errInterrupted
	}
	return set(at)
}

func (t *timedConn) interrupted() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stopped
}

func (t *timedConn) interrupt() {
	t.beside.interrupt()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return
	}
	t.stopped = true
	close(t.cut)
	if t.deadlines == nil {
		t.Close()
		return
	}
	past := time.Unix(1, 0)
	t.deadlines.SetWriteDeadline(past)
	if t.inlet == nil { // a wait for the inlet ends with cut
		t.deadlines.SetReadDeadline(past)
	}
}

func (t *timedConn) allow() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		t.stopped, t.cut = false, make(chan struct{})
	}
}

// stop returns the channel that the next interrupt closes.
func (t *timedConn) stop() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.cut
}

// Close implements io.Closer.
func (t *timedConn) Close() error {
	t.once.Do(func() {
		t.closed.Store(true)
		t.closeErr = t.conn.Close()
	})
	t.beside.cut()
	return t.closeErr
}

// vectorConn lets vectored writes through to a connection that has them.
type vectorConn struct {
	*timedConn
	write func(*net.Buffers) (int64, error)
}

// WriteBuffers implements qemufile.BuffersWriter.
func (v *vectorConn) WriteBuffers(b *net.Buffers) (n int64, err error) {
	if err := v.turn(); err != nil {
		return 0, err
	}
	for {
		var m int64
		err = v.timed(false, func() (e error) { m, e = v.write(b); return })
		n += m
		if len(*b) > 0 && v.again(err) && (m > 0 || v.lives()) {
			continue
		}
		v.half = n > 0 && len(*b) > 0
		return n, err
	}
}
