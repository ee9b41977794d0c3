//go:build unix

package main

import (
	"io"
	"syscall"
)

// peek looks at a socket without waiting. It returns io.EOF if the peer has closed the connection
// and all that it sent was read.
func peek(fd uintptr) error {
	n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	if n == 0 && err == nil {
		return io.EOF
	}
	return err
}
