package qmp

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/gocolo/lockstep/internal/socket"
)

// A client that connects before the socket's mode is changed would be served.
func TestASocketIsItsOwnersFromItsFirstMomentOn(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	path := filepath.Join(socket.Dir(t), "s")
	l, err := (&net.ListenConfig{Control: ownersOnly}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}
