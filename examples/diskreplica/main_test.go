package main

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/replication/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// process is one side, run in this process.
type process struct {
	t      *testing.T
	in     *io.PipeWriter
	cancel func()
	done   chan error

	mu  sync.Mutex
	out bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func start(t *testing.T, args ...string) *process {
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{t: t, in: w, cancel: cancel, done: make(chan error, 1)}
	go func() { p.done <- run(ctx, args, r, p) }()
	t.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	p.cancel()
	p.in.Close()
	if p.done != nil {
		<-p.done
		p.done = nil
	}
}

// expect waits for the process to say something that it has not said yet.
func (p *process) expect(text string) {
	p.t.Helper()
	for range 2000 {
		p.mu.Lock()
		all := p.out.String()
		i := strings.Index(all, text)
		if i >= 0 {
			p.out.Reset()
			p.out.WriteString(all[i+len(text):])
		}
		p.mu.Unlock()
		if i >= 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	p.t.Fatalf("it does not say %q:\n%s", text, p.out.String())
}

func (p *process) say(line string) { io.WriteString(p.in, line+"\n") }

func guest(t *testing.T, socket, export string) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(context.Background(), "unix", socket, nbd.ClientConfig{Export: export})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func write(t *testing.T, c *nbd.Client, b byte, off int64) {
	t.Helper()
	if _, err := c.WriteAt(bytes.Repeat([]byte{b}, 4096), off); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, why string, c *nbd.Client, b byte, off int64) {
	t.Helper()
	p := make([]byte, 4096)
	if _, err := c.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, bytes.Repeat([]byte{b}, 4096)) {
		t.Fatalf("%s: %#x, want %#x", why, p[0], b)
	}
}

func TestTheWalkThroughOfTheUsage(t *testing.T) {
	for _, journal := range []bool{false, true} {
		dir := t.TempDir()
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		args := []string{"secondary", "-image", b + ".img", "-size", "4M", "-listen", b}
		if journal {
			args = append(args, "-journal", b)
		}
		s := start(t, args...)
		s.expect("waiting for a primary")
		pargs := []string{"primary", "-image", a + ".img", "-size", "4M", "-secondary", b, "-listen", a}
		p := start(t, pargs...)
		p.expect("replication runs, epoch 0")
		pg, sg := guest(t, a, "disk"), guest(t, b, "guest")
		write(t, pg, 0x22, 0)
		want(t, "no checkpoint yet", sg, 0, 0)
		p.say("checkpoint")
		p.expect("checkpoint 1")
		want(t, "the checkpoint", sg, 0x22, 0)

		// The primary is lost, and comes back.
		write(t, pg, 0x44, 0)
		write(t, pg, 0x45, 1<<20)
		p.kill()
		want(t, "the last checkpoint", sg, 0x22, 0)
		p = start(t, pargs...)
		p.expect("replication runs, epoch 2")
		want(t, "what the primary has", sg, 0x44, 0)
		want(t, "what the primary has", sg, 0x45, 1<<20)
		pg = guest(t, a, "disk")

		write(t, pg, 0x55, 0)
		write(t, sg, 0x33, 2<<20)
		if err := pg.Sync(); err != nil {
			t.Fatal(err)
		}
		s.say("status")
		s.expect("state running, epoch 2")
		s.say("failover")
		s.expect("failover: the disk is that of checkpoint 2")
		want(t, "the last checkpoint", sg, 0x44, 0)
		want(t, "its own write", sg, 0x33, 2<<20)
		p.say("checkpoint")
		p.expect("error: ")
		p.say("reconnect")
		p.expect("went on alone")
		p.kill()
		s.kill()

		s = start(t, args...)
		s.expect("waiting for a primary")
	}
}

func TestUsage(t *testing.T) {
	var out bytes.Buffer
	if err := run(context.Background(), []string{"-h"}, nil, &out); err == nil || !strings.Contains(out.String(), "A minute's trial") {
		t.Errorf("%v: %s", err, out.String())
	}
	for _, args := range [][]string{{}, {"primary"}, {"secondary", "-image", "x"}, {"tertiary"}, {"primary", "x"}, {"primary", "-size", "0"}} {
		if err := run(context.Background(), args, nil, io.Discard); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
	for s, want := range map[string]int64{"512": 512, "4K": 4096, "64M": 64 << 20, "1G": 1 << 30} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("size %s: %d, %v", s, got, err)
		}
	}
}
