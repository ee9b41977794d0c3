package filter_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/google/go-cmp/cmp"
)

// A Buffer has the methods that package colo calls on the network of a primary, and of a secondary.
var _ interface {
	Mark(epoch uint64) error
	Received(epoch uint64) error
	Loaded(epoch uint64) error
	Commit(epoch uint64) error
	Resumed(epoch uint64) error
	Failover() error
} = (*filter.Buffer)(nil)

// A network that keeps what it is given.
type network struct {
	mu    sync.Mutex
	got   []string
	delay func() // before each packet is taken
	err   error
}

func (n *network) WritePacket(p []byte) error {
	if n.delay != nil {
		n.delay()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return n.err
	}
	n.got = append(n.got, string(p))
	return nil
}

func (n *network) taken() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.got)
}

// bench is a Buffer with its Run, in a bubble.
type bench struct {
	*filter.Buffer
	t    *testing.T
	out  network
	done chan error
	stop context.CancelFunc
}

func start(t *testing.T, b *filter.Buffer) *bench {
	return startOver(t, b, nil)
}

// startSlow starts a bench whose network takes a packet for each value that comes from gate.
func startSlow(t *testing.T) (x *bench, gate chan struct{}) {
	gate = make(chan struct{})
	return startOver(t, filter.NewBuffer(filter.BufferConfig{}), func() { <-gate }), gate
}

// startOver starts a bench whose network calls delay before it takes a packet.
func startOver(t *testing.T, b *filter.Buffer, delay func()) *bench {
	ctx, stop := context.WithCancel(t.Context())
	x := &bench{Buffer: b, t: t, done: make(chan error, 1), stop: stop}
	x.out.delay = delay
	go func() { x.done <- b.Run(ctx, &x.out) }()
	return x
}

func (x *bench) end() {
	x.t.Helper()
	x.stop()
	if err := <-x.done; !errors.Is(err, context.Canceled) {
		x.t.Errorf("Run returned %v", err)
	}
}

func (x *bench) send(packets ...string) {
	x.t.Helper()
	for _, p := range packets {
		if err := x.WritePacket([]byte(p)); err != nil {
			x.t.Fatalf("%s: %v", p, err)
		}
	}
}

func (x *bench) wantOut(why, packets string) {
	x.t.Helper()
	synctest.Wait()
	if got := strings.Join(x.out.taken(), " "); got != packets {
		x.t.Errorf("%s: %q left, want %q", why, got, packets)
	}
}

func (x *bench) wantErr(why string, err, want error) {
	x.t.Helper()
	var fe *filter.Error
	if !errors.Is(err, want) || want != nil && !errors.As(err, &fe) {
		x.t.Errorf("%s: %v, want %v", why, err, want)
	}
}

func TestPrimaryHoldsUntilTheCheckpointIsReceived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, filter.NewBuffer(filter.BufferConfig{}))
		x.send("a", "b")
		x.wantOut("without a session packets pass", "a b")
		x.wantErr("the session begins", x.Mark(0), nil)
		x.send("c")
		x.wantOut("from the first mark on they are held", "a b")
		x.wantErr("the synchronisation covers what was before the mark", x.Received(0), nil)
		x.wantErr("", x.Loaded(0), nil)
		x.wantOut("and nothing after it", "a b")
		x.send("d")
		x.wantErr("", x.Mark(1), nil)
		x.send("e")
		x.wantOut("a mark by itself lets nothing leave", "a b")
		x.wantErr("an epoch that is not received cannot be loaded", x.Loaded(1), filter.ErrEpoch)
		x.wantErr("", x.Received(1), nil)
		x.wantOut("a receipt lets leave what was before its mark", "a b c d")
		x.wantErr("", x.Loaded(1), nil)
		if d := cmp.Diff(filter.BufferStats{Held: 1, HeldBytes: 1, Written: 4, WrittenBytes: 4}, x.Stats()); d != "" {
			t.Error(d)
		}
		x.wantErr("", x.Failover(), nil)
		x.wantOut("alone, what is held leaves", "a b c d e")
		x.send("f")
		x.wantOut("and packets pass", "a b c d e f")
		x.wantErr("the survivor gets a new secondary", x.Mark(0), nil)
		x.send("g")
		x.wantOut("and holds again", "a b c d e f")
		x.end()
	})
}

func TestSecondaryDropsItsOwnOutputAtEachCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, filter.NewBuffer(filter.BufferConfig{}))
		x.wantErr("", x.Commit(0), nil)
		x.wantErr("", x.Resumed(0), nil)
		x.send("a", "b")
		x.wantErr("", x.Commit(1), nil)
		x.wantErr("", x.Resumed(1), nil)
		x.send("c", "d")
		x.wantOut("a secondary says nothing", "")
		x.wantErr("", x.Failover(), nil)
		x.wantOut("until it takes over, and then what its guest said since the commit", "c d")
		x.send("e")
		x.wantOut("", "c d e")
		if d := cmp.Diff(filter.BufferStats{Written: 3, WrittenBytes: 3, Dropped: 2, DroppedBytes: 2}, x.Stats()); d != "" {
			t.Error(d)
		}
		x.wantErr("it may then be a primary", x.Mark(0), nil)
		x.send("f")
		x.wantOut("", "c d e")
		x.end()
	})
}

func TestStepsOutOfOrderAreRefused(t *testing.T) {
	b := func(steps ...func(*filter.Buffer) error) *filter.Buffer {
		b := filter.NewBuffer(filter.BufferConfig{})
		for _, s := range steps {
			if err := s(b); err != nil {
				t.Fatal(err)
			}
		}
		return b
	}
	mark0 := func(b *filter.Buffer) error { return b.Mark(0) }
	recv0 := func(b *filter.Buffer) error { return b.Received(0) }
	commit0 := func(b *filter.Buffer) error { return b.Commit(0) }
	for why, err := range map[string]error{
		"a mark before the first":         b().Mark(1),
		"a mark left out":                 b(mark0).Mark(2),
		"a receipt without a mark":        b().Received(0),
		"a second receipt":                b(mark0, recv0).Received(0),
		"a receipt of what is to come":    b(mark0).Received(1),
		"loaded what is not received":     b(mark0).Loaded(0),
		"loaded without a session":        b().Loaded(0),
		"a commit left out":               b(commit0).Commit(2),
		"resumed another epoch":           b(commit0).Resumed(1),
		"resumed without a commit":        b().Resumed(0),
		"a mark on the secondary":         b(commit0).Mark(0),
		"a receipt after the failover":    b(mark0, (*filter.Buffer).Failover).Received(0),
		"a mark in the middle of nothing": b(mark0, (*filter.Buffer).Failover).Mark(1),
	} {
		if !errors.Is(err, filter.ErrEpoch) {
			t.Errorf("%s: %v, want ErrEpoch", why, err)
		}
	}
	if err := b(mark0, recv0).Mark(0); err != nil {
		t.Errorf("a session that ended without a failover may be followed by another: %v", err)
	}
}

func TestFullBufferLeavesThePacketWithTheDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		x := start(t, filter.NewBuffer(filter.BufferConfig{Limit: 300 << 10, Soft: 100 << 10, Full: func() { asked++ }}))
		x.Mark(0)
		x.Received(0)
		big := strings.Repeat("x", 10<<10)
		n := 0
		for ; x.WritePacket([]byte(big)) == nil; n++ {
			if want := min(1, (n+1)/10); asked != want { // ten and what is counted for each exceed the soft limit
				t.Fatalf("after %d packets a checkpoint was asked for %d times", n, asked)
			}
		}
		if n < 25 || n > 30 {
			t.Errorf("%d packets of 10 KiB were taken under a limit of 300 KiB", n)
		}
		if err := x.WritePacket([]byte(big)); err != filter.ErrFull {
			t.Errorf("%v, want ErrFull", err)
		}
		select {
		case <-x.Room():
			t.Error("there is no room")
		default:
		}
		x.Mark(1)
		x.Received(1)
		<-x.Room()
		x.send(big)
		synctest.Wait()
		if got := x.out.taken(); len(got) != n {
			t.Errorf("%d packets left, want %d", len(got), n)
		}
		if asked != 1 {
			t.Errorf("a checkpoint was asked for %d times in one epoch", asked)
		}
		for x.WritePacket([]byte(big)) == nil {
		}
		if asked != 2 {
			t.Errorf("and %d times in two", asked)
		}
		if s := x.Stats(); s.Asked != 2 || s.Refused != 3 {
			t.Errorf("%+v", s)
		}
		for _, c := range []struct {
			n    int
			want error
		}{{0, filter.ErrFrame}, {filter.MaxFrame + 1, filter.ErrFrameTooBig}} {
			x.wantErr("what is no packet is refused as such", x.WritePacket(make([]byte, c.n)), c.want)
		}
		x.end()
	})
}

func TestSecondaryOffersRoomAtItsCommit(t *testing.T) {
	b := filter.NewBuffer(filter.BufferConfig{Limit: 1})
	b.Commit(0)
	p := make([]byte, filter.MaxFrame)
	n := 0
	for ; b.WritePacket(p) == nil; n++ {
	}
	if n != 4 {
		t.Errorf("%d of the greatest packets fit under the least limit, want 4", n)
	}
	b.Commit(1)
	select {
	case <-b.Room():
	default:
		t.Error("the commit made room and did not say so")
	}
	if err := b.WritePacket(p); err != nil {
		t.Error(err)
	}
}

func TestSlowNetworkHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, gate := startSlow(t)
		x.send("a", "b")
		synctest.Wait() // a is with the network now, which does not take it
		x.Mark(0)
		x.send("c")
		x.Received(0)
		x.Mark(1)
		x.send("d")
		x.Received(1)
		x.Loaded(1)
		if d := cmp.Diff(filter.BufferStats{Held: 1, HeldBytes: 1, Queued: 3, QueuedBytes: 3}, x.Stats()); d != "" {
			t.Error(d)
		}
		for range 3 {
			gate <- struct{}{}
		}
		x.wantOut("in order, at the network's pace", "a b c")
		x.end()
	})
}

func TestFailedWriteIsTheFirstOfTheNextRun(t *testing.T) {
	b := filter.NewBuffer(filter.BufferConfig{})
	broken := &network{err: errors.New("no carrier")}
	b.WritePacket([]byte("a"))
	var fe *filter.Error
	if err := b.Run(t.Context(), broken); !errors.Is(err, broken.err) || !errors.As(err, &fe) {
		t.Errorf("%v", err)
	}
	if s := b.Stats(); s.Queued != 1 || s.Written != 0 {
		t.Errorf("%+v", s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	good := &network{delay: cancel}
	if err := b.Run(ctx, good); err != context.Canceled {
		t.Errorf("%v", err)
	}
	if d := cmp.Diff([]string{"a"}, good.taken()); d != "" {
		t.Error(d)
	}
}

// A secondary role that begins while Run still writes a packet of the time
// before: the packet's memory is not reused under it.
func TestCommitDoesNotTouchThePacketThatIsBeingWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, gate := startSlow(t)
		x.send("before", "gone")
		synctest.Wait()
		x.Commit(0)
		x.send("BEFORE", "AFTER")
		gate <- struct{}{}
		x.wantOut("the packet as it was", "before")
		close(gate)
		x.Failover()
		x.wantOut("", "before BEFORE AFTER")
		x.end()
	})
}

func TestPacketsAreHeldAndReleasedWithoutAllocation(t *testing.T) {
	b := filter.NewBuffer(filter.BufferConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { b.Run(ctx, discard{}) })
	p := make([]byte, 1500)
	epoch := uint64(0)
	round := func() {
		b.Mark(epoch)
		for range 100 {
			if err := b.WritePacket(p); err != nil {
				t.Fatal(err)
			}
		}
		b.Received(epoch)
		epoch++
	}
	for range 20 { // until the memory has its size
		round()
	}
	if n := testing.AllocsPerRun(100, func() {
		round()
		for b.Stats().Queued > 0 { // Run keeps up, so that no more memory is needed
			time.Sleep(time.Microsecond)
		}
	}); n > 0 {
		t.Errorf("%v allocations in 100 packets", n)
	}
	cancel()
	wg.Wait()
}

type discard struct{}

func (discard) WritePacket([]byte) error { return nil }

// Many goroutines at once, for the race detector.
func TestBufferIsSafeForConcurrentUse(t *testing.T) {
	b := filter.NewBuffer(filter.BufferConfig{Limit: 1, Soft: 1000, Full: func() {}})
	out := &network{}
	ctx, cancel := context.WithCancel(t.Context())
	var run, guests sync.WaitGroup
	run.Go(func() { b.Run(ctx, out) })
	const n = 2000
	for g := range 2 {
		guests.Go(func() {
			for i := range n {
				p := fmt.Appendf(nil, "%d %d", g, i)
				send := b.WritePacket
				if (g+i)%2 == 0 {
					send = func(p []byte) error {
						return b.ComposePacket(len(p), func(q []byte) bool { return copy(q, p) == len(q) })
					}
				}
				for send(p) != nil {
					<-b.Room()
				}
			}
		})
	}
	done := make(chan struct{})
	run.Go(func() {
		for e := uint64(0); ; e++ {
			b.Mark(e)
			b.PreSave()
			b.Received(e)
			b.Loaded(e)
			b.Stats()
			select {
			case <-done:
				b.Failover()
				return
			default:
				time.Sleep(time.Microsecond)
			}
		}
	})
	guests.Wait()
	close(done)
	for len(out.taken()) < 2*n {
		time.Sleep(time.Millisecond)
	}
	cancel()
	run.Wait()
	next := [2]int{}
	for _, p := range out.taken() {
		var g, i int
		fmt.Sscan(p, &g, &i)
		if i != next[g] {
			t.Fatalf("guest %d: packet %d where %d was due", g, i, next[g])
		}
		next[g]++
	}
}

// A frame of a guest is gathered, and then written; or it is gathered where it waits. The
// bound is one copy.
func BenchmarkBuffer(b *testing.B) {
	for _, size := range []int{64, 1500, 64 << 10} {
		for _, composed := range []bool{false, true} {
			name := fmt.Sprint(size)
			if composed {
				name += "-composed"
			}
			b.Run(name, func(b *testing.B) {
				buf := filter.NewBuffer(filter.BufferConfig{})
				ctx, cancel := context.WithCancel(b.Context())
				var wg sync.WaitGroup
				wg.Go(func() { buf.Run(ctx, discard{}) })
				guest, p := make([]byte, size), make([]byte, size)
				gather := func(p []byte) bool { return copy(p, guest) == len(p) }
				send := func() error {
					gather(p)
					return buf.WritePacket(p)
				}
				if composed {
					send = func() error { return buf.ComposePacket(size, gather) }
				}
				bound := copying(size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					for send() != nil {
						<-buf.Room()
					}
				}
				report(b, bound)
				cancel()
				wg.Wait()
			})
		}
	}
}
