package compare_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
)

// composes returns a compose function for a packet, and how often it was called.
func composes(p []byte) (compose func([]byte) bool, calls *int) {
	calls = new(int)
	return func(b []byte) bool { *calls++; return copy(b, p) == len(b) }, calls
}

// Whatever becomes of a packet, it is the same whether it was written or composed.
func TestAComposedPacketIsTakenAsAWrittenOne(t *testing.T) {
	for name, cfg := range map[string]compare.Config{
		"default": {Marks: true, LowerAcks: true}, "strict": {Marks: true, Strict: true},
	} {
		t.Run(name, func(t *testing.T) {
			var left []string
			for way := range 3 {
				between(t, cfg, func(x *pairing) {
					write := func(p []byte) {
						t.Helper()
						err := error(nil)
						switch way {
						case 0:
							err = x.WritePacket(p)
						case 1:
							compose, _ := composes(p)
							err = x.ComposePacket(len(p), 0, compose)
						case 2:
							err = x.ComposeAtMost(4096+65536, 0, func(b []byte) int { return copy(b, p) })
						}
						if err != nil {
							t.Error(err)
						}
						synctest.Wait()
					}
					round := func() {
						write(udp("passes").Data)
						x.Mark(0)
						x.Received(0)
						x.SecondaryMark(0)
						x.Loaded(0)
						s := seg{port: 9, seq: 1, ack: 1, flags: push, data: "waits for its twin"}
						write(s.frame().Data)
						x.sec <- s.frame().Data
						s.seq += uint32(len(s.data))
						s.data = "has a twin that waits"
						x.sec <- s.frame().Data
						synctest.Wait()
						write(s.frame().Data)
						write(udp("waits").Data)
						x.sec <- udp("waits").Data
						s.seq += uint32(len(s.data))
						s.data = "waits for a checkpoint"
						write(s.frame().Data)
						write(udp("waits for it too").Data)
						x.Mark(1)
						x.Received(1)
						x.Failover()
						synctest.Wait()
					}
					round()
					got := strings.Join(x.out.got, ", ")
					if left = append(left, got); len(x.out.got) != 6 {
						t.Errorf("%d packets have left: %s", len(x.out.got), got)
					}
					round()
					kept := x.Kept()
					for range 20 {
						round()
					}
					if wait, leave := x.InUse(); wait != 0 || leave != 0 || x.Kept() > 2*kept {
						t.Errorf("%d and %d bytes are in use, %d are kept, %d at first", wait, leave, x.Kept(), kept)
					}
				})
			}
			if left[0] != left[1] || left[0] != left[2] {
				t.Errorf("written: %s\ncomposed: %s\ncomposed in memory for more: %s", left[0], left[1], left[2])
			}
		})
	}
}

// places notes where the packets are that leave.
type places []*byte

func (s *places) WritePacket(p []byte) error {
	*s = append(*s, &p[0])
	return nil
}

// A large segment is spared the copy: it waits, and leaves, where it was composed, and so
// does one whose twin has come before.
func TestASegmentLeavesWhereItWasComposed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := compare.NewComparer(compare.Config{Marks: true, LowerAcks: true})
		var left places
		sec := make(source)
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() { c.Run(ctx, &left) })
		group.Go(func() { c.ServeSecondary(ctx, sec) })
		for _, step := range []func(uint64) error{c.Mark, c.Received, c.SecondaryMark, c.Loaded} {
			if err := step(0); err != nil {
				t.Fatal(err)
			}
		}
		s := seg{port: 9, seq: 1, ack: 1, flags: push, data: strings.Repeat("d", 60000)}
		var places places
		for _, first := range []bool{true, true, false} { // the first of a connection may be copied
			p := s.frame().Data
			compose := func(b []byte) bool { places.WritePacket(b); copy(b, p); return true }
			if !first {
				sec <- p
				synctest.Wait()
			}
			if err := c.ComposePacket(len(p), 0, compose); err != nil {
				t.Error(err)
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
		if len(left) != 3 || left[1] != places[1] || left[2] != places[2] {
			t.Errorf("composed at %v, left from %v", places, left)
		}
	})
}

func TestNothingIsTakenOfWhatIsNotComposed(t *testing.T) {
	between(t, compare.Config{Marks: true, MaxBytes: 1 << 10}, func(x *pairing) {
		x.Mark(0)
		x.Received(0)
		compose, calls := composes(make([]byte, 1<<20))
		for _, n := range [][2]int{{0, 0}, {-1, 0}, {100, 101}, {100, -1}, {1 << 17, 0}} {
			if err := x.ComposePacket(n[0], n[1], compose); err != compare.ErrFrame {
				t.Errorf("%d bytes, %d of a header: %v", n[0], n[1], err)
			}
		}
		if *calls != 0 {
			t.Errorf("%d calls", *calls)
		}
		if err := x.ComposePacket(100, 0, func([]byte) bool { return false }); err != compare.ErrFrame {
			t.Errorf("no packet after all: %v", err)
		}
		p := udp(strings.Repeat("x", 600)).Data
		compose, calls = composes(p)
		if err := x.ComposePacket(len(p), 0, compose); err != nil {
			t.Fatal(err)
		}
		kept := x.Kept()
		if err := x.ComposePacket(len(p), 0, compose); err != compare.ErrFull || *calls != 2 {
			t.Errorf("%v after %d calls, want ErrFull", err, *calls)
		}
		x.Mark(1)
		x.Received(1)
		synctest.Wait()
		<-x.Room()
		if wait, leave := x.InUse(); wait != 0 || leave != 0 || x.Kept() < kept || len(x.out.got) != 1 {
			t.Errorf("%d and %d bytes are in use, %d are kept, %d before; left: %q", wait, leave, x.Kept(), kept, x.out.got)
		}
	})
}

// A Comparer whose network takes nothing calls nobody for a packet that it has no room for.
func TestNoPacketIsComposedForAFullNetwork(t *testing.T) {
	between(t, compare.Config{MaxBytes: 1 << 10}, func(x *pairing) {
		x.out.gate = make(chan struct{})
		p := udp(strings.Repeat("x", 600)).Data
		compose, calls := composes(p)
		if err := x.ComposePacket(len(p), 0, compose); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // Run is at the gate: what it does as it begins offers room too
		if err := x.ComposePacket(len(p), 0, compose); err != compare.ErrFull || *calls != 1 {
			t.Errorf("%v after %d calls", err, *calls)
		}
		close(x.out.gate)
		<-x.Room()
		if err := x.ComposePacket(len(p), 0, compose); err != nil || *calls != 2 {
			t.Errorf("%v after %d calls", err, *calls)
		}
		synctest.Wait()
	})
}

// Packets that are taken while another is composed count before that one does.
func TestAPacketForWhichThereIsNoRoomAnyMoreIsNotTaken(t *testing.T) {
	between(t, compare.Config{MaxBytes: 1 << 10}, func(x *pairing) {
		x.out.gate = make(chan struct{})
		p := udp(strings.Repeat("x", 600)).Data
		if err := x.ComposePacket(len(p), 0, func(b []byte) bool {
			if err := x.WritePacket(p); err != nil {
				t.Error(err)
			}
			return copy(b, p) == len(b)
		}); err != compare.ErrFull {
			t.Errorf("%v, want ErrFull", err)
		}
		close(x.out.gate)
		<-x.Room()
		synctest.Wait()
		if wait, leave := x.InUse(); wait != 0 || leave != 0 || len(x.out.got) != 1 {
			t.Errorf("%d and %d bytes are in use, %d packets have left", wait, leave, len(x.out.got))
		}
	})
}

func TestComposedPacketsAllocateNothing(t *testing.T) {
	x := newRig(t, compare.Config{})
	s := seg{port: 9, seq: 1, ack: 1, flags: push, data: strings.Repeat("d", 60000)}.frame()
	seq := uint32(1)
	if n := testing.AllocsPerRun(1000, func() {
		d := x.Draft(len(s.Data))
		copy(d.Data(), s.Data)
		setSeq(compare.Frame{Data: d.Data()}, seq)
		setSeq(s, seq)
		seq += 60000
		x.Composed(d, 0, time.Now())
		if r := x.Secondary(s, x.now); len(r.Release) != 1 {
			t.Fatal("not released")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
