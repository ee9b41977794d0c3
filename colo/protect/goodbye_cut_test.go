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

// A snap breaks a connection at one of the operations of the host that dialled it, counted from
// when it is set.
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

// snaps returns the ways in which one operation is cut, and how many operations of a goodbye
// are, if there are so many: a note is one write, and two reads. Questions and promises go
// over the same connection, and may be among them.
func snaps() (all []snapKind) {
	if testing.Short() {
		return []snapKind{{part: "before", most: 1}, {part: "after", most: 1}, {part: "after", all: true, most: 1}, {read: true, part: "before", most: 2}}
	}
	const most = 6 // no goodbye has so many
	return []snapKind{
		{part: "half", most: most}, {part: "before", most: most}, {part: "after", most: most}, {part: "after", all: true, most: 1},
		{read: true, part: "before", most: most}, {read: true, part: "after", most: most},
	}
}

type snapKind struct {
	read bool
	part string
	all  bool
	most int64
}

// A goodbye ends a session on purpose in one way. (A host whose Run is ended says nothing on
// this connection.)
type goodbye struct {
	name string
	say  func(ctx context.Context, a *host) // which has the guest; b follows
	// runs says who may have the guest in the end.
	runs func(name string) bool
}

var goodbyes = []goodbye{
	{"pause", func(ctx context.Context, a *host) { a.job.Pause(ctx, "for a while") }, isA},
	{"cancel", func(ctx context.Context, a *host) { a.job.Cancel(ctx) }, isA},
	{"complete", func(ctx context.Context, a *host) { a.job.Complete(ctx) }, func(n string) bool { return n == "" }},
	{"switchover", func(ctx context.Context, a *host) { a.job.Switchover(ctx) }, func(n string) bool { return n != "" }},
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
			cuts := 0
			for _, k := range snaps() {
				for n := range k.most {
					s := &snap{read: k.read, n: n, part: k.part, all: k.all}
					synctest.Test(t, func(t *testing.T) { cutGoodbye(t, g, s) })
					if t.Failed() {
						t.Fatal(s)
					}
					if s.done.Load() <= n {
						break // it has no more of them
					}
					cuts++
				}
			}
			if cuts == 0 { // a read that is under way when the goodbye begins is none of its
				t.Error("nothing of it was cut")
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
		g.say(t.Context(), a)
	}()
	runs := ""
	for range 30 { // longer than anything waits
		time.Sleep(500 * time.Millisecond)
		synctest.Wait() // the guest is not handed over between a look at one host and at the other
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
