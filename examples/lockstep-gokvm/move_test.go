package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/internal/signals"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/replication"
)

// Guests that move here are those of the pairs, in storage that both hosts reach.

// newRoamWorld returns a world whose hosts share a disk.
func newRoamWorld(t *testing.T) *simWorld {
	t.Helper()
	w := newSimWorld(t)
	w.shared = true
	return w
}

// roam runs the program for a guest that nobody protects.
func (w *simWorld) roam(host, mode string, args ...string) *process {
	w.t.Helper()
	all := []string{
		"-name", w.name, "-mem", "32M", "-tap", "tap0", "-disk", "disk", "-json", fmt.Sprintf("-insecure=%v", w.insecure),
		"-peer", other(host) + ":1", "-max-downtime", "10s", "-progress", "1ms",
	}
	if mode == modeReceive {
		all = append(all, "-listen", "127.0.0.1:0")
	} else {
		all = append(all, "-kernel", "none")
	}
	return w.launch(host, mode, append(all, args...), runRoaming)
}

// A taken is the disk of both hosts, as one has it.
type taken struct {
	platter
	once sync.Once
}

// use opens the disk of both hosts, which one can do at a time.
func (w *simWorld) use(p *process) (image, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.user != nil {
		return nil, replication.ErrLocked
	}
	w.user = p
	return &taken{platter: platter{p, w.disks["a"].disk}}, nil
}

func (t *taken) Close() error {
	t.once.Do(func() {
		t.p.w.mu.Lock()
		defer t.p.w.mu.Unlock()
		t.p.w.user = nil
	})
	return nil
}

// dialled has broken look at each connection.
func (w *simWorld) dialled(dial func(context.Context, string) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		c, err := dial(ctx, address)
		if err != nil || w.broken == nil {
			return c, err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.dials++
		return w.broken(w.dials, c), nil
	}
}

// moves orders a process to move its guest.
func (w *simWorld) moves(p *process) {
	w.t.Helper()
	w.hears(p, phase("started"))
	w.until(p.host+" to take signals", func() bool { return p.signals[signals.User2] != nil })
	w.signal(p)
}

// signal sends SIGUSR2 to a process that takes it.
func (w *simWorld) signal(p *process) {
	w.mu.Lock()
	hand := p.signals[signals.User2]
	w.mu.Unlock()
	hand <- signals.User2
}

// has fails unless the host has the guest, and the disk.
func (w *simWorld) has(p *process) {
	w.t.Helper()
	w.moreLeaves(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.user != p {
		w.t.Errorf("the disk is not that of host %s", p.host)
	}
}

func TestAGuestMovesWhileItRuns(t *testing.T) {
	w := newRoamWorld(t)
	b := w.roam("b", modeReceive)
	a := w.roam("a", modeMigrate)
	w.has(a)
	w.moves(a)
	if err := w.ended(a); err != nil {
		t.Errorf("host a: %v", err)
	}
	w.hears(a, phase("moved"))
	w.hears(b, phase("arrived"))
	w.has(b)
	w.until("the network to be told", func() bool { return w.announced["b"] > 0 })

	// And back, by a key of the console.
	a = w.roam("a", modeReceive)
	_, order, _ := b.console.mode()
	order('s')
	if err := w.ended(b); err != nil {
		t.Errorf("host b: %v", err)
	}
	w.hears(a, phase("arrived"))
	w.has(a)
	w.ends(a, gokvmhost.ErrPowerOff)
	if err := w.ended(a); err != nil {
		t.Errorf("host a: %v", err)
	}
	w.hears(a, "the guest switched itself off")
	for _, p := range []*process{a, b} {
		if said := w.hears(p, `"summary"`); !strings.Contains(said, `"move":{`) {
			t.Errorf("the summary of host %s has no figures of the move: %s", p.host, said)
		}
	}
	w.judge()
}

func TestAGuestThatDoesNotFitStaysAndRuns(t *testing.T) {
	for name, c := range map[string]struct {
		args   []string
		shared bool
		want   string
	}{
		"memory":       {[]string{"-mem", "64M"}, true, "the guest has -mem 32M, here it is 64M"},
		"vCPUs":        {[]string{"-vcpus", "2"}, true, "the guest has -vcpus 1, here it is 2"},
		"no card":      {[]string{"-tap", ""}, true, "there is no -tap here"},
		"offload":      {[]string{"-offload=false"}, true, "-offload is not the same"},
		"no disk":      {[]string{"-disk", ""}, true, "there is no -disk here"},
		"other disk":   {nil, false, "nobody uses -disk here"},
		"another name": {[]string{"-name", "another"}, true, `the guest is \"another\"`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newRoamWorld(t)
			w.shared = c.shared
			b := w.roam("b", modeReceive, c.args...)
			a := w.roam("a", modeMigrate)
			w.moves(a)
			if said := w.hears(a, phase("refused")); !strings.Contains(said, c.want) {
				t.Errorf("host a says %s", said)
			}
			w.moreLeaves(a)
			w.silent(b)
			w.judge()
		})
	}
}

func TestWithAPersonsWordLocksDoNotMatter(t *testing.T) {
	w := newRoamWorld(t)
	w.shared = false
	w.disks["b"] = w.disks["a"]
	b := w.roam("b", modeReceive, "-shared-disk")
	a := w.roam("a", modeMigrate)
	w.moves(a)
	w.ended(a)
	w.hears(b, phase("arrived"))
	w.moreLeaves(b)
	w.judge()
}

func TestWhereNobodyListensTheGuestRunsOn(t *testing.T) {
	w := newRoamWorld(t)
	a := w.roam("a", modeMigrate)
	w.moves(a)
	w.hears(a, phase("refused"))
	w.has(a)
	a.stop(nil)
	if err := w.ended(a); err != nil {
		t.Errorf("host a: %v", err)
	}
	w.judge()
}

// A deaf connection brings nothing of the destination's last word, and breaks instead.
type deaf struct {
	net.Conn
	left int // bytes that may come; -1: the length of the answer has not
	head []byte
}

func (d *deaf) Read(p []byte) (int, error) {
	n, err := d.Conn.Read(p)
	if err != nil {
		return n, err
	}
	for i := range n {
		if d.left < 0 {
			if d.head = append(d.head, p[i]); len(d.head) == 4 {
				d.left = int(binary.BigEndian.Uint32(d.head)) + 8 // PONG
			}
		} else if d.left--; d.left < 0 {
			return 0, errors.Join(errors.New("broken"), d.Conn.Close())
		}
	}
	return n, nil
}

// A mute connection breaks with the devices of the guest, which stands still.
type mute struct {
	net.Conn
	broken func()
}

func (m *mute) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("gokvm/loaded")) { // the last device
		m.broken()
		return 0, errors.Join(errors.New("broken"), m.Conn.Close())
	}
	return m.Conn.Write(p)
}

// The source asks the destination, which knows.
func TestAConnectionThatBreaksLeavesTheGuestOnOneHost(t *testing.T) {
	t.Run("it has come", func(t *testing.T) {
		w := newRoamWorld(t)
		w.broken = func(n int, c net.Conn) net.Conn {
			if n > 1 {
				return c
			}
			return &deaf{Conn: c, left: -1}
		}
		b := w.roam("b", modeReceive)
		a := w.roam("a", modeMigrate)
		w.has(a)
		w.moves(a)
		if err := w.ended(a); err != nil {
			t.Errorf("host a: %v", err)
		}
		w.hears(a, phase("undecided"))
		w.has(b)
		w.judge()
	})
	t.Run("it has not", func(t *testing.T) {
		w := newRoamWorld(t)
		w.broken = func(n int, c net.Conn) net.Conn {
			if n > 1 {
				return c
			}
			return &mute{c, func() {}}
		}
		b := w.roam("b", modeReceive)
		a := w.roam("a", modeMigrate)
		w.has(a)
		w.moves(a)
		w.hears(a, phase("undecided"))
		w.hears(a, phase("trouble"))
		w.has(a)
		w.silent(b)
		w.signal(a) // and again
		if err := w.ended(a); err != nil {
			t.Errorf("host a: %v", err)
		}
		w.has(b)
		w.judge()
	})
}

// The other host was started anew, and knows nothing: a person says what is right.
func TestAPersonMayLetAGuestGoOn(t *testing.T) {
	w := newRoamWorld(t)
	w.broken = func(n int, c net.Conn) net.Conn {
		if n > 1 {
			return c
		}
		return &mute{c, w.ways["b"].end} // nobody is found there any more
	}
	b := w.roam("b", modeReceive)
	a := w.roam("a", modeMigrate)
	w.has(a)
	_, order, _ := a.console.mode()
	order('g') // nothing is to be decided yet: it is no word about what comes
	w.moves(a)
	w.hears(a, phase("undecided"))
	b.stop(nil)
	w.ended(b)
	w.roam("b", modeReceive)
	w.hears(a, phase("lost"))
	order('g')
	w.hears(a, "as ordered")
	w.has(a)
	w.judge()
}

// A guest that has come, and whose disk somebody else has, waits for it: its host says so,
// and can be ended.
func TestAGuestThatWaitsForItsDiskCanBeEnded(t *testing.T) {
	w := newRoamWorld(t)
	third := &process{w: w, host: "c"}
	w.broken = func(_ int, c net.Conn) net.Conn { return &thief{c, w, third} }
	b := w.roam("b", modeReceive)
	a := w.roam("a", modeMigrate)
	w.has(a)
	w.moves(a)
	w.ended(a)
	w.hears(b, "the guest waits for its disk: ")
	b.stop(nil)
	if err := w.ended(b); err == nil || !strings.Contains(err.Error(), "for want of its disk") {
		t.Errorf("it ends with %v", err)
	}
	w.mu.Lock()
	w.user = nil
	w.mu.Unlock()
}

// thief is a connection of a source's, beside which somebody takes the guest's disk as soon
// as the source has given it up.
type thief struct {
	net.Conn
	w  *simWorld
	by *process
}

func (m *thief) Write(p []byte) (int, error) {
	m.w.mu.Lock()
	if m.w.user == nil {
		m.w.user = m.by
	}
	m.w.mu.Unlock()
	return m.Conn.Write(p)
}

func TestAStrangerDoesNotGetAGuestAndBringsNone(t *testing.T) {
	w := newRoamWorld(t)
	w.insecure = false
	dir := certificates(t, "a", "b", "c")
	of := func(host, peer string) []string {
		return []string{
			"-cert", filepath.Join(dir, host+".pem"), "-key", filepath.Join(dir, host+".key"), "-ca", filepath.Join(dir, "ca.pem"), "-peer-name", peer,
		}
	}
	stranger := w.roam("b", modeReceive, of("c", "a")...)
	a := w.roam("a", modeMigrate, of("a", "b")...)
	w.moves(a)
	w.hears(a, phase("refused"))
	stranger.stop(nil)
	w.ended(stranger)
	b := w.roam("b", modeReceive, of("b", "c")...) // a is the stranger there
	again := w.hearsNext(a, phase("refused"))
	w.signal(a)
	again()
	b.stop(nil)
	w.ended(b)
	b = w.roam("b", modeReceive, of("b", "a")...)
	w.signal(a)
	if err := w.ended(a); err != nil {
		t.Errorf("host a: %v", err)
	}
	w.has(b)
	w.judge()
}

func TestWhatMovesAndWhatDoesNotIsSaidInOneLine(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"migrate -kernel k", "migrate needs -peer"},
		{"migrate -peer a:1 -insecure", "migrate needs -kernel"},
		{"migrate -peer a:1 -kernel k", "or -insecure"},
		{"migrate -peer a:1 -kernel k -listen b:1", "-listen is for receive"},
		{"migrate -peer a:1 -kernel k -arbiter true", "-arbiter: nobody protects"},
		{"receive -insecure", "receive needs -listen"},
		{"receive -listen a:1 -kernel k", "-kernel: the guest of receive"},
		{"receive -listen a:1 -append x", "-append without -kernel"},
		{"receive -listen a:1 -max-downtime 0s", "-max-downtime 0s"},
		{"receive -listen a:1 -give-up -1s", "-give-up -1s"},
		{"boot -kernel k -postcopy", "-postcopy is for migrate and receive"},
		{"primary -kernel k -peer a:1 -shared-disk", "-shared-disk is for migrate and receive"},
	} {
		status, out, err := gokvmSays(strings.Fields(c.args)...)
		if status != 2 || out != "" || strings.Count(err, "\n") != 1 || !strings.Contains(err, c.want) {
			t.Errorf("lockstep-gokvm %s: status %d, %q, %q; want %q", c.args, status, out, err, c.want)
		}
	}
}
