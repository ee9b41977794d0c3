package qmp

import (
	"net"
	"strings"

	"github.com/gocolo/lockstep/internal/socket"
)

// Split takes an address as QEMU writes it, "unix:PATH" or "tcp:HOST:PORT", or
// without the scheme: with a slash, or without a colon, it is a path.
func Split(addr string) (network, address string) {
	addr, _, _ = strings.Cut(addr, ",") // options such as server=on are the server's
	switch {
	case strings.HasPrefix(addr, "unix:"):
		return "unix", addr[5:]
	case strings.HasPrefix(addr, "tcp:"):
		return "tcp", addr[4:]
	case strings.Contains(addr, "/") || !strings.Contains(addr, ":"):
		return "unix", addr
	}
	return "tcp", addr
}

// Listen listens on an address as [Split] takes it. A Unix socket that nobody
// listens on any more is replaced; only the owner may connect to the new one. It
// is removed when the listener is closed.
func Listen(addr string) (net.Listener, error) { return socket.ListenPrivate(Split(addr)) }
