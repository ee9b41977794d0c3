package replication

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A copy of the descriptor is what a process has for a moment that is being started.
func TestAClosedImageIsFreeThoughItsDescriptorWasCopied(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Dup(int(d.f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}
