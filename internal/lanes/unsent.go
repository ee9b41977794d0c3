package lanes

import (
	"net"
	"syscall"
)

// unsentBytes is how many bytes a lane's socket keeps that it has not sent yet. A write
// that returns says little of the lane's rate while the kernel takes megabytes at once.
const unsentBytes = 128 << 10

// boundUnsent limits the bytes that a lane's socket keeps unsent to unsentBytes, if the lane
// has a socket and the system supports that. Bytes that were sent and not acknowledged do not
// count, so that a long link is filled all the same.
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
