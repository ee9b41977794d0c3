package nbd

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// bytesMoved returns a function that asks the kernel how many bytes the other host has
// acknowledged, and sent; or nil, if conn is no socket. It knows for TCP.
func bytesMoved(conn net.Conn) func() (uint64, bool) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return func() (n uint64, ok bool) {
		raw.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				n = info.Bytes_acked + info.Bytes_received
			}
		})
		return n, n > 0
	}
}
