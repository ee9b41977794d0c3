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
// goroutine in Run; only close may be called from another.
type Link struct {
	R *qemufile.Reader
	W *qemufile.Writer

	// Trace, if set, is told of every message: dir is "<" for received and
	// ">" for sent. Value is that of vmstate-size and 0 otherwise.
	Trace func(dir string, m Message, value uint64)

	conn *timedConn
}

// NewLink makes a link of a connection, which it owns from now on. A read or a
// write that makes no progress for timeout fails with ErrTimeout; zero means
// that they may take for ever. The deadline methods of a net.Conn are used
// where conn has them; otherwise a connection that is too slow is closed.
func NewLink(conn io.ReadWriteCloser, timeout time.Duration) *Link {
	t := &timedConn{conn: conn}
	t.timeout.Store(int64(timeout))
	t.deadlines, _ = conn.(deadliner)
	var w io.Writer = t
	switch c := conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		w = &vectorConn{t, func(b *net.Buffers) (int64, error) { return b.WriteTo(conn) }}
	case qemufile.BuffersWriter:
		w = &vectorConn{t, c.WriteBuffers}
	}
	return &Link{R: qemufile.NewReader(t), W: qemufile.NewWriter(w), conn: t}
}

// Send queues a message; Flush, or the next Expect, sends it. Messages and the
// state that follows them leave in as few writes as possible: a lone four-byte
// write is what makes a stock QEMU lose 44 ms to delayed acknowledgement.
func (l *Link) Send(m Message) error {
	l.trace(">", m, 0)
	l.W.PutBE32(uint32(m))
	return l.W.Err()
}

// SendValue queues a message that carries a be64 (vmstate-size).
func (l *Link) SendValue(m Message, v uint64) error {
	l.trace(">", m, v)
	l.W.PutBE32(uint32(m))
	l.W.PutBE64(v)
	return l.W.Err()
}

// Flush sends what is queued.
func (l *Link) Flush() error { return l.W.Flush() }

// Expect flushes and reads one message, which must be want; otherwise the error
// is a *MessageError.
func (l *Link) Expect(want Message) error {
	if err := l.receive(want); err != nil {
		return err
	}
	l.trace("<", want, 0)
	return nil
}

// ExpectValue is Expect for a message that carries a be64. The value is not
// to be trusted.
func (l *Link) ExpectValue(want Message) (uint64, error) {
	if err := l.receive(want); err != nil {
		return 0, err
	}
	v := l.R.BE64()
	if err := l.R.Err(); err != nil {
		return 0, err
	}
	l.trace("<", want, v)
	return v, nil
}

func (l *Link) receive(want Message) error {
	if err := l.W.Flush(); err != nil {
		return err
	}
	at := l.R.Offset()
	got := Message(l.R.BE32())
	if err := l.R.Err(); err != nil {
		return err
	}
	if got != want {
		return &MessageError{Got: got, Want: want, Offset: at}
	}
	return nil
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

type deadliner interface {
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// timedConn gives every single read and write its own deadline, so that a long
// transfer is bounded by its progress and not by its size.
type timedConn struct {
	conn      io.ReadWriteCloser
	deadlines deadliner // nil: closing is the only way to end a wait
	timeout   atomic.Int64

	once     sync.Once
	closeErr error
}

func (t *timedConn) Read(p []byte) (n int, err error) {
	err = t.timed(true, func() (e error) { n, e = t.conn.Read(p); return })
	return n, err
}

func (t *timedConn) Write(p []byte) (n int, err error) {
	err = t.timed(false, func() (e error) { n, e = t.conn.Write(p); return })
	return n, err
}

func (t *timedConn) timed(read bool, f func() error) error {
	d := time.Duration(t.timeout.Load())
	switch {
	case t.deadlines != nil:
		var until time.Time
		if d > 0 {
			until = time.Now().Add(d)
		}
		set := t.deadlines.SetWriteDeadline
		if read {
			set = t.deadlines.SetReadDeadline
		}
		if err := set(until); err != nil {
			return err
		}
		err := f()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("%w: peer silent for %v: %w", ErrTimeout, d, err)
		}
		return err
	case d > 0:
		var late atomic.Bool
		timer := time.AfterFunc(d, func() { late.Store(true); t.Close() })
		err := f()
		timer.Stop()
		if err != nil && late.Load() {
			return fmt.Errorf("%w: peer silent for %v: %w", ErrTimeout, d, err)
		}
		return err
	}
	return f()
}

func (t *timedConn) Close() error {
	t.once.Do(func() { t.closeErr = t.conn.Close() })
	return t.closeErr
}

// vectorConn lets vectored writes through to a connection that has them.
type vectorConn struct {
	*timedConn
	write func(*net.Buffers) (int64, error)
}

// WriteBuffers implements qemufile.BuffersWriter.
func (v *vectorConn) WriteBuffers(b *net.Buffers) (n int64, err error) {
	err = v.timed(false, func() (e error) { n, e = v.write(b); return })
	return n, err
}
