package qmp

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"

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
func Listen(addr string) (net.Listener, error) {
	network, address := Split(addr)
	if network != "unix" {
		return net.Listen(network, address)
	}
	if err := socket.CheckName(network, address); err != nil {
		return nil, err
	}
	l, err := listenUnix(address)
	if errors.Is(err, syscall.EADDRINUSE) && socket.RemoveDead(address) {
		l, err = listenUnix(address)
	}
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(address, 0o600); err != nil && !strings.HasPrefix(address, "@") {
		l.Close()
		return nil, err
	}
	return l, nil
}

func listenUnix(address string) (net.Listener, error) {
	c := net.ListenConfig{Control: ownersOnly}
	return c.Listen(context.Background(), "unix", address)
}
