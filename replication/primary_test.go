package replication

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestPrimary has the cases of QEMU's tests/unit/test-replication.c by their
// names, for the node that forwards.
func TestPrimary(t *testing.T) {
	ctx := context.Background()
	newForwarder := func() (*Forwarder, *fakeDisk) {
		disk := newFake(testSize, 0x11)
		return NewForwarder(DiskRemote(disk), ForwarderConfig{}), disk
	}
	t.Run("read", func(t *testing.T) {
		f, _ := newForwarder()
		_, err := f.ReadAt(make([]byte, testSize), 0)
		wantErr(t, "a forwarder has nothing to read", err, ErrWriteOnly)
	})
	t.Run("write", func(t *testing.T) {
		f, _ := newForwarder()
		_, err := f.WriteAt(make([]byte, testSize), 0)
		wantErr(t, "not before the start", err, ErrNotRunning)
	})
	t.Run("start", func(t *testing.T) {
		f, disk := newForwarder()
		must(t, f.Start(ctx))
		_, err := f.ReadAt(make([]byte, testSize), 0)
		wantErr(t, "read", err, ErrWriteOnly)
		write(t, f, 0x22, 0, testSize)
		must(t, f.Sync())
		want(t, "forwarded", disk, 0x22, 0, testSize)
		wantErr(t, "a second start", f.Start(ctx), ErrRunning)
	})
	t.Run("stop", func(t *testing.T) {
		f, _ := newForwarder()
		wantErr(t, "stop before start", f.Stop(ctx, true), ErrNotRunning)
		must(t, f.Start(ctx))
		must(t, f.Stop(ctx, true))
		_, err := f.WriteAt(make([]byte, 512), 0)
		wantErr(t, "a write after the stop", err, ErrNotRunning)
		must(t, f.Start(ctx))
		must(t, f.Stop(ctx, true))
	})
	t.Run("do_checkpoint", func(t *testing.T) {
		f, _ := newForwarder()
		must(t, f.Start(ctx))
		must(t, f.Checkpoint(ctx, 1))
	})
	t.Run("get_error_all", func(t *testing.T) {
		f, _ := newForwarder()
		wantErr(t, "before the start", f.Err(), ErrNotRunning)
		must(t, f.Start(ctx))
		must(t, Group{f}.Err())
	})
}

// newPrimary returns a started Primary whose secondary disk has the same
// content, behind a fakeRemote.
func newPrimary(t *testing.T, cfg ForwarderConfig) (p *Primary, local, remote *fakeDisk, r *fakeRemote) {
	t.Helper()
	local, remote = newFake(testSize, 0x11), newFake(testSize, 0x11)
	p, err := NewPrimary(local, PrimaryConfig{InSync: true, Forward: cfg})
	must(t, err)
	r = newFakeRemote(remote, 1)
	must(t, p.Attach(r))
	must(t, p.Start(context.Background()))
	return p, local, remote, r
}

func TestMarkPutsAllWritesOnTheSecondary(t *testing.T) {
	ctx := context.Background()
	p, local, remote, r := newPrimary(t, ForwarderConfig{})
	for i := range int64(64) {
		write(t, p, byte(i), i*1000, 3000) // each overlaps the two before
	}
	must(t, p.WriteZeroes(5000, 5000))
	must(t, p.Trim(20000, 100))
	must(t, p.Mark(ctx, 1))
	wantBytes(t, "both disks are the same", remote.data, local.data, 0)
	if log := r.takeLog(); log[len(log)-1] != "flush" {
		t.Errorf("the last request is %q, want a flush", log[len(log)-1])
	}
	if remote.syncs == 0 || local.syncs == 0 {
		t.Errorf("%d syncs of the secondary disk, %d of the local", remote.syncs, local.syncs)
	}
}

func TestWritesAfterTheMarkAreHeldInOrderUntilLoaded(t *testing.T) {
	ctx := context.Background()
	p, local, remote, r := newPrimary(t, ForwarderConfig{})
	write(t, p, 0x22, 0, 512)
	must(t, p.Mark(ctx, 1))
	write(t, p, 0x33, 0, 512) // answered: the guest need not wait
	write(t, p, 0x44, 256, 512)
	must(t, p.WriteZeroes(300, 10))
	must(t, p.WriteFUA([]byte{0x55}, 4096))
	must(t, p.Sync())
	if n := r.outstanding(); n != 0 {
		t.Fatalf("%d requests were sent after the mark", n)
	}
	want(t, "the secondary disk is that of the mark", remote, 0x22, 0, 512)
	want(t, "the guest reads what it wrote", p, 0x33, 0, 256)
	wantErr(t, "the wrong epoch", p.Loaded(ctx, 2), ErrEpoch)
	wantErr(t, "a mark before loaded", p.Mark(ctx, 2), ErrEpoch)
	must(t, p.Loaded(ctx, 1))
	must(t, p.Mark(ctx, 2))
	wantBytes(t, "both disks are the same", remote.data, local.data, 0)
	if !slices.Contains(r.takeLog(), "fua") {
		t.Error("a held FUA write was sent without FUA")
	}
}

func TestHoldIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		p, _, remote, _ := newPrimary(t, ForwarderConfig{HoldBytes: 4 * 4096})
		must(t, p.Mark(ctx, 1))
		var wg sync.WaitGroup
		written := 0
		wg.Go(func() {
			for i := range int64(8) {
				write(t, p, 0x22, i*4096, 4096)
				written++
			}
		})
		synctest.Wait()
		if written != 3 {
			t.Errorf("%d writes went through, want 3 within the bound", written)
		}
		must(t, p.Loaded(ctx, 1))
		wg.Wait()
		must(t, p.Mark(ctx, 2))
		want(t, "all arrive", remote, 0x22, 0, 8*4096)
	})
}

func TestStopReleasesThoseWhoAreHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		p, local, remote, _ := newPrimary(t, ForwarderConfig{HoldBytes: 4096})
		must(t, p.Mark(ctx, 1))
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range int64(8) {
				write(t, p, 0x22, i*4096, 4096)
			}
		})
		synctest.Wait()
		must(t, p.Stop(ctx, true))
		wg.Wait()
		want(t, "the guest's writes are on the local disk", local, 0x22, 0, 8*4096)
		want(t, "and not on the secondary", remote, 0x11, 0, 8*4096)
		must(t, p.Err())
	})
}

func TestWindowIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		p, _, remote, r := newPrimary(t, ForwarderConfig{WindowRequests: 8})
		r.setHang(true)
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range int64(64) {
				write(t, p, 0x22, i*4096, 4096)
			}
		})
		synctest.Wait()
		if n := r.outstanding(); n != 8 {
			t.Errorf("%d requests outstanding, want 8", n)
		}
		r.setHang(false)
		wg.Wait()
		must(t, p.Mark(ctx, 1))
		want(t, "all arrive", remote, 0x22, 0, 64*4096)

		p, _, _, r = newPrimary(t, ForwarderConfig{WindowBytes: 16384})
		r.setHang(true)
		wg.Go(func() {
			for i := range int64(8) {
				write(t, p, 0x22, i*4096, 4096)
			}
		})
		synctest.Wait()
		if n := r.outstanding(); n != 3 {
			t.Errorf("%d requests outstanding, want 3 within the bytes", n)
		}
		r.setHang(false)
		wg.Wait()
	})
}

func TestRunHandlesAnswersWhileNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _, remote, r := newPrimary(t, ForwarderConfig{})
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { wantErr(t, "run", p.Run(ctx), context.Canceled) })
		for i := range 4 {
			write(t, p, byte(i), 0, 512) // queued behind each other
		}
		synctest.Wait()
		want(t, "the last write", remote, 3, 0, 512)
		must(t, p.Mark(ctx, 1))
		must(t, p.Loaded(ctx, 1))
		r.lose()
		synctest.Wait()
		wantErr(t, "the loss is noticed", p.Err(), ErrBroken)
		cancel()
		wg.Wait()
	})
}

func TestBrokenStaysBrokenAndTheGuestDoesNotNotice(t *testing.T) {
	ctx := context.Background()
	var told []error
	p, local, _, r := newPrimary(t, ForwarderConfig{OnBroken: func(err error) { told = append(told, err) }})
	write(t, p, 0x22, 0, 512)
	r.lose()
	write(t, p, 0x33, 0, 512)
	must(t, p.Sync())
	must(t, p.WriteFUA([]byte{1}, 4096))
	want(t, "the guest's disk", local, 0x33, 0, 512)
	wantErr(t, "err", p.Err(), ErrBroken)
	wantErr(t, "its cause", p.Err(), errLost)
	wantErr(t, "the next checkpoint", p.Checkpoint(ctx, 1), ErrBroken)
	wantErr(t, "the next mark", p.Mark(ctx, 1), ErrBroken)
	wantErr(t, "a flush is not the guest's error", p.Sync(), nil)
	var be *BrokenError
	if len(told) != 1 || !errors.As(told[0], &be) || be.Op != "write" || be.Len != 512 {
		t.Errorf("told %v, want once, that a write of 512 bytes was lost", told)
	}
	must(t, p.Stop(ctx, true))
	must(t, p.Err())
}

func TestSilentSecondaryIsBrokenAfterTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		p, _, _, r := newPrimary(t, ForwarderConfig{Timeout: 3 * time.Second, WindowRequests: 2})
		r.setHang(true)
		write(t, p, 0x22, 0, 512)
		time.Sleep(2 * time.Second)
		must(t, p.Err())
		write(t, p, 0x22, 512, 512)
		write(t, p, 0x22, 1024, 512) // waits for room, and then no more
		wantErr(t, "err", p.Err(), ErrTimeout)
		wantErr(t, "mark", p.Mark(ctx, 1), ErrTimeout)

		p, _, _, r = newPrimary(t, ForwarderConfig{Timeout: 3 * time.Second})
		write(t, p, 0x22, 0, 512)
		must(t, p.Mark(ctx, 1))
		must(t, p.Loaded(ctx, 1))
		r.setHang(true)
		write(t, p, 0x22, 0, 512)
		wantErr(t, "mark", p.Mark(ctx, 2), ErrTimeout)
		var be *BrokenError
		if !errors.As(p.Err(), &be) || be.Op != "write" {
			t.Errorf("error %v does not tell which request", p.Err())
		}
	})
}

func TestMarkEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _, _, r := newPrimary(t, ForwarderConfig{})
		r.setHang(true)
		write(t, p, 0x22, 0, 512)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		wantErr(t, "mark", p.Mark(ctx, 1), context.DeadlineExceeded)
		must(t, p.Stop(context.Background(), true))
	})
}

func TestErrorsOfTheLocalDiskAreTheGuests(t *testing.T) {
	ctx := context.Background()
	p, local, remote, _ := newPrimary(t, ForwarderConfig{})
	local.failWrite = func(off int64, n int) error {
		copy(local.data[off:], bytes.Repeat([]byte{0x99}, n/2)) // half of it got there
		return errInjected
	}
	_, err := p.WriteAt(make([]byte, 1024), 0)
	wantErr(t, "write", err, errInjected)
	local.failWrite = nil
	must(t, p.Mark(ctx, 1))
	wantBytes(t, "the secondary has what the guest can read", remote.data, local.data, 0)
	local.failSync = func() error { return errInjected }
	wantErr(t, "sync", p.Sync(), errInjected)
	must(t, p.Err())

	p, local, _, _ = newPrimary(t, ForwarderConfig{})
	local.failWrite = func(int64, int) error { return errInjected }
	local.failRead = func(int64, int) error { return errInjected }
	_, err = p.WriteAt(make([]byte, 1024), 0)
	wantErr(t, "write", err, errInjected)
	wantErr(t, "nobody knows what the disk has", p.Err(), ErrBroken)
}

func TestErrorsOfTheSecondaryAreNotTheGuests(t *testing.T) {
	p, _, remote, _ := newPrimary(t, ForwarderConfig{})
	remote.failWrite = func(int64, int) error { return errInjected }
	write(t, p, 0x22, 0, 512)
	must(t, p.Sync())
	wantErr(t, "err", p.Err(), errInjected)

	p, _, remote, _ = newPrimary(t, ForwarderConfig{})
	remote.failSync = func() error { return errInjected }
	write(t, p, 0x22, 0, 512)
	must(t, p.Sync())
	wantErr(t, "err", p.Err(), errInjected)
}

func TestPrimaryWorksAlone(t *testing.T) {
	ctx := context.Background()
	local := newFake(testSize, 0x11)
	p, err := NewPrimary(local, PrimaryConfig{})
	must(t, err)
	write(t, p, 0x22, 0, 512)
	want(t, "read", p, 0x22, 0, 512)
	must(t, p.Sync())
	wantErr(t, "start", p.Start(ctx), ErrNotSynchronised)
	wantErr(t, "mark", p.Mark(ctx, 0), ErrNotRunning)
	wantErr(t, "synchronise", p.Synchronise(ctx, SyncConfig{}), ErrNotSynchronised)
	wantErr(t, "another size", p.Attach(DiskRemote(newFake(testSize+512, 0))), ErrSize)
	must(t, p.Attach(DiskRemote(newFake(testSize, 0))))
	wantErr(t, "start", p.Start(ctx), ErrNotSynchronised)
}

func TestSynchroniseCopiesWhileTheGuestWrites(t *testing.T) {
	ctx := context.Background()
	const size = 4<<20 + 512*3
	local, remote := newFake(size, 0), newFake(size, 0xff)
	for i := range local.data {
		local.data[i] = byte(i >> 9)
	}
	p, err := NewPrimary(local, PrimaryConfig{})
	must(t, err)
	r := newFakeRemote(remote, 2)
	must(t, p.Attach(r))
	var seen []Progress
	wrote := int64(0)
	err = p.Synchronise(ctx, SyncConfig{Interval: 1, OnProgress: func(pr Progress) {
		seen = append(seen, pr)
		write(t, p, 0x77, wrote*300_000%size, 100)
		write(t, p, 0x78, size-1000-wrote*300_000%size/2, 1000)
		wrote++
	}})
	must(t, err)
	if len(seen) < 3 || seen[0].Remaining != size || seen[len(seen)-1].Remaining != 0 || seen[0].Total != size {
		t.Errorf("progress %+v", seen)
	}
	must(t, p.Start(ctx))
	must(t, p.Mark(ctx, 0))
	wantBytes(t, "the secondary is a copy", remote.data, local.data, 0)
}

func TestSynchroniseResumesAfterALostConnection(t *testing.T) {
	ctx := context.Background()
	const size = 8 << 20
	local, remote := newFake(size, 0x22), newFake(size, 0)
	p, err := NewPrimary(local, PrimaryConfig{Forward: ForwarderConfig{WindowBytes: 2 << 20}})
	must(t, err)
	r := newFakeRemote(remote, 3)
	must(t, p.Attach(r))
	err = p.Synchronise(ctx, SyncConfig{Interval: 1, OnProgress: func(pr Progress) {
		if pr.Remaining <= size/2 {
			r.lose()
		}
	}})
	wantErr(t, "synchronise", err, ErrBroken)
	must(t, p.Attach(newFakeRemote(remote, 4)))
	var total int64
	must(t, p.Synchronise(ctx, SyncConfig{OnProgress: func(pr Progress) { total = pr.Total }}))
	if total > size-2<<20 {
		t.Errorf("%d bytes were copied again out of %d", total, size)
	}
	wantBytes(t, "the secondary is a copy", remote.data, local.data, 0)
}

func TestAfterABreakOnlyWhatMayDifferIsCopied(t *testing.T) {
	ctx := context.Background()
	p, local, remote, r := newPrimary(t, ForwarderConfig{})
	const c = ChunkSize
	write(t, p, 1, 0*c, 512)
	must(t, p.Mark(ctx, 1))
	write(t, p, 2, 1*c, 512) // held
	must(t, p.Loaded(ctx, 1))
	write(t, p, 3, 2*c, 512)
	must(t, p.Mark(ctx, 2)) // never loaded
	write(t, p, 4, 3*c, 512)
	r.lose()
	write(t, p, 5, 4*c, 512)
	must(t, p.Stop(ctx, true))
	write(t, p, 6, 5*c, 512)
	must(t, p.Attach(newFakeRemote(remote, 5)))
	if n := p.Dirty(); n != 5*c {
		t.Errorf("%d chunks are to be copied, want the 5 written since the last checkpoint", n/c)
	}
	wantErr(t, "start", p.Start(ctx), ErrNotSynchronised)
	extra := NewBitmap(testSize)
	extra.Set(8*c, 1)
	must(t, p.Unsynchronise(extra))
	copied := int64(0)
	must(t, p.Synchronise(ctx, SyncConfig{OnProgress: func(pr Progress) { copied = pr.Copied }}))
	if copied != 6*c {
		t.Errorf("%d chunks copied, want 6", copied/c)
	}
	must(t, p.Start(ctx))
	wantBytes(t, "the secondary is a copy", remote.data, local.data, 0)
}

func TestSynchroniseSendsOnlyWhatDiffersByItsSum(t *testing.T) {
	ctx := context.Background()
	const size = 3<<20 + 512
	local, remote := newFake(size, 0x22), newFake(size, 0x22)
	remote.data[ChunkSize] = 1
	remote.data[size-1] = 1
	sums := NewSums(remote)
	differ, err := Verify(ctx, local, sums)
	must(t, err)
	if differ.Bytes() != ChunkSize+512 || !differ.Any(ChunkSize, 1) || !differ.Any(size-1, 1) {
		t.Errorf("verify finds %d bytes", differ.Bytes())
	}
	var me *MismatchError
	if err := Preflight(ctx, local, sums, 4); !errors.As(err, &me) || me.Len != 512 {
		t.Errorf("preflight: %v, want the last chunk", err)
	}
	p, err := NewPrimary(local, PrimaryConfig{})
	must(t, err)
	must(t, p.Attach(newFakeRemote(remote, 6)))
	var last Progress
	must(t, p.Synchronise(ctx, SyncConfig{Sums: sums, OnProgress: func(pr Progress) { last = pr }}))
	if last.Copied != ChunkSize+512 || last.Same+last.Copied != size {
		t.Errorf("progress %+v", last)
	}
	must(t, Preflight(ctx, local, sums, 100))
	wantBytes(t, "the secondary is a copy", remote.data, local.data, 0)
}

func TestForwardingAllocatesNothing(t *testing.T) {
	p, err := NewPrimary(newFake(testSize, 0), PrimaryConfig{InSync: true})
	must(t, err)
	must(t, p.Attach(DiskRemote(newFake(testSize, 0))))
	b := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() { p.WriteAt(b, 8192) }); n != 0 {
		t.Errorf("%v allocations for a write", n)
	}
}

func TestBitmapRuns(t *testing.T) {
	const size = 200*ChunkSize + 512
	b := NewBitmap(size)
	if !b.Empty() || b.Bytes() != 0 {
		t.Error("a new bitmap is not empty")
	}
	b.Set(63*ChunkSize+1, 2*ChunkSize)
	b.Set(size-1, 1)
	if n := b.Bytes(); n != 3*ChunkSize+512 {
		t.Errorf("%d bytes", n)
	}
	if at, n := b.next(0, 2*ChunkSize); at != 63*ChunkSize || n != 2*ChunkSize {
		t.Errorf("run of %d at %d", n, at)
	}
	if at, n := b.next(66*ChunkSize, 1<<40); at != 200*ChunkSize || n != 512 {
		t.Errorf("run of %d at %d", n, at)
	}
	if n, set := b.run(63*ChunkSize+5, 10*ChunkSize); n != 3*ChunkSize-5 || !set {
		t.Errorf("run %d %v", n, set)
	}
	b.Clear(0, size)
	if !b.Empty() {
		t.Error("not empty after Clear")
	}
	wantErr(t, "or", b.Or(NewBitmap(1)), ErrSize)
}
