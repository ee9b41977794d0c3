package compare_test

import (
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

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
)

// What package colo asks of a primary's network.
var _ interface {
	Mark(epoch uint64) error
	Received(epoch uint64) error
	Loaded(epoch uint64) error
	Failover() error
} = (*compare.Comparer)(nil)

// sink is a network; source is a stream of packets.
type sink struct {
	mu   sync.Mutex
	got  []string
	gate chan struct{}
	err  error
}

func (s *sink) WritePacket(p []byte) error {
	if s.gate != nil {
		<-s.gate
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	s.got = append(s.got, show(compare.Result{Release: []compare.Frame{{Data: p}}}))
	return nil
}

type source chan []byte

func (s source) ReadPacket() ([]byte, error) {
	p, ok := <-s
	if !ok {
		return nil, io.EOF
	}
	return p, nil
}

type pairing struct {
	*compare.Comparer
	t        *testing.T
	out      sink
	reasons  []string
	pri, sec source
}

// between runs fn with a Comparer and its goroutines.
func between(t *testing.T, cfg compare.Config, fn func(x *pairing)) {
	synctest.Test(t, func(t *testing.T) {
		x := &pairing{Comparer: compare.NewComparer(cfg), t: t, pri: make(source), sec: make(source)}
		x.Diverged = func(r compare.Reason) {
			x.out.mu.Lock()
			defer x.out.mu.Unlock()
			x.reasons = append(x.reasons, r.String())
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { x.Run(ctx, &x.out) })
		wg.Go(func() { x.ServePrimary(ctx, x.pri) })
		wg.Go(func() { x.ServeSecondary(ctx, x.sec) })
		fn(x)
		cancel()
		close(x.pri)
		close(x.sec)
		wg.Wait()
	})
}

func (x *pairing) want(why, out, reasons string) {
	x.t.Helper()
	synctest.Wait()
	x.out.mu.Lock()
	defer x.out.mu.Unlock()
	got := strings.Join(x.out.got, " ")
	if got != out || strings.Join(x.reasons, " ") != reasons {
		x.t.Errorf("%s: %q left for %q, want %q for %q", why, got, x.reasons, out, reasons)
	}
}

func TestComparerComparesFromTheFirstMarkOn(t *testing.T) {
	between(t, compare.Config{Marks: true}, func(x *pairing) {
		x.pri <- udp("a").Data
		x.want("without a session packets pass", "a", "")
		x.Mark(0)
		x.Received(0)
		x.SecondaryMark(0)
		x.Loaded(0)
		x.pri <- udp("b").Data
		x.want("", "a", "")
		x.sec <- udp("b").Data
		x.want("equal packets leave at once", "a b", "")
		x.pri <- udp("c").Data
		x.sec <- udp("C").Data
		x.want("they may be crossing", "a b", "")
		time.Sleep(25 * time.Millisecond)
		x.want("different ones are a reason", "a b", "packet")
		x.Mark(1)
		x.pri <- udp("d").Data
		x.Received(1)
		x.want("for a checkpoint, which covers them", "a b c", "packet")
		x.sec <- udp("d").Data
		x.want("a stale packet releases nothing", "a b c", "packet")
		time.Sleep(5500 * time.Millisecond)
		x.want("who waits too long is a reason again, at each scan", "a b c", "packet timeout timeout")
		x.Failover()
		x.pri <- udp("e").Data
		x.want("alone, everything leaves, and packets pass", "a b c d e", "packet timeout timeout")
		if s, queued := x.Stats(); queued != 0 || s.Matched != 1 || s.Held != 0 {
			t.Errorf("%+v, %d queued", s, queued)
		}
	})
}

func TestSlowNetworkHoldsTheReaderUpAndLosesNothing(t *testing.T) {
	between(t, compare.Config{MaxBytes: 1 << 12}, func(x *pairing) {
		x.out.gate = make(chan struct{})
		n := 0
	fill:
		for {
			select {
			case x.pri <- udp(fmt.Sprint(n)).Data:
				n++
				synctest.Wait()
			case <-time.After(time.Second):
				break fill
			}
		}
		if n < 10 || n > 40 {
			t.Errorf("%d packets were taken under a limit of 4 KiB", n)
		}
		if err := x.WritePacket(udp("x").Data); err != compare.ErrFull {
			t.Errorf("%v, want ErrFull", err)
		}
		close(x.out.gate)
		x.pri <- udp("last").Data
		synctest.Wait()
		var want []string
		for i := range n {
			want = append(want, fmt.Sprint(i))
		}
		if want = append(want, "last"); !slices.Equal(x.out.got, want) {
			t.Errorf("left: %q", x.out.got)
		}
	})
}

func TestFailedWriteOfTheComparerIsTheFirstOfTheNextRun(t *testing.T) {
	c := compare.NewComparer(compare.Config{})
	c.WritePacket(udp("a").Data)
	bad := &sink{err: errors.New("no carrier")}
	if err := c.Run(t.Context(), bad); err != bad.err {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	good := &sink{gate: make(chan struct{}, 1)}
	done := make(chan error)
	go func() { done <- c.Run(ctx, good) }()
	good.gate <- struct{}{}
	for {
		if _, queued := c.Stats(); queued == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != context.Canceled || !slices.Equal(good.got, []string{"a"}) {
		t.Errorf("%v, %q left", err, good.got)
	}
}

// Everything over connections in QEMU's framing, with markers from the
// secondary and virtio-net headers from the guests.
func TestComparerSpeaksTheFramingOfFilters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := compare.NewComparer(compare.Config{Marks: true})
		cfg := filter.ConnConfig{VNetHdr: true, Marks: true, OnMark: c.SecondaryMark}
		conn := func() (ours, theirs *filter.Conn, shut func()) {
			a, b := net.Pipe()
			return filter.NewConn(a, cfg), filter.NewConn(b, cfg), func() { a.Close(); b.Close() }
		}
		p1, p2, pc := conn()
		s1, s2, sc := conn()
		o1, o2, oc := conn()
		var wg sync.WaitGroup
		wg.Go(func() { c.ServePrimary(t.Context(), p1) })
		wg.Go(func() { c.ServeSecondary(t.Context(), s1) })
		wg.Go(func() { c.Run(t.Context(), o1) })
		c.Mark(0)
		c.Received(0)
		frame := append(make([]byte, 12), udp("hello").Data...)
		s2.WriteVNetPacket(frame, 12) // before its marker: stale
		s2.WriteMark(0)
		p2.WriteVNetPacket(frame, 12)
		synctest.Wait()
		if _, queued := c.Stats(); queued != 0 {
			t.Error("released by a stale packet")
		}
		frame[0] = 1 // the header is not compared
		s2.WriteVNetPacket(frame, 12)
		got, err := o2.ReadPacket()
		if err != nil || o2.VNetHdrLen() != 12 || got[0] != 0 {
			t.Errorf("%x, %v", got, err)
		}
		synctest.Wait()
		pc()
		sc()
		// Run is woken by something to write, and finds that nobody takes it.
		oc()
		c.Failover()
		c.WritePacket(udp("x").Data)
		wg.Wait()
	})
}

func TestSomebodyElseOrchestrates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := compare.NewComparer(compare.Config{})
		a, b := net.Pipe()
		ours, theirs := filter.NewConn(a, filter.ConnConfig{}), filter.NewConn(b, filter.ConnConfig{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 2)
		out := &sink{}
		go func() { done <- c.ServeNotify(t.Context(), ours, ours) }()
		go func() { done <- c.Run(ctx, out) }()
		want := func(msg string) {
			t.Helper()
			if p, err := theirs.ReadPacket(); err != nil || string(p) != msg {
				t.Errorf("%q, %v; want %q", p, err, msg)
			}
		}
		theirs.WritePacket([]byte("COLO_USERSPACE_PROXY_INIT"))
		want("COLO_COMPARE_GET_XEN_INIT")
		theirs.WritePacket([]byte("anything else"))
		theirs.WritePacket([]byte("COLO_CHECKPOINT"))
		synctest.Wait()
		c.WritePacket(udp("a").Data)
		sec := make(source)
		go c.ServeSecondary(t.Context(), sec)
		sec <- udp("A").Data
		want("DO_CHECKPOINT")
		theirs.WritePacket([]byte("COLO_CHECKPOINT"))
		synctest.Wait()
		if !slices.Equal(out.got, []string{"a"}) {
			t.Errorf("%q left", out.got)
		}
		close(sec)
		b.Close()
		if err := <-done; err != io.EOF {
			t.Errorf("ServeNotify: %v", err)
		}
		cancel()
		<-done
	})
}

// Half of the memory may be full of the secondary's packets; the mark that makes
// them void makes room for the primary's.
func TestMarkMakesRoomForWhoWaits(t *testing.T) {
	between(t, compare.Config{MaxBytes: 1 << 12}, func(x *pairing) {
		x.Mark(0)
		x.Received(0)
		x.Loaded(0)
		for i := range 100 {
			x.sec <- udp(fmt.Sprint("s", i)).Data
		}
		x.want("", "", "limit")
		var half []string
		for i := range 16 {
			half = append(half, fmt.Sprint("p", i))
			x.pri <- udp(half[i]).Data
		}
		x.pri <- udp("a").Data
		synctest.Wait()
		if s, _ := x.Stats(); s.Held != 32 || s.HeldBytes != 1<<12 || s.Dropped != 84 {
			t.Errorf("%+v", s)
		}
		x.Mark(1)
		x.want("the packet was taken, after the mark", "", "limit packet limit")
		x.Received(1)
		x.want("and so belongs to the next epoch", strings.Join(half, " "), "limit packet limit")
		x.Failover()
		x.want("", strings.Join(append(half, "a"), " "), "limit packet limit")
	})
}
