package replication

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// blockRemote is a secondary that takes only whole blocks.
type blockRemote struct {
	*fakeRemote
	block int64

	mu    sync.Mutex
	wrong error
}

func (r *blockRemote) Align() int64 { return r.block }

func (r *blockRemote) check(off, n int64) {
	if (off|n)&(r.block-1) != 0 {
		r.mu.Lock()
		r.wrong = fmt.Errorf("%d bytes at %d", n, off)
		r.mu.Unlock()
	}
}

func (r *blockRemote) StartWrite(p []byte, off int64, fua bool, done func(error)) {
	r.check(off, int64(len(p)))
	r.fakeRemote.StartWrite(p, off, fua, done)
}

func (r *blockRemote) StartZeroes(off, n int64, fua bool, done func(error)) {
	r.check(off, n)
	r.fakeRemote.StartZeroes(off, n, fua, done)
}

// hesitantDisk now and then lets others go on between what it has read and what is done with
// that.
type hesitantDisk struct{ *fakeDisk }

func (d hesitantDisk) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.fakeDisk.ReadAt(p, off)
	if rand.IntN(2) == 0 {
		time.Sleep(100 * time.Microsecond)
	}
	return n, err
}

// A guest with sectors of 512 bytes has a secondary whose device takes blocks of 4096: those of
// its writes that are no whole blocks are sent with what is around them, in whatever order they
// and those of their neighbours come, while the first copy is made too.
func TestASecondaryOfLargerBlocksGetsWholeOnes(t *testing.T) {
	const size, writers = 1 << 20, 4
	for _, block := range []int64{4096, ChunkSize} {
		ctx, cancel := context.WithCancel(t.Context())
		local, remote := newFake(size, 0x11), newFake(size, 0x22)
		p, err := NewPrimary(hesitantDisk{local}, PrimaryConfig{Overwrite: true, Forward: ForwarderConfig{WindowRequests: 8}})
		must(t, err)
		r := &blockRemote{fakeRemote: newFakeRemote(remote, 1), block: block}
		must(t, p.Attach(r))
		var run, wg sync.WaitGroup
		run.Go(func() { p.Run(ctx) })
		for w := range uint64(writers) {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(w, 4096))
				for i := range 150 {
					off := rng.Int64N(size/SectorSize) * SectorSize
					n := min(int64(1)<<rng.IntN(15), size-off)
					b := make([]byte, n)
					b[0], b[n-1] = byte(i), byte(w)
					switch rng.IntN(4) {
					case 0:
						if err := p.WriteZeroes(off, n); err != nil {
							t.Error(err)
						}
					case 1:
						if err := p.WriteFUA(b, off); err != nil {
							t.Error(err)
						}
					default:
						if _, err := p.WriteAt(b, off); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		must(t, p.Synchronise(ctx, SyncConfig{}))
		wg.Wait()
		must(t, p.Start(ctx))
		must(t, p.Mark(ctx, 1))
		if r.wrong != nil {
			t.Errorf("blocks of %d: the secondary was sent %v", block, r.wrong)
		}
		wantBytes(t, fmt.Sprintf("blocks of %d: both disks are the same", block), remote.data, local.data, 0)
		must(t, p.Stop(ctx, true))
		cancel()
		run.Wait()
	}
}

// What is around a write may not be readable. Then the secondary lacks the write, and the guest
// is not to blame.
func TestABlockThatCannotBeReadIsNotSent(t *testing.T) {
	local := newFake(1<<20, 0x11)
	p, err := NewPrimary(local, PrimaryConfig{InSync: true})
	must(t, err)
	r := &blockRemote{fakeRemote: newFakeRemote(newFake(1<<20, 0x11), 1), block: 4096}
	must(t, p.Attach(r))
	must(t, p.Start(t.Context()))
	local.failRead = func(int64, int) error { return errInjected }
	write(t, p, 0x33, 512, 512)
	var be *BrokenError
	if err := p.Err(); !errors.As(err, &be) || be.Off != 512 || !errors.Is(err, errInjected) {
		t.Errorf("error %v", err)
	}
	if log := r.takeLog(); len(log) != 0 {
		t.Errorf("sent: %q", log)
	}
	if p.Dirty() == 0 {
		t.Error("what the secondary lacks is not known")
	}
	must(t, p.Stop(t.Context(), true))
}

// A disk that ends within a block of the secondary's could not be sent as a whole, which its
// guest need not find out by writing there.
func TestADiskThatIsNoMultipleOfTheSecondarysBlocksIsRefused(t *testing.T) {
	size := 1<<20 + SectorSize
	p, err := NewPrimary(newFake(size, 0), PrimaryConfig{Overwrite: true})
	must(t, err)
	r := newFakeRemote(newFake(size, 0), 1)
	err = p.Attach(&blockRemote{fakeRemote: r, block: 4096})
	wantErr(t, "attach", err, ErrSize)
	if s := fmt.Sprint(err); !strings.Contains(s, "blocks of 4096") || !strings.Contains(s, "of 512") {
		t.Errorf("%q does not name both block sizes", s)
	}
	for _, block := range []int64{0, 3, 2 * ChunkSize} {
		wantErr(t, "attach", p.Attach(&blockRemote{fakeRemote: r, block: block}), ErrSize)
	}
	must(t, p.Attach(&blockRemote{fakeRemote: r, block: 512}))
	must(t, p.Detach())
}

// blockDisk is a disk that takes only whole blocks.
type blockDisk struct {
	*fakeDisk
	block int64
}

func (d blockDisk) Align() int64 { return d.block }

// A guest, an overlay, a journal and metadata all write sectors, and find out before there is a
// guest that a disk does not take them.
func TestADiskOfLargerBlocksThanSectorsIsRefused(t *testing.T) {
	fits := newFake(minJournal, 0)
	for _, block := range []int64{1, SectorSize, 4096, ChunkSize} {
		d := blockDisk{newFake(minJournal, 0), block}
		for what, use := range uses(d, fits) {
			if strings.HasPrefix(what, "a remote") { // it is sent whole blocks
				continue
			}
			err := use()
			if block <= SectorSize {
				must(t, err)
				continue
			}
			wantErr(t, what, err, ErrSize)
			if !strings.Contains(err.Error(), fmt.Sprint("blocks of ", block)) {
				t.Errorf("%s, blocks of %d: %q does not name them", what, block, err)
			}
		}
	}
}

// deafDisk is a disk that cannot be written, or not be made stable.
type deafDisk struct {
	*fakeDisk
	err error
}

func (d deafDisk) CheckWrites() error { return d.err }

// uses returns the calls that take a Disk and write it later, each with d in that place.
func uses(d Disk, fits *fakeDisk) map[string]func() error {
	attach := func(r Remote) error {
		p, err := NewPrimary(fits, PrimaryConfig{InSync: true})
		if err != nil {
			return err
		}
		return errors.Join(p.Attach(r), p.Detach())
	}
	return map[string]func() error{
		"what a guest may have":               func() error { return CheckDisk(d) },
		"the local disk of a primary":         func() error { _, err := NewPrimary(d, PrimaryConfig{}); return err },
		"the disk of a secondary":             func() error { _, err := NewSecondary(d, SecondaryConfig{}); return err },
		"the log of pre-images":               func() error { _, err := OpenJournal(d, fits); return err },
		"the active overlay":                  func() error { _, err := OpenJournal(fits, d); return err },
		"metadata":                            func() error { _, err := OpenMetadata(d); return err },
		"a remote":                            func() error { return attach(DiskRemote(d)) },
		"a remote with an identity beside it": func() error { return attach(WithIdentity(DiskRemote(d), newFake(SectorSize, 0))) },
	}
}

// A disk that says from the beginning that it cannot be written is refused when it is given, and
// not at the first write of a guest or at the first checkpoint of a primary.
func TestADiskThatSaysThatItCannotBeWrittenIsRefused(t *testing.T) {
	for what, use := range uses(deafDisk{newFake(minJournal, 0), errInjected}, newFake(minJournal, 0)) {
		wantErr(t, what, use(), errInjected)
	}
	for what, use := range uses(deafDisk{newFake(minJournal, 0), nil}, newFake(minJournal, 0)) {
		if err := use(); err != nil && what != "a remote with an identity beside it" { // that one is blank
			t.Errorf("%s that can be written: %v", what, err)
		}
	}
}

// A disk that is read-only is not recovered either, and its journal stays as good as it was.
func TestAReadOnlyDiskIsNotRecovered(t *testing.T) {
	hidden, active, disk := crashed(t, false)
	j, err := OpenJournal(hidden, active)
	must(t, err)
	disk.failWrite = func(int64, int) error { t.Error("the disk was written"); return nil }
	_, _, err = j.Recover(context.Background(), deafDisk{disk, errInjected})
	wantErr(t, "recovery", err, errInjected)
	disk.failWrite = nil
	_, _, err = j.Recover(context.Background(), disk)
	must(t, err)
}

// A disk that grows keeps the connection that it has where the new one is to such a disk.
func TestADiskDoesNotGrowOntoOneThatCannotBeWritten(t *testing.T) {
	file, err := CreateFile(filepath.Join(t.TempDir(), "local"), testSize)
	must(t, err)
	defer file.Close()
	p, err := NewPrimary(file, PrimaryConfig{InSync: true})
	must(t, err)
	must(t, p.Attach(DiskRemote(newFake(testSize, 0))))
	err = p.Grow(context.Background(), 2*testSize, DiskRemote(deafDisk{newFake(2*testSize, 0), errInjected}))
	wantErr(t, "grow", err, errInjected)
	if p.Size() != testSize {
		t.Errorf("it has %d bytes", p.Size())
	}
	must(t, p.Detach())
}

// A connection with an identity beside it is still all that the connection is.
func TestARemoteWithAnIdentityStillAlignsPushesAndMoves(t *testing.T) {
	var _ interface {
		Aligner
		Pusher
		Mover
		Aborter
		ExtentReader
	} = identifiedRemote{}
	r := WithIdentity(&blockRemote{fakeRemote: newFakeRemote(newFake(1<<20, 0), 1), block: 4096}, newFake(BlockSize, 0))
	if n := r.(Aligner).Align(); n != 4096 {
		t.Errorf("blocks of %d", n)
	}
	if n := WithIdentity(newFakeRemote(newFake(1<<20, 0), 1), newFake(BlockSize, 0)).(Aligner).Align(); n != 1 {
		t.Errorf("blocks of %d where none were asked for", n)
	}
}

// crumbsRemote tells of its disk byte by byte: one is data, and the next a hole.
type crumbsRemote struct{ *fakeRemote }

func (r crumbsRemote) Extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	for end := off + n; off < end; off++ {
		if !yield(1, uint32(off%2)*(ExtentHole|ExtentZero)) {
			return nil
		}
	}
	return nil
}

// What is zero here and not, in as many places as there can be, on the secondary is asked for
// and zeroed by blocks.
func TestASecondaryThatTellsOfEveryByteCostsNoMore(t *testing.T) {
	const size = 1<<20 + SectorSize
	file, err := CreateFile(filepath.Join(t.TempDir(), "hole"), size)
	must(t, err)
	defer file.Close()
	p, err := NewPrimary(file, PrimaryConfig{Overwrite: true})
	must(t, err)
	remote := newFake(size, 0x22)
	r := newFakeRemote(remote, 1)
	must(t, p.Attach(crumbsRemote{r}))
	must(t, p.Synchronise(t.Context(), SyncConfig{}))
	wantBytes(t, "the secondary is zero", remote.data, make([]byte, size), 0)
	if log := r.takeLog(); len(log) > 4 {
		t.Errorf("%d requests", len(log))
	}
	must(t, p.Detach())
}
