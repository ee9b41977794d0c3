package replication

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/event"
)

func TestSynchroniseCopiesWhileTheGuestWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		const size = 4<<20 + 512*3
		local, remote := newFake(size, 0), newFake(size, 0xff)
		for i := range local.data {
			local.data[i] = byte(i >> 9)
		}
		p, err := NewPrimary(local, PrimaryConfig{Overwrite: true})
		must(t, err)
		must(t, p.Attach(newFakeRemote(remote, 2)))
		copied := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := int64(0); ; i++ {
				select {
				case <-copied:
					if i < 40 {
						t.Errorf("the guest has written %d times while its disk was copied", i)
					}
					return
				case <-time.After(100 * time.Millisecond):
				}
				write(t, p, 0x77, i*300_000%size, 100)
				write(t, p, 0x78, size-1000-i*300_000%size/2, 1000)
			}
		})
		must(t, p.Synchronise(ctx, SyncConfig{BytesPerSecond: 1 << 20}))
		close(copied)
		wg.Wait()
		must(t, p.Start(ctx))
		must(t, p.Mark(ctx, 0))
		wantBytes(t, "the secondary is a copy", remote.data, local.data, 0)
	})
}

func TestSynchroniseTellsHowFarItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		const size = 4 << 20
		var bus event.Bus
		var got []event.Event
		bus.SubscribeAll(func(r event.Record) { got = append(got, r.Event) })
		p, err := NewPrimary(newFake(size, 1), PrimaryConfig{Overwrite: true, Name: "d", Events: &bus})
		must(t, err)
		remote := newFake(size, 0)
		must(t, p.Attach(newFakeRemote(remote, 2)))
		must(t, p.Synchronise(ctx, SyncConfig{BytesPerSecond: 1 << 20, Interval: 2 * time.Second}))
		progress := func(phase event.SyncPhase, copied, rate int64, at time.Duration) event.Event {
			return event.DiskSyncProgress{Disk: "d", Phase: phase, Total: size, Copied: copied, Remaining: size - copied, Rate: rate, ElapsedNS: at.Nanoseconds()}
		}
		want := []event.Event{
			progress(event.SyncCopy, 0, 0, 0),
			progress(event.SyncCopy, 3<<20, 3<<20/2, 2*time.Second), // the third of the steps, which begins when it is due
			progress(event.SyncFlush, 4<<20, 1<<20, 4*time.Second),
			event.DiskSynchronised{Disk: "d", Copied: size, ElapsedNS: (4 * time.Second).Nanoseconds()},
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("events of the first synchronisation (-want +got):\n%s", d)
		}

		// The secondary is lost, and comes back.
		must(t, p.Start(ctx))
		write(t, p, 2, 0, 512)
		must(t, p.Stop(ctx, true))
		must(t, p.Attach(newFakeRemote(remote, 3)))
		got = nil
		must(t, p.Synchronise(ctx, SyncConfig{}))
		if d := cmp.Diff(event.Event(event.DiskResynchronised{Disk: "d", Copied: ChunkSize}), got[len(got)-1]); d != "" {
			t.Errorf("the last event of the second (-want +got):\n%s", d)
		}
	})
}

func TestSynchroniseResumesAfterALostConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		const size = 8 << 20
		bus, all := heard[event.Event]()
		local, remote := newFake(size, 0x22), newFake(size, 0)
		p, err := NewPrimary(local, PrimaryConfig{Overwrite: true, Events: bus, Forward: ForwarderConfig{WindowBytes: 2 << 20}})
		must(t, err)
		r := newFakeRemote(remote, 3)
		must(t, p.Attach(r))
		time.AfterFunc(4500*time.Millisecond, r.lose)
		wantErr(t, "synchronise", p.Synchronise(ctx, SyncConfig{BytesPerSecond: 1 << 20}), ErrBroken)
		synctest.Wait() // for the one who has lost it
		if _, ok := (*all)[len(*all)-1].(event.DiskBroken); !ok {
			t.Errorf("the last event is %+v, want that the disk is broken", (*all)[len(*all)-1])
		}
		must(t, p.Attach(newFakeRemote(remote, 4)))
		*all = nil
		must(t, p.Synchronise(ctx, SyncConfig{}))
		if first := (*all)[0].(event.DiskSyncProgress); first.Total > size-2<<20 {
			t.Errorf("%d bytes were copied again out of %d", first.Total, size)
		}
		if _, ok := (*all)[len(*all)-1].(event.DiskSynchronised); !ok {
			t.Errorf("the last event is %+v, want that the disk is synchronised for the first time", (*all)[len(*all)-1])
		}
		wantBytes(t, "the secondary is a copy", remote.data, local.data, 0)
	})
}

func TestAfterABreakOnlyWhatMayDifferIsCopied(t *testing.T) {
	ctx := context.Background()
	bus, done := heard[event.DiskResynchronised]()
	p, local, remote, r := newPrimaryWith(t, PrimaryConfig{InSync: true, Events: bus})
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
	wrong := newFakeRemote(remote, 6)
	must(t, p.Attach(wrong))
	must(t, p.Detach()) // a change of mind
	must(t, p.Detach())
	if wrong.lost == nil {
		t.Error("a remote that was given up is not closed")
	}
	must(t, p.Attach(newFakeRemote(remote, 5)))
	if n := p.Dirty(); n != 5*c {
		t.Errorf("%d chunks are to be copied, want the 5 written since the last checkpoint", n/c)
	}
	wantErr(t, "start", p.Start(ctx), ErrNotSynchronised)
	extra := NewBitmap(testSize)
	extra.Set(8*c, 1)
	must(t, p.Unsynchronise(extra))
	must(t, p.Synchronise(ctx, SyncConfig{}))
	if len(*done) != 1 || (*done)[0].Copied != 6*c {
		t.Errorf("heard %+v, want 6 chunks", *done)
	}
	must(t, p.Start(ctx))
	wantErr(t, "a detach while it runs", p.Detach(), ErrRunning)
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
	bus, done := heard[event.DiskSynchronised]()
	p, err := NewPrimary(local, PrimaryConfig{Overwrite: true, Events: bus})
	must(t, err)
	must(t, p.Attach(newFakeRemote(remote, 6)))
	must(t, p.Synchronise(ctx, SyncConfig{Sums: sums}))
	if len(*done) != 1 || (*done)[0].Copied != ChunkSize+512 || (*done)[0].Same != size-ChunkSize-512 {
		t.Errorf("heard %+v, want that one chunk and the end were copied", *done)
	}
	must(t, Preflight(ctx, local, sums, 100))
	wantBytes(t, "the secondary is a copy", remote.data, local.data, 0)
}

// countedFile counts what is read of an image.
type countedFile struct {
	*File
	read atomic.Int64
}

func (d *countedFile) ReadAt(p []byte, off int64) (int, error) {
	d.read.Add(int64(len(p)))
	return d.File.ReadAt(p, off)
}

// The first synchronisation of a sparse image costs what is in it.
func TestHolesAreNotReadOnEitherSide(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("holes are not told here")
	}
	const size, data = 4 << 30, 3 * ChunkSize
	for name, dirtyThere := range map[string]bool{"onto a hole": false, "onto data": true} {
		for _, sums := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", sums ", sums), func(t *testing.T) {
				ctx := context.Background()
				open := func(name string) *countedFile {
					f, err := CreateFile(filepath.Join(t.TempDir(), name), size)
					must(t, err)
					t.Cleanup(func() { f.Close() })
					return &countedFile{File: f}
				}
				local, far := open("local"), open("far")
				write(t, local, 0x11, 1<<30, data)
				write(t, local, 0x22, size-1000, 1000) // no whole chunk
				if dirtyThere {
					write(t, far, 0x33, 2<<30, data)
					write(t, far, 0, 3<<30, data) // storage, but zeroes
				}
				bus, done := heard[event.DiskSynchronised]()
				p, err := NewPrimary(local, PrimaryConfig{Overwrite: true, Events: bus})
				must(t, err)
				s, err := NewSecondary(far, SecondaryConfig{})
				must(t, err)
				must(t, p.Attach(DiskRemote(s.Export())))
				if _, ok := p.link.Load().remote.(ExtentReader); !ok {
					t.Fatal("the remote does not tell")
				}
				cfg := SyncConfig{}
				if sums {
					cfg.Sums = NewSums(s.Export())
				}
				must(t, p.Synchronise(ctx, cfg))
				if n, most := local.read.Load()+far.read.Load(), int64(16*data); n > most {
					t.Errorf("%d bytes were read, want at most %d of %d", n, most, int64(size))
				}
				if e := (*done)[0]; e.Copied+e.Same != size || e.Copied > 8*data {
					t.Errorf("heard %+v, want no more copied than there is", e)
				}
				for _, at := range []int64{1 << 30, 2 << 30, 3 << 30, size - data} {
					wantBytes(t, "the copy", read(t, far.File, at, data), read(t, local.File, at, data), at)
				}
				differ, err := Verify(ctx, local, NewSums(far))
				must(t, err)
				if !differ.Empty() {
					t.Errorf("%d bytes differ", differ.Bytes())
				}
			})
		}
	}
}
