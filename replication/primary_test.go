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

	"github.com/gocolo/lockstep/event"
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
	return newPrimaryWith(t, PrimaryConfig{InSync: true, Forward: cfg})
}

func newPrimaryWith(t *testing.T, cfg PrimaryConfig) (p *Primary, local, remote *fakeDisk, r *fakeRemote) {
	t.Helper()
	local, remote = newFake(testSize, 0x11), newFake(testSize, 0x11)
	p, err := NewPrimary(local, cfg)
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
	bus, broken := heard[event.DiskBroken]()
	p, local, _, r := newPrimaryWith(t, PrimaryConfig{Name: "d", Events: bus, InSync: true})
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
	once := []event.DiskBroken{{Mode: event.ModePrimary, Disk: "d", Operation: "write", Length: 512, Error: errLost.Error()}}
	if !slices.Equal(*broken, once) {
		t.Errorf("heard %+v, want %+v", *broken, once)
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
	write(t, p, 0x22, 0, 512)
	wantErr(t, "sync", p.Sync(), errInjected)

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
	p, err := NewPrimary(local, PrimaryConfig{Overwrite: true})
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

func TestForwardingAllocatesNothing(t *testing.T) {
	p, err := NewPrimary(newFake(testSize, 0), PrimaryConfig{InSync: true})
	must(t, err)
	must(t, p.Attach(DiskRemote(newFake(testSize, 0))))
	b := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() { p.WriteAt(b, 8192) }); n != 0 {
		t.Errorf("%v allocations for a write", n)
	}
}

// slowToClose is a Remote whose Close takes a minute.
type slowToClose struct{ Remote }

func (r slowToClose) Close() error {
	time.Sleep(time.Minute)
	return r.Remote.Close()
}

// Nobody waits for a lock while a Remote is closed, or the time of a bubble would
// stand still with them.
func TestRunNeedsNoLockWhileARemoteIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := NewPrimary(newFake(testSize, 1), PrimaryConfig{Overwrite: true})
		must(t, err)
		must(t, p.Attach(slowToClose{DiskRemote(newFake(testSize, 2))}))
		detached := make(chan error)
		go func() { detached <- p.Detach() }()
		synctest.Wait() // it sleeps in Close
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error)
		go func() { ran <- p.Run(ctx) }()
		must(t, <-detached)
		cancel()
		if err := <-ran; err != context.Canceled {
			t.Errorf("Run: %v", err)
		}
	})
}
