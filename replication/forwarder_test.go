package replication

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// startForwarder returns a running Forwarder, which is stopped with the test.
func startForwarder(t *testing.T, remote Remote, cfg ForwarderConfig) *Forwarder {
	t.Helper()
	f := NewForwarder(remote, cfg)
	must(t, f.Start(context.Background()))
	t.Cleanup(func() { f.Stop(context.Background(), false) })
	return f
}

func forward1(t *testing.T, f *Forwarder, b byte, off, n int64) {
	t.Helper()
	_, err := f.WriteAt(bytes.Repeat([]byte{b}, int(n)), off)
	must(t, err)
}

func TestAWriteThatWaitsHoldsUpNobodyElse(t *testing.T) {
	r := newFakeRemote(newFake(1<<20, 0), 1)
	f := startForwarder(t, r, ForwarderConfig{})
	forward1(t, f, 1, 0, 4096)
	forward1(t, f, 2, 2048, 4096) // overlaps the first
	forward1(t, f, 3, 65536, 4096)
	if n := r.outstanding(); n != 2 {
		t.Errorf("%d writes are under way, want the first and the third", n)
	}
	must(t, f.Sync())
	want := append(bytes.Repeat([]byte{1}, 2048), bytes.Repeat([]byte{2}, 4096)...)
	if d := r.disk.(*fakeDisk); !bytes.Equal(d.data[:6144], want) || d.data[65536] != 3 {
		t.Error("the writes are not there in the order of the calls")
	}
}

func TestAWaitingWriteThatIsReplacedIsNotSent(t *testing.T) {
	r := newFakeRemote(newFake(1<<20, 0), 1)
	f := startForwarder(t, r, ForwarderConfig{})
	for i := range 100 {
		forward1(t, f, byte(i), 4096, 4096)
	}
	must(t, f.Sync())
	if log := r.takeLog(); !slices.Equal(log, []string{"write", "write", "flush"}) {
		t.Errorf("100 writes of one block became %q", log)
	}
	if b := r.disk.(*fakeDisk).data[4096]; b != 99 {
		t.Errorf("the block has %d, want that of the last write", b)
	}

	// One in between that overlaps is passed by nobody.
	forward1(t, f, 1, 0, 4096)
	forward1(t, f, 2, 0, 4096)
	forward1(t, f, 3, 2048, 4096)
	forward1(t, f, 4, 0, 4096)
	must(t, f.Sync())
	if log := r.takeLog(); !slices.Equal(log, []string{"write", "write", "write", "write", "flush"}) {
		t.Errorf("with one in between: %q", log)
	}
	if d := r.disk.(*fakeDisk); d.data[2048] != 4 || d.data[4096] != 3 {
		t.Errorf("the order is lost: %d, %d", d.data[2048], d.data[4096])
	}

	// Who waits for stable storage gets it, also from the write that was
	// there before his.
	forward1(t, f, 5, 0, 4096)
	forward1(t, f, 6, 0, 4096)
	must(t, f.WriteFUA(bytes.Repeat([]byte{7}, 4096), 0))
	if log := r.takeLog(); !slices.Equal(log, []string{"write", "fua"}) {
		t.Errorf("with FUA: %q", log)
	}
	if d := r.disk.(*fakeDisk); d.data[0] != 7 || r.outstanding() != 0 {
		t.Errorf("WriteFUA returned before the answer: %d", d.data[0])
	}

	// Zeroes that wait are not made a write.
	forward1(t, f, 1, 0, 4096)
	must(t, f.WriteZeroes(0, 4096))
	forward1(t, f, 8, 0, 4096)
	must(t, f.Sync())
	r.takeLog()
	if d := r.disk.(*fakeDisk); d.data[0] != 8 {
		t.Errorf("the block that was zeroed and written has %d", d.data[0])
	}

	// The same while writes are held.
	must(t, f.Mark(context.Background(), 1))
	r.takeLog()
	for i := range 100 {
		forward1(t, f, byte(i), 4096, 4096)
	}
	must(t, f.Loaded(context.Background(), 1))
	must(t, f.Sync())
	if log := r.takeLog(); !slices.Equal(log, []string{"write", "flush"}) {
		t.Errorf("100 held writes of one block became %q", log)
	}
}

func TestAFlushIsSentForWhatOthersWrote(t *testing.T) {
	ctx := context.Background()
	r := newFakeRemote(newFake(1<<20, 0), 1)
	f := startForwarder(t, r, ForwarderConfig{})
	for i, tc := range []struct {
		why  string
		do   func() error
		want []string
	}{
		{"the first Sync of a link", f.Sync, []string{"flush"}},
		{"another, with nothing written since", f.Sync, nil},
		{"a Mark promises it", func() error { return f.Mark(ctx, 1) }, []string{"flush"}},
	} {
		must(t, tc.do())
		if log := r.takeLog(); !slices.Equal(log, tc.want) {
			t.Errorf("%d, %s: %q, want %q", i, tc.why, log, tc.want)
		}
	}
}

// TestOverlappingWritesKeepTheirOrder has writers of overlapping ranges, each
// with its own part that only it writes, and answers in any order.
func TestOverlappingWritesKeepTheirOrder(t *testing.T) {
	const size = 64 << 10
	for seed := range uint64(20) {
		ctx, cancel := context.WithCancel(context.Background())
		r := newFakeRemote(newFake(size, 0), seed)
		f := startForwarder(t, r, ForwarderConfig{WindowRequests: 8})
		var run sync.WaitGroup
		run.Go(func() { f.Run(ctx) })
		rng := rand.New(rand.NewPCG(seed, 2))
		want := make([]byte, size)
		for i := range 400 {
			off := rng.Int64N(16) * 512
			n := (1 + rng.Int64N(4)) * 512
			b := byte(1 + i%255)
			switch rng.IntN(8) {
			case 0:
				must(t, f.WriteZeroes(off, n))
				b = 0
			case 1:
				must(t, f.WriteFUA(bytes.Repeat([]byte{b}, int(n)), off))
			case 2:
				must(t, f.Sync())
				fallthrough
			default:
				forward1(t, f, b, off, n)
			}
			copy(want[off:], bytes.Repeat([]byte{b}, int(n)))
		}
		must(t, f.Sync())
		if got := r.disk.(*fakeDisk).data; !bytes.Equal(got, want) {
			t.Fatalf("seed %d: the other side differs", seed)
		}
		cancel()
		run.Wait()
	}
}

func TestForwardingAWriteAllocatesNothing(t *testing.T) {
	f := startForwarder(t, DiskRemote(nullDisk(1<<30)), ForwarderConfig{})
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(200, func() {
		f.WriteAt(p, 0)
		f.WriteAt(p, 8192)
	}); n > 0 {
		t.Errorf("%v allocations for two writes", n)
	}
}

// What is sent in the place of two writes is as stable as either has to be.
func TestAWriteThatReplacesOneThatHasToBeStableIsStableToo(t *testing.T) {
	r := newFakeRemote(newFake(1<<20, 0), 1)
	f := startForwarder(t, r, ForwarderConfig{})
	forward1(t, f, 1, 0, 4096)
	seq, err := f.send(bytes.Repeat([]byte{2}, 4096), 0, 4096, true) // it waits for the first
	must(t, err)
	forward1(t, f, 3, 0, 4096)
	must(t, f.answered(context.Background(), seq))
	if log := r.takeLog(); !slices.Equal(log, []string{"write", "fua"}) {
		t.Errorf("%q", log)
	}
	if b := r.disk.(*fakeDisk).data[0]; b != 3 {
		t.Errorf("the block has %d, want that of the last write", b)
	}
}

// A flush says nothing of the writes that were sent after it.
func TestAFlushThatIsUnderWayIsNotThatOfLaterWrites(t *testing.T) {
	ctx := context.Background()
	r := newFakeRemote(newFake(1<<20, 0), 1)
	f := startForwarder(t, r, ForwarderConfig{})
	forward1(t, f, 1, 0, 4096)
	must(t, f.answered(ctx, 1))
	f.mu.Lock()
	wait := f.startFlush(f.seq)
	f.mu.Unlock()
	forward1(t, f, 2, 8192, 4096)
	f.mu.Lock()
	err := wait(ctx)
	f.mu.Unlock()
	must(t, err)
	must(t, f.Sync())
	if log := r.takeLog(); !slices.Equal(log, []string{"write", "flush", "write", "flush"}) {
		t.Errorf("%q", log)
	}
}
