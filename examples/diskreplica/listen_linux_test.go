package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/gocolo/lockstep/internal/socket"
)

// Who connects to any of them reads or writes the disk, or makes checkpoints of it.
func TestTheSocketsOfADiskreplicaAreItsUsersAlone(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := socket.Dir(t)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	s := start(t, "secondary", "-image", b+".img", "-size", "4M", "-listen", b)
	awaitListener(t, b+".control")
	p := start(t, "primary", "-image", a+".img", "-size", "4M", "-secondary", b, "-listen", a)
	p.expect("replication runs")
	awaitListener(t, a)
	for _, path := range []string{a, b, b + ".control"} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
	p.quit()
	s.quit()
}
