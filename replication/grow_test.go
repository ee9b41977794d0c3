package replication

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
)

// growingFake is a fakeDisk that can become longer. If the power fails meanwhile, it has.
type growingFake struct{ *fakeDisk }

func (d growingFake) Grow(size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	during, after := d.power.use()
	if !after {
		d.data = append(d.data, make([]byte, size-d.Size())...)
	}
	if during || after {
		return errPower
	}
	return nil
}

// growRig is a pair on files that runs.
type growRig struct {
	local, disk *File
	p           *Primary
	s           *Secondary
	j           *Journal
}

func newGrowRig(t *testing.T, dir string, size int64) *growRig {
	t.Helper()
	open := func(name string) *File {
		f, err := CreateFile(filepath.Join(dir, name), size)
		must(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	x := &growRig{local: open("local"), disk: open("disk")}
	var err error
	x.j, err = OpenJournalFiles(filepath.Join(dir, "journal"), 8<<20)
	must(t, err)
	t.Cleanup(func() { x.j.Close() })
	x.s, err = NewSecondary(x.disk, SecondaryConfig{Journal: x.j, Overwrite: true})
	must(t, err)
	x.p, err = NewPrimary(x.local, PrimaryConfig{})
	must(t, err)
	protectFirst(t, x.p, x.s)
	return x
}

func (x *growRig) remote() Remote {
	return WithIdentity(DiskRemote(plainDisk{x.s.Export()}), NewIdentityDisk(x.s))
}

func TestADiskGrowsWhileItIsProtected(t *testing.T) {
	ctx := context.Background()
	const from, to = 4 << 20, 5<<20 + SectorSize
	dir := t.TempDir()
	x := newGrowRig(t, dir, from)
	write(t, x.p, 0x11, 0, BlockSize)
	checkpointBoth(t, x.p, x.s, 1)
	stop := make(chan struct{})
	var guest sync.WaitGroup
	guest.Go(func() {
		for i := int64(0); ; i++ {
			select {
			case <-stop:
				return
			default:
				write(t, x.p, byte(i), i%1000*BlockSize, BlockSize)
			}
		}
	})
	must(t, x.s.Grow(ctx, to))
	must(t, x.p.Grow(ctx, to, x.remote()))
	close(stop)
	guest.Wait()
	if x.p.Size() != to || x.s.Size() != to {
		t.Fatalf("the disks have %d and %d bytes, want %d", x.p.Size(), x.s.Size(), int64(to))
	}
	want(t, "what is new", x.p, 0, from, to-from)
	want(t, "what is new, for the secondary's guest", x.s, 0, from, to-from)
	checkpointBoth(t, x.p, x.s, 2)
	write(t, x.p, 0x22, from, to-from)
	want(t, "what is new, for the secondary's guest", x.s, 0, from, to-from)
	checkpointBoth(t, x.p, x.s, 3)
	want(t, "after a checkpoint", x.s, 0x22, from, to-from)
	write(t, x.p, 0x33, 0, to)
	must(t, x.p.Sync())
	must(t, x.p.Stop(ctx, true))
	must(t, errors.Join(x.disk.Close(), x.j.Close(), x.local.Close())) // both processes end

	disk, err := OpenFile(filepath.Join(dir, "disk"))
	must(t, err)
	defer disk.Close()
	j, err := OpenJournalFiles(filepath.Join(dir, "journal"), 8<<20)
	must(t, err)
	defer j.Close()
	epoch, _, err := j.Recover(ctx, disk)
	must(t, err)
	if epoch != 3 {
		t.Errorf("recovered epoch %d", epoch)
	}
	want(t, "the last checkpoint", disk, 0x22, from, to-from)
	s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
	must(t, err)
	local, err := OpenFile(filepath.Join(dir, "local"))
	must(t, err)
	defer local.Close()
	p, err := NewPrimary(local, PrimaryConfig{})
	must(t, err)
	if p.peer.intent == nil {
		t.Error("there is no room for the bitmap of the disk that has grown")
	}
	protectFirst(t, p, s)
	if !bytes.Equal(read(t, disk, 0, to), read(t, local, 0, to)) {
		t.Error("the copies differ")
	}
}

// imagesIn returns what creates an image in a directory, closed at the end of the test, and what makes
// a secondary of a disk that holds nothing.
func imagesIn(t *testing.T, dir string) (create func(name string, size int64) *File, secondary func(Disk) *Secondary) {
	create = func(name string, size int64) *File {
		f, err := CreateFile(filepath.Join(dir, name), size)
		must(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	secondary = func(d Disk) *Secondary {
		s, err := NewSecondary(d, SecondaryConfig{Overwrite: true})
		must(t, err)
		return s
	}
	return create, secondary
}

// A host whose disk has grown while it was the secondary's leads again: its account on stable
// storage has the new part too.
func TestTheAccountOfADiskThatGrewAsASecondarysHasAllOfIt(t *testing.T) {
	ctx := context.Background()
	const from, to = 8 << 20, 264 << 20 // so that marks are cleared on stable storage
	const late = to - intentRegion
	dir := t.TempDir()
	create, secondary := imagesIn(t, dir)
	disk := create("disk", from)
	p, err := NewPrimary(disk, PrimaryConfig{})
	must(t, err)
	protectFirst(t, p, secondary(create("other", from)))
	must(t, p.Stop(ctx, false))
	must(t, secondary(disk).Grow(ctx, to))
	p, err = NewPrimary(disk, PrimaryConfig{PermitOutdated: true, InSync: true})
	must(t, err)
	s := secondary(create("another", to))
	protectFirst(t, p, s)
	must(t, p.peer.intent.ensure(0, to)) // as for a guest that writes everywhere
	must(t, p.Mark(ctx, 1))
	write(t, p, 0x22, late, SectorSize)
	must(t, s.Checkpoint(ctx, 1))
	must(t, p.Loaded(ctx, 1))
	must(t, disk.Close()) // the process ends

	disk, err = OpenFile(filepath.Join(dir, "disk"))
	must(t, err)
	defer disk.Close()
	p, err = NewPrimary(disk, PrimaryConfig{})
	must(t, err)
	if got := p.Dirty(); got < intentRegion || got == to {
		t.Errorf("%d bytes are to be copied, want the region that was written after the checkpoint, of %d", got, int64(to))
	}
}

// The account of the next 4 GiB wants more room in the metadata.
func TestADiskThatHasOutgrownItsMetadataHasAnAccountAgain(t *testing.T) {
	ctx := context.Background()
	const from, to = 4000 << 20, 4100 << 20
	if runtime.GOOS != "linux" {
		t.Skip("holes are not told here")
	}
	if intentBytes(from) == intentBytes(to) {
		t.Fatal("there is room")
	}
	for name, grow := range map[string]func(t *testing.T, disk *File){
		"as a secondary's": func(t *testing.T, disk *File) {
			s, err := NewSecondary(disk, SecondaryConfig{Overwrite: true})
			must(t, err)
			must(t, s.Grow(ctx, to))
		},
		"outside": func(t *testing.T, disk *File) {
			must(t, disk.f.Truncate(to))
			disk.size.Store(to)
		},
	} {
		t.Run(name, func(t *testing.T) {
			create, secondary := imagesIn(t, t.TempDir())
			// The other side tells its holes, so that none of this is read or written.
			join := func(p *Primary, s *Secondary) { must(t, p.Attach(DiskRemote(s.Export()))) }
			protect := func(p *Primary, s *Secondary) {
				join(p, s)
				must(t, p.Synchronise(ctx, SyncConfig{}))
				must(t, p.Mark(ctx, 0))
				must(t, s.Start(ctx))
				must(t, p.Loaded(ctx, 0))
				must(t, p.Start(ctx))
			}
			again := func(disk *File) (*File, *Primary) {
				must(t, disk.Close()) // the process ends
				disk, err := OpenFile(disk.f.Name())
				must(t, err)
				t.Cleanup(func() { disk.Close() })
				p, err := NewPrimary(disk, PrimaryConfig{})
				must(t, err)
				return disk, p
			}
			disk := create("disk", from)
			p, err := NewPrimary(disk, PrimaryConfig{})
			must(t, err)
			protect(p, secondary(create("other", from)))
			must(t, p.Stop(ctx, false))
			grow(t, disk)

			disk, p = again(disk)
			if got := p.Dirty(); got != to {
				t.Errorf("without an account %d bytes are to be copied, want all %d", got, int64(to))
			}
			join(p, secondary(create("another", to)))
			disk, p = again(disk) // room has been made, and nothing is known yet
			if got := p.Dirty(); got != to {
				t.Errorf("before a run %d bytes are to be copied, want all %d", got, int64(to))
			}
			s := secondary(create("a third", to))
			protect(p, s)
			write(t, p, 0x22, to-SectorSize, SectorSize)
			must(t, p.Sync())
			_, p = again(disk)
			if got := p.Dirty(); got != intentRegion {
				t.Errorf("%d bytes are to be copied, want the region that was written, of %d", got, int64(to))
			}
		})
	}
}

func TestGrowthThatCannotBeIsRefused(t *testing.T) {
	ctx := context.Background()
	x := newGrowRig(t, t.TempDir(), 4<<20)
	wantErr(t, "shorter", x.s.Grow(ctx, 1<<20), ErrSize)
	wantErr(t, "no multiple of a sector", x.s.Grow(ctx, 4<<20+1), ErrSize)
	wantErr(t, "the primary before the secondary", x.p.Grow(ctx, 5<<20, x.remote()), ErrSize)
	wantErr(t, "without the secondary", x.p.Grow(ctx, 5<<20, nil), ErrNotRunning)
	must(t, x.s.Grow(ctx, 5<<20))
	other, err := NewSecondary(newFake(5<<20, 0), SecondaryConfig{})
	must(t, err)
	wantErr(t, "another copy", x.p.Grow(ctx, 5<<20, DiskRemote(other.Export())), ErrIdentity)
	must(t, x.p.Mark(ctx, 1))
	wantErr(t, "between a mark and Loaded", x.p.Grow(ctx, 5<<20, x.remote()), ErrRunning)
	must(t, x.s.Checkpoint(ctx, 1))
	must(t, x.p.Loaded(ctx, 1))
	if x.p.Size() != 4<<20 {
		t.Errorf("the primary's disk has %d bytes", x.p.Size())
	}
	must(t, x.p.Grow(ctx, 5<<20, x.remote()))
	must(t, x.s.Grow(ctx, 6<<20))
	must(t, x.s.Stop(ctx, false))
	wantErr(t, "the same copy, which has gone back to its checkpoint", x.p.Grow(ctx, 6<<20, x.remote()), ErrIdentity)

	p, err := NewPrimary(newFake(testSize, 0), PrimaryConfig{})
	must(t, err)
	wantErr(t, "a disk that cannot", p.Grow(ctx, 2*testSize, nil), errors.ErrUnsupported)
	s, err := NewSecondary(newFake(testSize, 0), SecondaryConfig{})
	must(t, err)
	wantErr(t, "a disk that cannot", s.Grow(ctx, 2*testSize), errors.ErrUnsupported)
	s, err = NewSecondary(newFake(testSize+SectorSize, 0), SecondaryConfig{})
	must(t, err)
	wantErr(t, "the last block is not whole", s.Grow(ctx, 2*testSize), ErrSize)
}

// Wherever the power fails while a disk without a place for metadata grows, its journal
// still knows it.
func TestADiskWhosePowerFailsWhileItGrowsIsStillTheJournals(t *testing.T) {
	ctx := context.Background()
	const size = testSize + 3*BlockSize
	sizes := map[int64]int{}
	for at := 0; ; at++ {
		x := newPlainRig(t, noise(1, testSize))
		s, err := NewSecondary(growingFake{x.disk}, SecondaryConfig{Journal: x.open()})
		must(t, err)
		must(t, s.Start(ctx))
		write(t, s.Export(), 0x22, 0, BlockSize)
		must(t, s.Checkpoint(ctx, 1))
		checkpoint := bytes.Clone(x.disk.data)
		write(t, s.Export(), 0x33, 0, testSize/2)
		host := &power{left: at}
		for _, d := range []*fakeDisk{x.disk, x.hidden, x.active} {
			d.power = host
		}
		grown := s.Grow(ctx, size)
		rng := rand.New(rand.NewPCG(uint64(at), 4))
		x.disk, x.hidden, x.active = x.disk.cutPower(rng), x.hidden.cutPower(rng), x.active.cutPower(rng)
		sizes[x.disk.Size()]++
		j := x.open()
		epoch, _, err := j.Recover(ctx, x.disk)
		if err != nil || epoch != 1 {
			t.Fatalf("power fails after %d operations, the disk has %d bytes: recovered %d, %v", at, x.disk.Size(), epoch, err)
		}
		want := append(checkpoint, make([]byte, size-testSize)...)[:x.disk.Size()]
		wantBytes(t, "the last checkpoint", x.disk.data, want, 0)
		again, err := NewSecondary(x.disk, SecondaryConfig{Journal: j})
		must(t, err)
		if i := again.Identity(); i.State != CopyClean || i.Epoch != 1 {
			t.Errorf("power fails after %d operations: the copy is %v", at, i)
		}
		if grown == nil {
			break
		}
	}
	if sizes[testSize] == 0 || sizes[size] < 2 {
		t.Errorf("the disk had these sizes: %v, want both, and the new one before Grow has ended", sizes)
	}
}

// What a write takes of the secondary's room, it has taken after a growth too.
func TestAfterAGrowthThereIsNoMoreRoomThanBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		const size = testSize + BlockSize
		x := newRoomRig(t, SecondaryConfig{})
		x.p.local.Disk, x.s.disk.Disk = growingFake{x.local}, growingFake{x.disk}
		x.fill(t)
		must(t, x.s.Grow(ctx, size))
		must(t, x.p.Grow(ctx, size, WithIdentity(DiskRemote(plainDisk{x.s.Export()}), NewIdentityDisk(x.s))))
		done := make(chan struct{})
		go func() { write(t, x.p, 0x33, testSize/2, BlockSize); close(done) }()
		synctest.Wait()
		must(t, x.s.Err())
		checkpointBoth(t, x.p, x.s, 1)
		<-done
		must(t, x.s.Err())
		want(t, "the checkpoint is without it", x.s, 0x11, testSize/2, BlockSize)
		checkpointBoth(t, x.p, x.s, 2)
		want(t, "the next has it", x.s, 0x33, testSize/2, BlockSize)
	})
}

// An overlay that had room for all of a disk keeps some for writes that cannot wait when the
// disk has outgrown it.
func TestAnOverlayThatItsDiskOutgrowsKeepsSomeRoom(t *testing.T) {
	ctx := context.Background()
	const bound = (minSpare + leafCost) * BlockSize
	d := growingFake{newFake(minSpare*BlockSize, 0)}
	s, err := NewSecondary(d, SecondaryConfig{ActiveBytes: bound})
	must(t, err)
	must(t, s.Start(ctx))
	write(t, s, 0x22, 0, minSpare*BlockSize)
	must(t, s.Grow(ctx, 2*minSpare*BlockSize))
	write(t, s, 0x33, 0, minSpare*BlockSize) // takes no more
	must(t, s.Checkpoint(ctx, 1))
	_, err = s.WriteAt(make([]byte, minSpare*BlockSize), 0)
	wantErr(t, "all of it", err, ErrFull)
	s.Drain()
	write(t, s, 0x44, 0, minSpare*BlockSize)
}

// The length of a disk is no less to be made stable than what is written to it.
func TestADiskThatHasGrownIsSynced(t *testing.T) {
	ctx := context.Background()
	disk := newFake(testSize, 0)
	s, err := NewSecondary(growingFake{disk}, SecondaryConfig{})
	must(t, err)
	must(t, s.Start(ctx))
	must(t, s.Sync())
	before := disk.syncs
	must(t, s.Grow(ctx, 2*testSize))
	if disk.syncs == before {
		t.Error("nothing was synced")
	}
}
