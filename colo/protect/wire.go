package protect

import (
	"net"
	"sync/atomic"

	"github.com/gocolo/lockstep/qemufile"
)

// counted counts what is written to a connection.
type counted struct {
	net.Conn
	n atomic.Uint64
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n.Add(uint64(n))
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
	return n, err
}
