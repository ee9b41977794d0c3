package filter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// note is a filter that writes its name into the packet.
type note string

func (n note) Process(_ filter.Place, _ filter.Direction, f filter.Frame) bool {
	i := bytes.IndexByte(f.Data, '.')
	f.Data[i] = n[0]
	return true
}

// stay is a note that stays after a failover, and knows of commits.
type stay struct {
	note
	err     error
	commits *[]string
}

func (s stay) Commit(epoch uint64) error {
	*s.commits = append(*s.commits, fmt.Sprint(string(s.note), epoch))
	return s.err
}
func (s stay) Failover() error { return nil }

type ends struct {
	*filter.Chain
	got []string
	err error
}

func newChain() *ends {
	e := &ends{Chain: &filter.Chain{}}
	e.Deliver = func(d filter.Direction, f filter.Frame) error {
		e.got = append(e.got, fmt.Sprintf("%d:%s", d, strings.TrimRight(string(f.Data), ".")))
		return e.err
	}
	return e
}

func (e *ends) want(t *testing.T, why string, want ...string) {
	t.Helper()
	if !slices.Equal(e.got, want) {
		t.Errorf("%s: %q came out, want %q", why, e.got, want)
	}
	e.got = nil
}

func blank() filter.Frame { return filter.Frame{Data: []byte("......")} }

func TestChainIsQuietWhileItIsAsked(t *testing.T) {
	r := filter.NewRewriter(filter.RewriterConfig{})
	c := &filter.Chain{Deliver: func(filter.Direction, filter.Frame) error { return nil }}
	if err := c.Insert(filter.Entry{ID: "rew0", Filter: r}, filter.Position{}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 100 {
			c.Send(filter.ToGuest, filter.Frame{Data: segment(true, false, 500, 0, packet.SYN, nil, nil)})
		}
	})
	for range 100 { // the race detector looks on
		c.Do(func() {
			if n := r.Stats().Conns; n > 1 {
				t.Errorf("%d connections", n)
			}
		})
	}
	wg.Wait()
}

func TestChainKeepsOrderAndDirection(t *testing.T) {
	c := newChain()
	for _, s := range []struct {
		e  filter.Entry
		at filter.Position
	}{
		{filter.Entry{ID: "b", Filter: note("b")}, filter.Position{}},
		{filter.Entry{ID: "d", Filter: note("d"), Queue: filter.QueueRX}, filter.Position{}},
		{filter.Entry{ID: "a", Filter: note("a")}, filter.Position{Head: true}},
		{filter.Entry{ID: "c", Filter: note("c"), Queue: filter.QueueTX}, filter.Position{Next: "b"}},
		{filter.Entry{ID: "x", Filter: note("x"), Off: true}, filter.Position{Next: "b", Before: true}},
	} {
		if err := c.Insert(s.e, s.at); err != nil {
			t.Fatal(err)
		}
	}
	c.Send(filter.ToGuest, blank())
	c.want(t, "to the guest from head to tail", "0:abc")
	c.Send(filter.FromGuest, blank())
	c.want(t, "from the guest from tail to head", "1:dba")
	c.SetStatus("x", true)
	c.Send(filter.ToGuest, blank())
	c.want(t, "switched on", "0:axbc")
	c.Inject("x", filter.ToGuest, blank())
	c.Inject("x", filter.FromGuest, blank())
	c.want(t, "an injection begins behind its place", "0:bc", "1:a")
	c.Remove("b")
	c.Send(filter.FromGuest, blank())
	c.want(t, "taken out", "1:dxa")
	if ok, _ := c.Inject("b", filter.ToGuest, blank()); ok {
		t.Error("injected behind what is not there")
	}
	for why, err := range map[string]error{
		"an ID in use":         c.Insert(filter.Entry{ID: "a", Filter: note("a")}, filter.Position{}),
		"no ID":                c.Insert(filter.Entry{Filter: note("a")}, filter.Position{}),
		"no filter":            c.Insert(filter.Entry{ID: "e"}, filter.Position{}),
		"next to nothing":      c.Insert(filter.Entry{ID: "e", Filter: note("a")}, filter.Position{Next: "b"}),
		"removed twice":        c.Remove("b"),
		"the status of no one": c.SetStatus("b", true),
	} {
		if !errors.Is(err, filter.ErrChain) {
			t.Errorf("%s: %v", why, err)
		}
	}
	c.err = io.ErrClosedPipe
	if err := c.Send(filter.ToGuest, blank()); err != io.ErrClosedPipe {
		t.Errorf("%v", err)
	}
}

func TestFailoverSwitchesOffWhatDoesNotStay(t *testing.T) {
	c := newChain()
	var commits []string
	refuse := errors.New("no")
	c.Insert(filter.Entry{ID: "f", Filter: note("f")}, filter.Position{})
	c.Insert(filter.Entry{ID: "s", Filter: stay{"s", nil, &commits}}, filter.Position{})
	c.Insert(filter.Entry{ID: "t", Filter: stay{"t", refuse, &commits}}, filter.Position{})
	c.Insert(filter.Entry{ID: "u", Filter: stay{"u", nil, &commits}}, filter.Position{})
	if err := c.Commit(3); err != refuse || !slices.Equal(commits, []string{"s3", "t3"}) {
		t.Errorf("commits %v, %v: the first error ends them", commits, err)
	}
	c.Failover()
	c.Send(filter.ToGuest, blank())
	c.want(t, "after the failover", "0:stu")
}

func TestRewriterInAChainDeliversWhatCameTooEarly(t *testing.T) {
	var c filter.Chain
	var got []string
	c.Deliver = func(d filter.Direction, f filter.Frame) error {
		got = append(got, fmt.Sprint(d, " ", numbers(t, f.Data)))
		return nil
	}
	c.Insert(filter.Entry{ID: "rew0", Filter: filter.NewRewriter(filter.RewriterConfig{})}, filter.Position{})
	in := func(b []byte) { c.Send(filter.ToGuest, filter.Frame{Data: b}) }
	in(segment(true, false, 500, 0, 2, nil, nil))
	in(segment(true, false, 501, 1001, 16, nil, nil))
	c.Send(filter.FromGuest, filter.Frame{Data: segment(false, false, 9000, 501, 18, nil, nil)})
	if want := []string{"tx 500/0", "tx 501/9001", "rx 9000/501"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Redirectors as in QEMU's test of them: what one chain sends out, another
// takes in.
func TestRedirectorsCarryPacketsFromChainToChain(t *testing.T) {
	a, b := net.Pipe()
	out := filter.NewOutbox(0)
	first, second := newChain(), newChain()
	first.Insert(filter.Entry{ID: "r0", Filter: filter.Redirector{Out: out}, Queue: filter.QueueRX}, filter.Position{})
	second.Insert(filter.Entry{ID: "r1", Filter: filter.Redirector{}, Queue: filter.QueueAll}, filter.Position{})
	second.Insert(filter.Entry{ID: "n", Filter: note("n")}, filter.Position{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { out.Run(ctx, filter.NewConn(a, filter.ConnConfig{VNetHdr: true})) })
	served := make(chan error)
	go func() {
		served <- second.Serve(t.Context(), "r1", filter.NewConn(b, filter.ConnConfig{VNetHdr: true}))
	}()
	first.Send(filter.ToGuest, blank())
	first.want(t, "the other direction passes", "0:")
	first.Send(filter.FromGuest, filter.Frame{Data: []byte("ab...."), VNetHdr: 2})
	first.want(t, "what is redirected does not go on")
	for out.Pending() > 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	wg.Wait()
	a.Close()
	if err := <-served; err != io.EOF {
		t.Errorf("Serve: %v", err)
	}
	second.want(t, "queue all injects into both directions", "0:abn", "1:abn")
}

func TestFullOutboxSaysSoOnceAndKeepsTheMarker(t *testing.T) {
	lost := 0
	o := filter.NewOutbox(1)
	o.Lost = func() { lost++ }
	big := filter.Frame{Data: make([]byte, filter.MaxFrame)}
	n := 0
	for ; o.WriteFrame(big) == nil; n++ {
	}
	o.WriteFrame(big)
	if n != 4 || lost != 1 || o.LostFrames() != 2 {
		t.Errorf("%d taken, %d times lost, %d packets", n, lost, o.LostFrames())
	}
	o.Mark(0)
	if o.Pending() != 1 || o.LostFrames() != 6 {
		t.Errorf("%d wait and %d are lost, want the marker, and the packets in its favour", o.Pending(), o.LostFrames())
	}
	for o.WriteFrame(big) == nil {
	}
	if lost != 2 {
		t.Errorf("lost was said %d times, want once more after a mark", lost)
	}
	var fe *filter.Error
	for _, f := range []filter.Frame{{}, {Data: make([]byte, filter.MaxFrame+1)}, {Data: []byte{1}, VNetHdr: 300}} {
		if err := o.WriteFrame(f); !errors.As(err, &fe) {
			t.Errorf("%d bytes: %v", len(f.Data), err)
		}
	}
	o.Failover()
	if o.Pending() != 0 {
		t.Errorf("%d wait for nobody", o.Pending())
	}
}

// A primary's mirror, and a secondary that commits, over a connection.
func TestInputBelongsToItsEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		out := filter.NewOutbox(0)
		primary := newChain()
		primary.Insert(filter.Entry{ID: "m0", Filter: filter.Mirror{Out: out}, Queue: filter.QueueTX}, filter.Position{})
		ctx, cancel := context.WithCancel(t.Context())
		in := filter.NewInlet()
		var guest []string
		conn := filter.NewConn(b, filter.ConnConfig{Marks: true, OnMark: in.Mark})
		done := make(chan error, 2)
		go func() { done <- out.Run(ctx, filter.NewConn(a, filter.ConnConfig{Marks: true})) }()
		go func() {
			done <- in.Run(ctx, conn, func(f filter.Frame) error { guest = append(guest, string(f.Data)); return nil })
		}()
		send := func(s string) {
			primary.Send(filter.ToGuest, filter.Frame{Data: []byte(s)})
		}
		want := func(why, s string) {
			t.Helper()
			synctest.Wait()
			if got := strings.Join(guest, " "); got != s {
				t.Errorf("%s: the guest got %q, want %q", why, got, s)
			}
		}
		send("0a")
		out.Mark(0)
		send("1a")
		want("a guest that has not started gets nothing", "")
		in.Commit(0)
		want("what came after the mark is for the guest of the commit", "1a")
		send("1b")
		want("", "1a 1b")
		out.Mark(1)
		send("2a")
		send("2b")
		want("the next epoch waits for its commit", "1a 1b")
		in.Commit(1)
		want("in order, once", "1a 1b 2a 2b")
		// The commit comes before the stream has got to its mark.
		in.Commit(2)
		send("2c")
		out.Mark(2)
		send("3a")
		want("what the checkpoint has is not delivered again", "1a 1b 2a 2b 3a")
		out.Mark(3)
		send("4a")
		want("", "1a 1b 2a 2b 3a")
		in.Failover()
		want("alone, all there is", "1a 1b 2a 2b 3a 4a")
		out.Failover()
		send("nobody")
		cancel()
		a.Close()
		<-done
		<-done
		want("", "1a 1b 2a 2b 3a 4a")
		if len(primary.got) != 9 {
			t.Errorf("the primary's guest got %d packets", len(primary.got))
		}
	})
}

func TestInletEndsWhileItWaitsForACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		in := filter.NewInlet()
		conn := filter.NewConn(b, filter.ConnConfig{Marks: true, OnMark: in.Mark})
		done := make(chan error)
		go func() { done <- in.Run(ctx, conn, nil) }()
		filter.NewConn(a, filter.ConnConfig{Marks: true}).WriteMark(7)
		synctest.Wait()
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("%v", err)
		}
		a.Close()
		b.Close()
		if err := in.Mark(3); !errors.Is(err, filter.ErrEpoch) {
			t.Errorf("a marker that goes back: %v", err)
		}
	})
}

func TestDumpIsAPcapFile(t *testing.T) {
	var file bytes.Buffer
	d, err := filter.NewDump(&file, 4, func() time.Time { return time.Unix(1, 5) })
	if err != nil {
		t.Fatal(err)
	}
	d.Process(filter.Place{}, filter.ToGuest, filter.Frame{Data: []byte("hhabcdef"), VNetHdr: 2})
	want := unhex(t, "a1b23c4d 0002 0004 00000000 00000000 00000004 00000001"+
		"00000001 00000005 00000004 00000006 61626364")
	if !bytes.Equal(file.Bytes(), want) {
		t.Errorf("got  %x\nwant %x", file.Bytes(), want)
	}
	broken, err := filter.NewDump(failing{}, 0, time.Now)
	if err == nil || broken.Err() != err || !broken.Process(filter.Place{}, filter.ToGuest, blank()) {
		t.Errorf("%v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestQueuesAndDirectionsHaveTheNamesThatQEMUGivesThem(t *testing.T) {
	for q, want := range []string{"all", "tx", "rx", "unknown"} {
		if got := filter.Queue(q).String(); got != want {
			t.Errorf("queue %d is %q", q, got)
		}
	}
	for d, want := range []string{"tx", "rx", "unknown"} {
		if got := filter.Direction(d).String(); got != want {
			t.Errorf("direction %d is %q", d, got)
		}
	}
}
