//go:build unix

package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A FIFO that nobody writes keeps whoever reads it waiting, in the kernel.
func TestACaptureThatDoesNotComeIsGivenUpWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	name := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- run(ctx, []string{name, name}, io.Discard, io.Discard) }()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
	w, err := os.OpenFile(name, os.O_WRONLY, 0) // the call that was left behind ends
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
}
