package protect

import (
	"errors"
	"net"
	"os"
	"sync/atomic"

	"github.com/gocolo/lockstep/qemufile"
)

// counted counts what is written to a connection, and notes what has ended that, if not this host
// or a deadline has.
type counted struct {
	net.Conn
	n     atomic.Uint64
	ended atomic.Pointer[error]
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.note(err)
	return n, err
}

func (c *counted) note(err error) {
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
		why := err // err itself would be allocated in each call
		c.ended.CompareAndSwap(nil, &why)
	}
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n.Add(uint64(n))
	c.note(err)
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
	v.note(err)
	return n, err
}
