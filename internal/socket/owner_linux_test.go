package socket

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A client that connects before the socket's mode is changed would be served.
func TestASocketIsItsOwnersFromItsFirstMomentOn(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	path := filepath.Join(Dir(t), "s")
	l, err := (&net.ListenConfig{Control: ownersOnly}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

// One that takes the place of a dead process's is private too.
func TestAPrivateSocketIsItsOwnersWhateverTheUmaskIs(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	path := filepath.Join(Dir(t), "s")
	for range 2 {
		l, err := ListenPrivate("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
	}
}
