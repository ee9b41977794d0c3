package qemutest

import (
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

// reaperEnv makes a test binary the reaper of the directory that it names.
const reaperEnv = "LOCKSTEP_TEST_REAPER"

// maxAbove is how long the name of the directory for temporary files may be. The names of
// sockets in the directories that Reap, the tests and their programs make there have up to
// sixty bytes more, and Linux takes no more than 107.
const maxAbove = 40

// Reap is called first in the TestMain of tests whose programs start QEMUs that are
// not tied, since they are to outlive who has started them. On Linux it makes a new
// directory the one for temporary files, and starts a process that waits for the end
// of this one, however it ends. That process then kills every process that was
// started with a path in the directory, and removes the directory. The caller calls
// stop after the tests, and keeps it until then.
func Reap() (stop func(), err error) {
	if !reaps {
		return func() {}, nil
	}
	if dir := os.Getenv(reaperEnv); dir != "" {
		signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP) // they are for the tests
		io.Copy(io.Discard, os.Stdin)
		for range 5 { // one may be about to start
			end(dir + "/")
			time.Sleep(100 * time.Millisecond)
		}
		os.RemoveAll(dir)
		os.Exit(0)
	}
	above := os.TempDir()
	if len(above) > maxAbove {
		above = "/tmp"
	}
	dir, err := os.MkdirTemp(above, "q")
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe() // the reaper waits for its end
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), reaperEnv+"="+dir)
	cmd.Stdin = r
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, err
	}
	return func() { w.Close() }, os.Setenv("TMPDIR", dir)
}
