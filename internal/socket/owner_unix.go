//go:build unix

package socket

import "syscall"

// ownersOnly changes the mode of a descriptor that is about to be bound, so that the socket in
// the file system is accessible to its owner alone from its first moment on. Linux gives the
// socket the mode of the descriptor. On other systems only the Chmod after the bind restricts
// it, and for a moment others can connect.
func ownersOnly(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), 0o600) })
}
