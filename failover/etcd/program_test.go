package etcd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
	"github.com/gocolo/lockstep/failover/program"
)

// lockstepEtcd returns how the program is called, built for this test.
func lockstepEtcd(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lockstep-etcd")
	if out, err := exec.Command("go", "build", "-o", path, "./lockstep-etcd").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// by returns an arbiter by a program of its own.
func by(t *testing.T, path string, c *cluster, key string, args ...string) failover.Arbiter {
	t.Helper()
	s, err := program.New(program.Config{
		Command: append([]string{path, "-endpoints", strings.Join(c.clients, ","), "-key", key}, args...), Timeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { s.Run(ctx) })
	t.Cleanup(func() { cancel(); group.Wait() })
	return failover.NewStoreArbiter(s)
}

// A host that does not link etcd has the same arbiter by a program, which outlives the
// leader.
func TestArbiterOverAClusterByAProgram(t *testing.T) {
	t.Parallel()
	path := lockstepEtcd(t)
	c := newCluster(t)
	guests := 0
	failovertest.TestArbiter(t, 400*time.Millisecond, func(t *testing.T) failovertest.Two {
		guests++
		key := fmt.Sprint("/lockstep/guest ", guests)
		return failovertest.Two{A: by(t, path, c, key, "-timeout", "1m"), B: by(t, path, c, key, "-timeout", "1m")}
	})

	a := keep(t, by(t, path, c, "g", "-timeout", "500ms"), "a", patience)
	acquire(t, a, 0)
	c.stop(c.leader())
	outlives(t, a, by(t, path, c, "g", "-timeout", "500ms"), by(t, path, c, "g", "-timeout", "1m"))
}

// What ends its host does not end it before its host has said its last word.
func TestAProgramEndsWithItsInputAndNotByASignal(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(lockstepEtcd(t), "-endpoints", "127.0.0.1:1", "-key", "k", "-timeout", "100ms")
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(out)
	ask := func(id int) {
		t.Helper()
		fmt.Fprintf(in, "{\"id\":%d,\"do\":\"load\"}\n", id)
		line, err := answers.ReadString('\n')
		if err != nil || !strings.Contains(line, fmt.Sprintf(`"id":%d,"error":"etcd: get k`, id)) {
			t.Fatalf("%q, %v", line, err)
		}
	}
	ask(1) // it has begun
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	ask(2)
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestAProgramThatIsCalledWronglySaysHow(t *testing.T) {
	t.Parallel()
	path := lockstepEtcd(t)
	for args, want := range map[string]string{
		"":                                      "-endpoints is needed",
		"-endpoints a:1":                        "-key is needed",
		"-endpoints a:1 x":                      `unexpected argument "x"`,
		"-endpoints a:1 -key k -timeout 1ms":    "want at least 10ms",
		"-endpoints https://a:1 -key k -cert c": "belong together",
		"-endpoints a:1 -key k -cacert c":       "https:// in front",
		"-endpoints https://a:1,b:1 -key k":     "all of them",
		"-endpoints https://a:1 -key k -cert /nowhere/c -cert-key /nowhere/key": "/nowhere/c",
	} {
		out, err := exec.Command(path, strings.Fields(args)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, %q, want %q", args, err, out, want)
		}
	}
}
