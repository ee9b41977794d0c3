// Package socket listens where a process that was killed may have left its Unix socket. The
// name of that socket stays, though nobody listens at it, and would keep the next process
// from listening.
package socket

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"
)

// Listen is net.Listen, which takes the place of a Unix socket that nobody listens at any more.
func Listen(network, address string) (net.Listener, error) {
	l, err := net.Listen(network, address)
	if network == "unix" && errors.Is(err, syscall.EADDRINUSE) && RemoveDead(address) {
		return net.Listen(network, address)
	}
	return l, err
}

// RemoveDead removes the Unix socket of that path if nobody listens at it, and reports whether the
// path is free now. A file that is no socket, such as an image that was named by mistake,
// stays.
func RemoveDead(path string) bool {
	if st, err := os.Lstat(path); err != nil || st.Mode().Type() != fs.ModeSocket {
		return false
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return false
	}
	err = os.Remove(path)
	return err == nil || errors.Is(err, fs.ErrNotExist)
}
