//go:build unix

package main

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// The log goes to a pipe that nobody reads any more, as when a logger has died.
func TestAHostOutlivesTheReaderOfItsLog(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a process")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, self, "-host", "a", "-listen", "127.0.0.1:0", "-dial", "127.0.0.1:1", "-arbiter", t.TempDir(), "-insecure", "-start")
	c.Stderr = w
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	err = c.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	in := bufio.NewScanner(out)
	for n := range 10 {
		if !in.Scan() {
			t.Errorf("nothing comes of the guest after %d lines: %v", n, in.Err())
			break
		}
	}
	_ = c.Process.Signal(syscall.SIGTERM) // it may have ended
	for in.Scan() {
	}
	if err := c.Wait(); err != nil {
		t.Errorf("it ends with %v", err)
	}
}
