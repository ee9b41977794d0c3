//go:build unix

package qmp

import "syscall"

// ownersOnly has the socket that is about to be bound be its owner's from its first moment
// on, where the system makes it as the descriptor is (Linux). Where it does not, or cannot
// be told, there is the Chmod after it, and the moment between the two.
func ownersOnly(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), 0o600) })
}
