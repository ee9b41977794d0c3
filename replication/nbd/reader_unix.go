//go:build unix

package nbd

import (
	"io"
	"syscall"
)

// readNow returns a function that reads what a connection has, and returns errNothing
// where that is nothing; or nil, if conn is no socket.
func readNow(conn io.Reader) func(p []byte) (int, error) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	var p []byte
	var n int
	var failed error
	read := func(fd uintptr) bool {
		n, failed = syscall.Read(int(fd), p)
		return true // in any case, so that there is no waiting
	}
	return func(to []byte) (int, error) {
		p = to
		err := raw.Read(read)
		p = nil
		switch {
		case err != nil:
			return 0, err
		case failed == syscall.EAGAIN || failed == syscall.EINTR:
			return 0, errNothing
		case failed != nil:
			return 0, failed
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}
