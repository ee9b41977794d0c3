package replication

import (
	"bytes"
	"context"
	"slices"
	"testing"
	"testing/synctest"
)

// Devices write sectors; a disk is of bytes, and one of them may be all that two writes share.
func TestWritesThatShareOneByteKeepTheirOrder(t *testing.T) {
	for name, second := range map[string]int64{"the first of the later one": 4096 + 99, "the last of the later one": 4096 - 99} {
		t.Run(name, func(t *testing.T) {
			r := newFakeRemote(newFake(1<<20, 0), 1)
			f := startForwarder(t, r, ForwarderConfig{})
			forward1(t, f, 1, 4096, 100)
			forward1(t, f, 2, second, 100)
			if n := r.outstanding(); n != 1 {
				t.Errorf("%d writes are under way, want the earlier one", n)
			}
			must(t, f.Sync())
			if b := r.disk.(*fakeDisk).data[max(4096, second)]; b != 2 {
				t.Errorf("the byte has %d, want that of the later write", b)
			}
		})
	}
}

func TestEveryWriteThatHasNoAnswerIsToldAsLost(t *testing.T) {
	for name, end := range map[string]func(*Forwarder){
		"cut": (*Forwarder).Cut, "stop": func(f *Forwarder) { must(t, f.Stop(context.Background(), false)) },
	} {
		t.Run(name, func(t *testing.T) {
			var lost []int64
			r := newFakeRemote(newFake(1<<20, 0), 1)
			f := startForwarder(t, r, ForwarderConfig{WindowRequests: 3, lost: func(off, _ int64) { lost = append(lost, off) }})
			forward1(t, f, 1, 0, 4096)
			must(t, f.Sync())
			must(t, f.Mark(context.Background(), 1))
			for off := int64(1); off <= 5; off++ {
				forward1(t, f, 2, off<<16, 4096)
			}
			must(t, f.Loaded(context.Background(), 1)) // three are sent, two are queued
			f.mu.Lock()
			f.held = true // by a Mark that waits for those above
			f.mu.Unlock()
			forward1(t, f, 3, 6<<16, 4096)
			end(f)
			slices.Sort(lost)
			if want := []int64{1 << 16, 2 << 16, 3 << 16, 4 << 16, 5 << 16, 6 << 16}; !slices.Equal(lost, want) {
				t.Errorf("lost are %v, want %v", lost, want)
			}
		})
	}
}

// keeper is a Remote that keeps every write until it is pushed.
type keeper struct {
	*fakeRemote
	kept []func()
}

func (r *keeper) StartWrite(p []byte, off int64, fua bool, done func(error)) {
	p = bytes.Clone(p)
	r.kept = append(r.kept, func() { r.fakeRemote.StartWrite(p, off, fua, done) })
}

func (r *keeper) Push() {
	for _, start := range r.kept {
		start()
	}
	r.kept = nil
}

func TestWhoeverWaitsForAWritePushesItFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &keeper{fakeRemote: newFakeRemote(newFake(1<<20, 0), 1)}
		f := startForwarder(t, r, ForwarderConfig{})
		forward1(t, f, 1, 0, 4096)
		must(t, f.answered(context.Background(), 1)) // the bubble is dead if it was not pushed
		if b := r.disk.(*fakeDisk).data[0]; b != 1 {
			t.Errorf("the other side has %d", b)
		}
	})
}

func TestHeldWritesAreSentWithinTheWindow(t *testing.T) {
	ctx := context.Background()
	r := newFakeRemote(newFake(1<<20, 0), 1)
	f := startForwarder(t, r, ForwarderConfig{WindowRequests: 2})
	must(t, f.Mark(ctx, 1))
	for i := range int64(16) {
		forward1(t, f, 1, i*8192, 4096)
	}
	must(t, f.Loaded(ctx, 1))
	must(t, f.Sync())
	if r.most != 2 {
		t.Errorf("up to %d requests were under way, want 2", r.most)
	}
}

// A repair reads what the other side has: a write that is queued here would come later.
func TestAWriteThatIsQueuedHasNotArrived(t *testing.T) {
	r := newFakeRemote(newFake(1<<20, 0), 1)
	f := startForwarder(t, r, ForwarderConfig{WindowRequests: 1})
	must(t, f.Mark(context.Background(), 1))
	forward1(t, f, 1, 0, 4096)
	forward1(t, f, 2, 65536, 4096)
	must(t, f.Loaded(context.Background(), 1)) // of which the second has no room in the window
	must(t, f.arrived(context.Background(), 65536, 4096))
	if b := r.disk.(*fakeDisk).data[65536]; b != 2 {
		t.Errorf("the other side has %d", b)
	}
}

func TestABrokenForwarderHasNothingOnItsWay(t *testing.T) {
	r := newFakeRemote(newFake(1<<20, 0), 1)
	f := startForwarder(t, r, ForwarderConfig{})
	forward1(t, f, 1, 0, 4096)
	forward1(t, f, 2, 2048, 4096) // it waits for the first
	f.Cut()
	f.mu.Lock()
	bytes, writes := f.bytes, len(f.inflight)+len(f.queue)
	f.mu.Unlock()
	if bytes != 0 || writes != 0 {
		t.Errorf("%d writes of %d bytes", writes, bytes)
	}
}
