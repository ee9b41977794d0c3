package replication

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
)

// extent is an element that Extents yields.
type extent struct {
	n     int64
	flags uint32
}

// extents collects what d yields, neighbours of the same flags as one.
func extents(t *testing.T, d any, off, n int64) []extent {
	t.Helper()
	var all []extent
	err := Extents(d, off, n, func(n int64, flags uint32) bool {
		if k := len(all); k > 0 && all[k-1].flags == flags {
			all[k-1].n += n
		} else {
			all = append(all, extent{n, flags})
		}
		return true
	})
	must(t, err)
	return all
}

// sparse makes a file of size bytes with 64 KiB of data at 1 MiB and at its
// end.
func sparse(t *testing.T, size int64) *File {
	t.Helper()
	d, err := CreateFile(filepath.Join(t.TempDir(), "sparse"), size)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	p := make([]byte, 64<<10)
	for i := range p {
		p[i] = 0x5a
	}
	for _, off := range []int64{1 << 20, size - 64<<10} {
		_, err := d.WriteAt(p, off)
		must(t, err)
	}
	return d
}

const hole = ExtentHole | ExtentZero

func TestHolesOfAFileAreExtents(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs SEEK_HOLE")
	}
	d := sparse(t, 4<<20)
	want := []extent{{1 << 20, hole}, {64 << 10, 0}, {3<<20 - 128<<10, hole}, {64 << 10, 0}}
	if got := extents(t, d, 0, d.Size()); !slices.Equal(got, want) {
		t.Fatalf("extents %v, want %v (on a file system with holes)", got, want)
	}
	if got, want := extents(t, d, 1<<20+4096, 64<<10), []extent{{60 << 10, 0}, {4 << 10, hole}}; !slices.Equal(got, want) {
		t.Errorf("a part: %v, want %v", got, want)
	}
	if got, want := extents(t, d, 2<<20, 1<<20), []extent{{1 << 20, hole}}; !slices.Equal(got, want) {
		t.Errorf("in a hole: %v, want %v", got, want)
	}
	must(t, d.WriteZeroes(1<<20, 64<<10))
	if got, want := extents(t, d, 0, 2<<20), []extent{{2 << 20, hole}}; !slices.Equal(got, want) {
		t.Errorf("after WriteZeroes: %v, want %v", got, want)
	}
	calls := 0
	must(t, d.Extents(0, d.Size(), func(int64, uint32) bool { calls++; return false }))
	if calls != 1 {
		t.Errorf("%d calls of a yield that has enough", calls)
	}
	if err := d.Extents(0, d.Size()+1, func(int64, uint32) bool { return true }); !errors.Is(err, ErrRange) {
		t.Errorf("beyond the end: %v", err)
	}
}

// Where an image has become shorter, under a File or a disk over it, there is nothing that reads as
// zeroes, and no copy is told so.
func TestWhatIsCutOffAFileIsNoHole(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs SEEK_HOLE")
	}
	d := sparse(t, 8<<20)
	must(t, d.f.Truncate(2<<20+1000))
	end := int64(0)
	must(t, d.Extents(0, d.Size(), func(n int64, flags uint32) bool {
		if end += n; flags&ExtentZero != 0 && end > 2<<20+1000 {
			t.Errorf("%d bytes up to %d are zeroes", n, end)
		}
		return true
	}))
	if end != d.Size() {
		t.Errorf("%d of %d bytes are told of", end, d.Size())
	}
	for off := int64(3 << 20); off < d.Size(); off += 1 << 20 {
		if got := extents(t, d, off, 1<<20); len(got) != 1 || got[0].flags != 0 {
			t.Errorf("at %d: %v", off, got)
		}
	}

	local := sparse(t, 8<<20)
	p, err := NewPrimary(local, PrimaryConfig{Overwrite: true})
	must(t, err)
	must(t, local.f.Truncate(2<<20))
	far := newFake(8<<20, 0)
	far.data[5<<20] = 0x77
	must(t, p.Attach(DiskRemote(far)))
	if err := p.Synchronise(context.Background(), SyncConfig{}); err == nil || far.data[5<<20] != 0x77 {
		t.Errorf("an image that is shorter than its disk was copied: %v, %#x", err, far.data[5<<20])
	}
}

func TestExtentsPassThroughWhatHasADisk(t *testing.T) {
	ctx := context.Background()
	d := sparse(t, 4<<20)
	want := extents(t, d, 0, d.Size())
	data := []extent{{d.Size(), 0}}
	s, err := NewSecondary(d, SecondaryConfig{})
	must(t, err)
	if err := s.Extents(0, 1, func(int64, uint32) bool { return true }); !errors.Is(err, ErrNotRunning) {
		t.Errorf("before Start: %v", err)
	}
	must(t, s.Start(ctx))
	for what, tc := range map[string]struct {
		d    any
		want []extent
	}{
		"export":  {s.Export(), want},
		"remote":  {DiskRemote(d), want},
		"overlay": {s, data},
		"no disk": {newFake(4<<20, 1), data},
	} {
		if got := extents(t, tc.d, 0, d.Size()); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", what, got, tc.want)
		}
	}
	must(t, s.Stop(ctx, true))
	if got := extents(t, s, 0, d.Size()); !slices.Equal(got, want) {
		t.Errorf("promoted: %v, want %v", got, want)
	}
	if err := s.Export().(ExtentReader).Extents(0, 1, func(int64, uint32) bool { return true }); !errors.Is(err, ErrGated) {
		t.Errorf("export after a failover: %v", err)
	}
}

func TestBitsOfABitmapAreExtents(t *testing.T) {
	b := NewBitmap(10*ChunkSize + 512)
	b.Set(ChunkSize, 1)
	b.Set(10*ChunkSize, 512)
	var got []extent
	must(t, b.Extents(100, 10*ChunkSize+412, func(n int64, flags uint32) bool {
		got = append(got, extent{n, flags})
		return true
	}))
	want := []extent{{ChunkSize - 100, 0}, {ChunkSize, BitmapDirty}, {8 * ChunkSize, 0}, {512, BitmapDirty}}
	if !slices.Equal(got, want) {
		t.Errorf("extents %v, want %v", got, want)
	}
	if err := b.Extents(0, b.bits.Load().size+1, func(int64, uint32) bool { return true }); !errors.Is(err, ErrRange) {
		t.Errorf("beyond the end: %v", err)
	}
}

func TestWhatIsWrittenAloneIsDirtyAtOnce(t *testing.T) {
	p, _, _, _ := newPrimaryWith(t, PrimaryConfig{InSync: true})
	write(t, p, 0x22, 0, BlockSize)
	if n := p.Dirty(); n != 0 {
		t.Errorf("%d bytes, though all is forwarded", n)
	}
	must(t, p.Stop(t.Context(), true))
	write(t, p, 0x22, 3*ChunkSize, BlockSize)
	if n := p.Dirty(); n != 2*ChunkSize { // the first was in no checkpoint
		t.Errorf("%d bytes, want %d", n, 2*ChunkSize)
	}
	var at []int64
	var pos int64
	must(t, p.DirtyExtents(0, testSize, func(n int64, flags uint32) bool {
		if flags&BitmapDirty != 0 {
			at = append(at, pos, n)
		}
		pos += n
		return true
	}))
	if want := []int64{0, ChunkSize, 3 * ChunkSize, ChunkSize}; !slices.Equal(at, want) {
		t.Errorf("dirty are %v, want %v", at, want)
	}
	none := func(int64, uint32) bool { return true }
	if n := testing.AllocsPerRun(100, func() { p.Dirty(); p.DirtyExtents(0, testSize, none) }); n > 0 && !raceEnabled {
		t.Errorf("asking makes %v allocations", n)
	}
}
