// Package quickack answers a peer's TCP segments at once.
//
// A stock QEMU leaves Nagle's algorithm on: a small message waits in it until
// the one before is acknowledged, and Linux delays an acknowledgement for some
// 40 ms. A checkpoint has up to two such messages each way, so the primary's
// guest stands still for up to 90 ms where 1 ms would do. The peer cannot be
// told; but acknowledging at once has the same effect from this side.
package quickack

import (
	"net"
)

// Conn returns conn with prompt acknowledgement, if it is a TCP connection on a
// system that can do that (Linux), and otherwise conn itself. The result
// has conn's methods and may be used in its place, below TLS for example. It is
// pointless for a peer that sets TCP_NODELAY, as every Go program does, and then
// costs one system call per read.
func Conn(conn net.Conn) net.Conn {
	if t, ok := conn.(*net.TCPConn); ok {
		return wrap(t)
	}
	return conn
}
