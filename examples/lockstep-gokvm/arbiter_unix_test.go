//go:build unix

package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/internal/require"
)

// A process that the command leaves behind, and that holds its output, is not waited for.
func TestACommandsChildIsNotWaitedFor(t *testing.T) {
	require.Outside(t, require.Processes)
	fifo := filepath.Join(t.TempDir(), "never")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Skip(err)
	}
	b := aBetween(4, protect.Asking, true, protect.Standing{}, errNobody)
	b.command = "cat " + fifo + " & exit 0"
	g, err := b.Acquire(t.Context(), claim(4))
	if err != nil || g.Generation != 5 {
		t.Errorf("%+v, %v", g, err)
	}
	if f, err := os.OpenFile(fifo, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil { // ends the child
		f.Close()
	}
}
