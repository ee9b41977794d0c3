package lanes

import (
	"net"
	"syscall"
)

// unsentBytes is how many bytes a lane's socket keeps that it has not sent yet. A write
// that returns says little of the lane's rate while the kernel takes megabytes at once.
const unsentBytes = 128 << 10

// boundUnsent has a lane's socket keep no more than unsentBytes, where there is one and
// the system can do so. What is on its way and not acknowledged does not count, so that a
// long link is filled all the same.
func boundUnsent(conn any) {
	for range 8 { // a TLS within another one
		c, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = c.NetConn()
	}
	if c, ok := conn.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			// Where it cannot be set, rates are found later.
			_ = raw.Control(setUnsent)
		}
	}
}
