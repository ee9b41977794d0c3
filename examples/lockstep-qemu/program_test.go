package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/examples/internal/arbiter/arbitertest"
	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/require"
	"go.uber.org/goleak"
)

// programEnv makes the test binary the program.
const programEnv = "LOCKSTEP_TEST_QEMU"

func TestMain(m *testing.M) {
	arbitertest.Main()
	if os.Getenv(programEnv) != "" {
		main()
	}
	reap, err := func() {}, require.Parallel(4)
	flag.Parse()
	if err == nil && (require.Allowed(require.QEMU) || require.Allowed(require.Processes)) {
		reap, err = qemutest.Reap()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(status int) {
		reap()
		os.Exit(status)
	}))
}

// program is a command that runs, and what it has said.
type program struct {
	t      *testing.T
	cancel func()
	done   chan struct{}
	status int

	mu       sync.Mutex
	out, err bytes.Buffer
	more     chan struct{}
}

type lockedWriter struct {
	p *program
	b *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	select {
	case w.p.more <- struct{}{}:
	default:
	}
	return w.b.Write(p)
}

// start runs the program in this process. A test that does not say who decides is
// about what comes afterwards.
func start(t *testing.T, args ...string) *program {
	t.Helper()
	deciding := func(a string) bool { return a == "-takeover" || a == "-arbiter" || a == "-control" || a == "-fence" }
	if (args[0] == "standby" || args[0] == "relay") && !slices.ContainsFunc(args, deciding) {
		args = slices.Insert(slices.Clone(args), 1, "-takeover", "always")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute+time.Duration(*kills)*20*time.Second)
	p := &program{t: t, cancel: cancel, done: make(chan struct{}), more: make(chan struct{}, 1)}
	go func() {
		defer close(p.done)
		p.status = run(ctx, args, terminal{out: lockedWriter{p, &p.out}, err: lockedWriter{p, &p.err}})
	}()
	t.Cleanup(func() {
		cancel()
		<-p.done
		if t.Failed() {
			t.Logf("%q said:\n%s%s", args, p.out.String(), p.err.String())
		}
	})
	return p
}

func (p *program) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// errors returns what the program has printed to stderr.
func (p *program) errors() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err.String()
}

// object waits for a JSON line with a key, the n-th that has it, and returns the
// key's value.
func (p *program) object(key string, n int) json.RawMessage {
	p.t.Helper()
	limit := time.After(60 * time.Second)
	ended := false
	for {
		seen := 0
		for _, line := range strings.Split(p.output(), "\n") {
			var m map[string]json.RawMessage
			if json.Unmarshal([]byte(line), &m) == nil && m[key] != nil {
				if seen++; seen > n {
					return m[key]
				}
			}
		}
		if ended {
			p.t.Fatalf("it has ended with %d before %q", p.status, key)
		}
		select {
		case <-p.more:
		case <-p.done:
			ended = true
		case <-limit:
			p.t.Fatalf("no %q", key)
		}
	}
}

func (p *program) text(key string) (s string) {
	p.t.Helper()
	if err := json.Unmarshal(p.object(key, 0), &s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

// checkpoints waits for n of them.
func (p *program) checkpoints(n int) {
	p.t.Helper()
	limit := time.After(60 * time.Second)
	for strings.Count(p.output(), "CHECKPOINT_COMMIT") <= n {
		select {
		case <-p.more:
		case <-p.done:
			p.t.Fatalf("it has ended with %d", p.status)
		case <-limit:
			p.t.Fatalf("%d checkpoints", strings.Count(p.output(), "CHECKPOINT_COMMIT"))
		}
	}
}

// further waits for n further checkpoints.
func (p *program) further(n int) {
	p.t.Helper()
	p.checkpoints(strings.Count(p.output(), "CHECKPOINT_COMMIT") + n)
}

// ends waits for the exit status.
func (p *program) ends(status int) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(60 * time.Second):
		p.t.Fatal("it does not end")
	}
	if p.status != status {
		p.t.Errorf("exit status %d, want %d", p.status, status)
	}
}

// summary decodes the last JSON line.
func (p *program) summary() (s struct {
	Status int
	Epoch  uint64
	State  string
	Error  string
	Back   float64 `json:"brought-back-ms"`
}) {
	p.t.Helper()
	if err := json.Unmarshal(p.object("standby", 0), &s); err != nil {
		p.t.Fatal(err)
	}
	return s
}
