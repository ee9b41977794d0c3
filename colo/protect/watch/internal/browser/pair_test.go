//go:build linux

package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/internal/tied"
)

// patience bounds each wait for something that is certain to come.
const patience = time.Minute

// A pair is the two hosts of examples/protected, as processes.
type pair struct {
	t       *testing.T
	program string
	dir     string
	addr    map[string]string // where a host is reached by the other
	page    map[string]string // the address of its page
	procs   map[string]*exec.Cmd
	release map[string]func() // called when a host has ended

	mu  sync.Mutex
	log strings.Builder
}

func newPair(t *testing.T) *pair {
	p := &pair{t: t, dir: t.TempDir(), addr: map[string]string{}, page: map[string]string{}, procs: map[string]*exec.Cmd{}, release: map[string]func(){}}
	p.program = filepath.Join(p.dir, "protected")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "go", "build", "-C", "../../../../..", "-o", p.program, "./examples/protected").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	addr := socket.FreeTCP(t, 4)
	for i, h := range []string{"a", "b"} {
		p.addr[h], p.page[h] = addr[i], addr[2+i]
	}
	t.Cleanup(func() {
		for h := range p.procs {
			p.kill(h)
		}
		if t.Failed() {
			p.mu.Lock()
			defer p.mu.Unlock()
			t.Log(p.log.String())
		}
	})
	return p
}

func (p *pair) url(host string) string { return "http://" + p.page[host] + "/" }

// start starts a host. Its times are long, so that a busy machine loses nobody.
func (p *pair) start(host string, more ...string) {
	p.t.Helper()
	peer := map[string]string{"a": "b", "b": "a"}[host]
	c := exec.Command(p.program, append([]string{"-host", host, "-listen", p.addr[host], "-dial", p.addr[peer],
		"-arbiter", filepath.Join(p.dir, "arbiter"), "-insecure", "-term", "4s", "-beat", "2s", "-http", p.page[host]}, more...)...)
	c.Stderr = logOf{p, host}
	release, err := tied.Start(c)
	if err != nil {
		p.t.Fatal(err)
	}
	p.procs[host], p.release[host] = c, release
	p.until(host, "serves its page", func(string) bool { return true })
}

// is waits until a host is in a state.
func (p *pair) is(host, state string) {
	p.t.Helper()
	p.until(host, "is "+state, func(s string) bool { return s == state })
}

func (p *pair) until(host, what string, ok func(state string) bool) {
	p.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		var s struct{ State string }
		r, err := http.Get(p.url(host) + "state")
		if err == nil {
			err = json.NewDecoder(r.Body).Decode(&s)
			r.Body.Close()
		}
		if err == nil && ok(s.State) {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("host %s: not so that it %s: %q, %v", host, what, s.State, err)
		}
	}
}

func (p *pair) kill(host string) {
	c := p.procs[host]
	delete(p.procs, host)
	c.Process.Kill()
	c.Wait()
	p.release[host]()
}

type logOf struct {
	p    *pair
	host string
}

func (l logOf) Write(b []byte) (int, error) {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	fmt.Fprintf(&l.p.log, "%s: %s", l.host, b)
	return len(b), nil
}
