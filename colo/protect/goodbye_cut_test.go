package protect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
)

// A snap is where a connection breaks: at one of the operations of the host that dialled
// it, from when it is set.
type snap struct {
	read bool // a read, or else a write
	n    int64
	part string // "before": nothing of it comes about; "half" of a write; "after" it
	all  bool   // the whole way between the hosts breaks with the connection, for a second

	set  atomic.Bool
	done atomic.Int64 // operations of that kind since then
}

func (s *snap) String() string {
	op, what := "write", "the control connection"
	if s.read {
		op = "read"
	}
	if s.all {
		what = "the whole way"
	}
	return fmt.Sprintf("%s breaks %s %s %d", what, s.part, op, s.n)
}

// snapping is a control connection that breaks at its snap.
type snapping struct {
	*colotest.Conn
	s *snap
	w *world
}

func (c snapping) hits(read bool) bool {
	return c.s.set.Load() && c.s.read == read && c.s.done.Add(1)-1 == c.s.n
}

func (c snapping) cut() error {
	c.Break()
	if c.s.all {
		c.w.f.part("a", "b", false)
		time.AfterFunc(time.Second, func() { c.w.f.join("a", "b") })
	}
	return errNoRoute
}

func (c snapping) Write(b []byte) (int, error) {
	if !c.hits(false) {
		return c.Conn.Write(b)
	}
	switch c.s.part {
	case "half":
		c.Conn.Write(b[:len(b)/2])
	case "after":
		c.Conn.Write(b)
		time.Sleep(time.Millisecond) // it arrives
	}
	return 0, c.cut()
}

func (c snapping) Read(b []byte) (int, error) {
	if !c.hits(true) {
		return c.Conn.Read(b)
	}
	if c.s.part == "after" {
		n, err := c.Conn.Read(b)
		c.cut()
		return n, err
	}
	// What the other host has written is lost, as it is with a connection that is reset.
	_, err := c.Conn.Read(b)
	return 0, errors.Join(c.cut(), err)
}

// snaps are the operations of a goodbye, one after the other: a note is one write, and two
// reads. Questions and promises go over the same connection, and may be among them.
func snaps() (all []*snap) {
	writes, parts := int64(2), []string{"half", "before", "after"}
	if testing.Short() {
		writes, parts = 1, parts[1:]
	}
	for n := range writes {
		for _, part := range parts {
			all = append(all, &snap{n: n, part: part})
			if n == 0 && part == "after" {
				all = append(all, &snap{n: n, part: part, all: true})
			}
		}
	}
	for n := range 2 * writes {
		for _, part := range parts[len(parts)-2:] {
			if part == "before" || !testing.Short() {
				all = append(all, &snap{read: true, n: n, part: part})
			}
		}
	}
	return all
}

// A goodbye is how a session ends on purpose.
type goodbye struct {
	name string
	say  func(ctx context.Context, a, b *host) // a has the guest, and b follows
	// runs says who may have the guest in the end.
	runs func(name string) bool
}

var goodbyes = []goodbye{
	{"pause", func(ctx context.Context, a, _ *host) { a.job.Pause(ctx, "for a while") }, isA},
	{"cancel", func(ctx context.Context, a, _ *host) { a.job.Cancel(ctx) }, isA},
	{"complete", func(ctx context.Context, a, _ *host) { a.job.Complete(ctx) }, func(n string) bool { return n == "" }},
	{"switchover", func(ctx context.Context, a, _ *host) { a.job.Switchover(ctx) }, func(n string) bool { return n != "" }},
	{"the secondary leaves", func(_ context.Context, _, b *host) { b.stop(errHalt) }, isA},
	{"the primary leaves", func(_ context.Context, a, _ *host) { a.stop(errHalt) }, func(n string) bool { return n == "b" }},
}

func isA(name string) bool { return name == "a" }

// A goodbye is cut at each of its writes and reads, at both ends of what it says. At no
// time do two hosts have the guest; in the end it is where it belongs; and whoever does
// not have it says why.
func TestAGoodbyeThatIsCutLeavesTheGuestToOneHost(t *testing.T) {
	t.Parallel()
	for _, g := range goodbyes {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			for _, s := range snaps() {
				synctest.Test(t, func(t *testing.T) { cutGoodbye(t, g, s) })
				if t.Failed() {
					t.Fatal(s)
				}
			}
		})
	}
}

func cutGoodbye(t *testing.T, g goodbye, s *snap) {
	w := newWorld(t)
	w.guest.Interval = 20 * time.Millisecond
	w.forget()
	b := w.boot("b", false, nil)
	var dialled atomic.Int64
	a := w.boot("a", true, func(c *Config) {
		dial := c.Peer.Dialer
		c.Peer.Dialer = func(ctx context.Context) (net.Conn, error) {
			conn, err := dial(ctx)
			if err == nil && dialled.Add(1) == 1 {
				return snapping{conn.(*colotest.Conn), s, w}, nil
			}
			return conn, err
		}
	})
	a.is(Protected)
	b.is(Following)
	time.Sleep(130 * time.Millisecond)
	s.set.Store(true)
	said := make(chan struct{})
	go func() {
		defer close(said)
		g.say(t.Context(), a, b)
	}()
	runs := ""
	for range 30 { // longer than anything waits
		time.Sleep(500 * time.Millisecond)
		runs = ""
		for _, h := range []*host{a, b} {
			if h.job.State().runs() && h.job.Gate().Open() {
				if runs != "" {
					t.Errorf("both hosts have the guest: a is %v, b is %v", a.job.State(), b.job.State())
				}
				runs = h.name
			}
		}
	}
	<-said
	if !g.runs(runs) {
		t.Errorf("the guest runs on %q: a was %s, b was %s", runs, a.states(), b.states())
	}
	for _, h := range []*host{a, b} {
		if in := h.job.Query(); h.name != runs && in.Reason == "" && in.LastError == nil {
			t.Errorf("%s is %v, and does not say why", h.name, in.State)
		}
	}
	for _, h := range []*host{b, a} {
		if h.job.State() == Concluded {
			<-h.done
			h.leave()
		} else {
			h.halt()
		}
	}
	w.clean()
}
