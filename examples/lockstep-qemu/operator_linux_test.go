package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
)

// Another user of the host could promote the standby beside a guest that runs, wherever the umask or an access
// list of the directory lets others write.
func TestTheOperatorsSocketIsForItsOwnerAlone(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0)) // no test runs beside one that is not parallel
	for role, args := range map[string][]string{
		"standby":  {"standby", "-listen", "127.0.0.1:0"},
		"guardian": {"protect", "-stay", "-qmp", newFakeQEMU(t, -1).addr, "-to", "tcp:127.0.0.1:1"},
	} {
		dir := filepath.Join(qemutest.Dir(t), "s") // which is made
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		var said bytes.Buffer
		go func() {
			defer close(ended)
			run(ctx, append(args, "-state", dir), terminal{out: io.Discard, err: &said})
		}()
		var mode os.FileMode
		for mode == 0 {
			if st, err := os.Stat(filepath.Join(dir, role+".sock")); err == nil {
				mode = st.Mode().Perm()
				break
			}
			select {
			case <-ended:
				t.Fatalf("%s: it has ended: %s", role, &said)
			case <-time.After(time.Millisecond):
			}
		}
		st, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if mode != 0o600 || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: the socket has mode %v, its directory %v", role, mode, st.Mode())
		}
		cancel()
		<-ended
	}
}
