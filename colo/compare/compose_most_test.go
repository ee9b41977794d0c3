package compare_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo/compare"
)

const longest = 4096 + 65536 // filter.MaxFrame

// puts returns a compose function of ComposeAtMost for a packet, and how often it was called.
func puts(p []byte) (compose func([]byte) int, calls *int) {
	calls = new(int)
	return func(b []byte) int { *calls++; return copy(b, p) }, calls
}

// begins puts a Comparer into epoch 1, in which packets are compared.
func begins(t *testing.T, c *compare.Comparer) {
	t.Helper()
	for _, step := range []func(uint64) error{c.Mark, c.Received, c.SecondaryMark, c.Loaded} {
		if err := step(0); err != nil {
			t.Fatal(err)
		}
	}
}

// A large segment that was read into memory for the longest waits there and leaves from there, as long
// as it fills half of it; a shorter packet leaves that memory to the next.
func TestALargeSegmentLeavesWhereItWasRead(t *testing.T) {
	for _, size := range []int{65535, 40000, 32000, 100} {
		synctest.Test(t, func(t *testing.T) {
			c := compare.NewComparer(compare.Config{Marks: true, LowerAcks: true})
			var left, read places
			sec := make(source)
			ctx, cancel := context.WithCancel(t.Context())
			var group sync.WaitGroup
			group.Go(func() { c.Run(ctx, &left) })
			group.Go(func() { c.ServeSecondary(ctx, sec) })
			begins(t, c)
			s := seg{port: 9, seq: 1, ack: 1, flags: push, data: strings.Repeat("d", min(size, 65000))}
			for _, first := range []bool{true, true, false} { // the first of a connection may be copied
				p := s.frame().Data
				if size > 65000 {
					p = append(p, make([]byte, size-len(p)+100)...) // padding, beyond 64 KiB
				}
				if !first {
					sec <- p
					synctest.Wait()
				}
				if err := c.ComposeAtMost(longest, 0, func(b []byte) int {
					read.WritePacket(b)
					return copy(b, p)
				}); err != nil {
					t.Error(err)
				}
				if wait, leave := c.InUse(); first && (wait+leave < len(p) || wait+leave > 2*len(p)+128) {
					t.Errorf("%d bytes: %d bytes are in use", len(p), wait+leave)
				}
				if first {
					sec <- p
				}
				synctest.Wait()
				s.seq += uint32(len(s.data))
			}
			cancel()
			close(sec)
			group.Wait()
			if len(left) != 3 || (left[1] == read[1]) != (size > 1<<15) {
				t.Errorf("%d bytes: read at %v, left from %v", size, read, left)
			}
			if size == 100 && (read[1] != read[0] || read[2] != read[0]) {
				t.Errorf("memory for short packets: %v", read)
			}
		})
	}
}

func TestNothingIsTakenOfWhatIsNotRead(t *testing.T) {
	between(t, compare.Config{Marks: true}, func(x *pairing) {
		begins(t, x.Comparer)
		compose, calls := puts(make([]byte, 1<<20))
		for _, n := range [][2]int{{0, 0}, {-1, 0}, {100, 101}, {100, -1}, {longest + 1, 0}} {
			if err := x.ComposeAtMost(n[0], n[1], compose); err != compare.ErrFrame {
				t.Errorf("at most %d bytes, %d of a header: %v", n[0], n[1], err)
			}
		}
		if *calls != 0 {
			t.Errorf("%d calls", *calls)
		}
		kept := 0
		for _, n := range []int{0, -1, longest + 1, math.MaxInt, 11} {
			if err := x.ComposeAtMost(longest, 12, func([]byte) int { return n }); err != compare.ErrFrame {
				t.Errorf("a packet of %d bytes: %v", n, err)
			}
			if wait, leave := x.InUse(); wait != 0 || leave != 0 || kept > 0 && x.Kept() != kept {
				t.Errorf("a packet of %d bytes: %d and %d bytes are in use, %d are kept", n, wait, leave, x.Kept())
			}
			kept = x.Kept()
		}
	})
}

// A reader is not asked for a packet for which there is no room: it could not take it back. What keeps
// the room may need a checkpoint to leave.
func TestNothingIsReadWithoutRoomForTheLongestPacket(t *testing.T) {
	between(t, compare.Config{Marks: true, MaxBytes: 96 << 10}, func(x *pairing) {
		begins(t, x.Comparer)
		p := udp(strings.Repeat("x", 20000)).Data
		compose, calls := puts(p)
		if err := x.ComposeAtMost(longest, 0, compose); err != nil {
			t.Fatal(err)
		}
		if err := x.ComposeAtMost(longest, 0, compose); err != compare.ErrFull || *calls != 1 {
			t.Errorf("%v after %d calls", err, *calls)
		}
		x.out.mu.Lock()
		if !slices.Contains(x.reasons, "limit") {
			t.Errorf("a checkpoint was asked for because of %q", x.reasons)
		}
		x.out.mu.Unlock()
		if err := x.ComposeAtMost(30000, 0, compose); err != nil || *calls != 2 {
			t.Errorf("where it fits: %v after %d calls", err, *calls)
		}
		x.Mark(1)
		x.Received(1)
		synctest.Wait()
		<-x.Room()
		if err := x.ComposeAtMost(longest, 0, compose); err != nil || *calls != 3 {
			t.Errorf("after the checkpoint: %v after %d calls", err, *calls)
		}
	})
	between(t, compare.Config{MaxBytes: 96 << 10}, func(x *pairing) { // the network takes nothing
		x.out.gate = make(chan struct{})
		compose, calls := puts(udp(strings.Repeat("x", 20000)).Data)
		if err := x.ComposeAtMost(longest, 0, compose); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // Run is at the gate
		if err := x.ComposeAtMost(longest, 0, compose); err != compare.ErrFull || *calls != 1 {
			t.Errorf("%v after %d calls", err, *calls)
		}
		close(x.out.gate)
		<-x.Room()
		if err := x.ComposeAtMost(longest, 0, compose); err != nil || *calls != 2 {
			t.Errorf("%v after %d calls", err, *calls)
		}
		synctest.Wait()
	})
}

func TestAPacketWhoseRoomWasTakenWhileItWasReadIsNotTaken(t *testing.T) {
	for _, marked := range []bool{false, true} { // it waits for the network, or for its twin
		between(t, compare.Config{Marks: true, MaxBytes: 1 << 12}, func(x *pairing) {
			x.out.gate = make(chan struct{})
			if marked {
				begins(t, x.Comparer)
			}
			p := udp(strings.Repeat("x", 1500)).Data
			if err := x.ComposeAtMost(2000, 0, func(b []byte) int {
				for range 2 {
					if err := x.WritePacket(p); err != nil {
						t.Error(err)
					}
				}
				return copy(b, p)
			}); err != compare.ErrFull {
				t.Errorf("%v, want ErrFull", err)
			}
			close(x.out.gate)
			if marked {
				x.Mark(1)
				x.Received(1)
			}
			<-x.Room()
			synctest.Wait()
			if wait, leave := x.InUse(); wait != 0 || leave != 0 || len(x.out.got) != 2 {
				t.Errorf("%d and %d bytes are in use, %d packets have left", wait, leave, len(x.out.got))
			}
			x.ComposeAtMost(2000, 0, func(a []byte) int {
				x.ComposeAtMost(2000, 0, func(b []byte) int {
					if &a[0] == &b[0] {
						t.Error("two packets are read into the same memory")
					}
					return 0
				})
				return 0
			})
		})
	}
}

func TestPacketsThatAreReadAllocateNothing(t *testing.T) {
	c := compare.NewComparer(everything())
	begins(t, c)
	frame := seg{port: 9, seq: 1, ack: 1, flags: push, data: strings.Repeat("d", 60000)}.frame()
	seq, out := uint32(1), &outlet{want: 1, there: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() { c.Run(ctx, out) })
	sec := &soleFrame{frame: frame.Data}
	if n := testing.AllocsPerRun(1000, func() {
		setSeq(frame, seq)
		seq += 60000
		if err := c.ComposeAtMost(longest, 0, func(b []byte) int { return copy(b, frame.Data) }); err != nil {
			t.Error(err)
		}
		sec.done = false
		c.ServeSecondary(ctx, sec)
		<-out.there
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	cancel()
	group.Wait()
}

// inlet is a source that writes its frames where it is told to, and says so.
type inlet struct {
	source
	hdr, n int
	read   places
}

func (s *inlet) ReadPacket() ([]byte, error) { panic("it can read into the Comparer") }
func (s *inlet) VNetHdrLen() int             { return s.hdr }

func (s *inlet) ReadInto(b []byte) (int, error) {
	p, err := s.source.ReadPacket()
	if err != nil {
		return 0, err
	}
	s.read.WritePacket(b)
	if s.n != 0 {
		return s.n, nil
	}
	return copy(b, p), nil
}

func TestServePrimaryReadsIntoMemoryOfTheComparer(t *testing.T) {
	between(t, compare.Config{Marks: true}, func(x *pairing) {
		begins(t, x.Comparer)
		in := &inlet{source: make(source)}
		ended := make(chan error)
		go func() { ended <- x.ServePrimary(x.t.Context(), in) }()
		var want []string
		for i := range 100 {
			word := fmt.Sprint(i)
			in.source <- udp(word).Data
			x.sec <- udp(word).Data
			want = append(want, word)
		}
		x.want("all", strings.Join(want, " "), "")
		for _, n := range []int{longest + 1, math.MaxInt, -1} { // a reader that says what cannot be
			in.n = n
			in.source <- udp("no").Data
			synctest.Wait()
		}
		in.n, in.hdr = 20, 21
		in.source <- udp("no").Data
		synctest.Wait()
		in.n, in.hdr = 0, 0
		in.source <- udp("last").Data
		x.sec <- udp("last").Data
		x.want("frames that are none are dropped", strings.Join(append(want, "last"), " "), "")
		close(in.source)
		if err := <-ended; err == nil {
			t.Error("the reader ended without an error")
		}
		if wait, leave := x.InUse(); wait != 0 || leave != 0 || len(in.read) != 105 {
			t.Errorf("%d and %d bytes are in use after %d reads", wait, leave, len(in.read))
		}
	})
}

// Without room it does not read, and a packet whose room was taken while it was read is kept until there
// is room again.
func TestServePrimaryKeepsAPacketUntilThereIsRoom(t *testing.T) {
	between(t, compare.Config{Marks: true, MaxBytes: 1 << 10}, func(x *pairing) {
		begins(t, x.Comparer)
		in := &inlet{source: make(source)}
		ctx, cancel := context.WithCancelCause(x.t.Context())
		ended := make(chan error)
		go func() { ended <- x.ServePrimary(ctx, in) }()
		synctest.Wait() // it reads
		if err := x.WritePacket(udp("other" + strings.Repeat("x", 600)).Data); err != nil {
			t.Fatal(err)
		}
		in.source <- udp("mine" + strings.Repeat("y", 600)).Data
		synctest.Wait()
		if got := len(in.read); got != 1 {
			t.Errorf("%d reads", got)
		}
		checkpoint := func(epoch uint64) {
			for _, step := range []func(uint64) error{x.Mark, x.Received, x.SecondaryMark, x.Loaded} {
				if err := step(epoch); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
		}
		checkpoint(1)
		checkpoint(2)
		x.out.mu.Lock()
		if got := x.out.got; len(got) != 2 || !strings.HasPrefix(got[0], "other") || !strings.HasPrefix(got[1], "mine") {
			t.Errorf("left: %.20q", got)
		}
		x.out.mu.Unlock()

		if err := x.WritePacket(udp("third" + strings.Repeat("x", 600)).Data); err != nil {
			t.Fatal(err)
		}
		in.source <- udp("fourth" + strings.Repeat("y", 600)).Data
		synctest.Wait()
		why := errors.New("no more")
		cancel(why)
		if err := <-ended; err != why {
			t.Errorf("%v, want %v", err, why)
		}
		checkpoint(3)
		if wait, leave := x.InUse(); wait != 0 || leave != 0 {
			t.Errorf("%d and %d bytes are in use", wait, leave)
		}
	})
}
