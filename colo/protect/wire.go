package protect

import (
	"errors"
	"net"
	"os"
	"sync/atomic"

	"github.com/gocolo/lockstep/qemufile"
)

// counted counts what is written to a connection, and keeps the errors by which the connection
// has ended, unless this host or a deadline has ended it: the first error of a read, and the
// first of a write, which may be another.
type counted struct {
	net.Conn
	n             atomic.Uint64
	read, written atomic.Pointer[error]
}

// ended reports whether the connection has ended, and whether that is what an error says.
func (c *counted) ended(cause error) (ended, is bool) {
	for _, first := range []*error{c.read.Load(), c.written.Load()} {
		if first != nil {
			ended, is = true, is || errors.Is(cause, *first)
		}
	}
	return ended, is
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	keepFirst(&c.read, err)
	return n, err
}

// keepFirst keeps the first error by which a connection has ended.
func keepFirst(first *atomic.Pointer[error], err error) {
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
		why := err // err itself would be allocated in each call
		first.CompareAndSwap(nil, &why)
	}
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n.Add(uint64(n))
	keepFirst(&c.written, err)
	return n, err
}

// link returns the connection as package colo wants it: with vectored writes where the
// one below has them, or each run of pages would be a write of its own.
func (c *counted) link() net.Conn {
	switch conn := c.Conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		return vectored{c, func(b *net.Buffers) (int64, error) { return b.WriteTo(conn) }}
	case qemufile.BuffersWriter:
		return vectored{c, conn.WriteBuffers}
	}
	return c
}

type vectored struct {
	*counted
	write func(*net.Buffers) (int64, error)
}

// WriteBuffers implements qemufile.BuffersWriter.
func (v vectored) WriteBuffers(b *net.Buffers) (int64, error) {
	n, err := v.write(b)
	v.n.Add(uint64(n))
	keepFirst(&v.written, err)
	return n, err
}
