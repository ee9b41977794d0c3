package protect

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/replication"
)

// A growable is the image of a host's disk, which becomes longer when it is told to.
type growable struct {
	replication.Disk
	at ofProcess
}

func (g growable) Grow(size int64) error {
	if h := g.at.h; h.w.grows != nil {
		if err := h.w.grows(h, size); err != nil {
			return err
		}
	}
	if g.at.h.gone.Load() {
		return errDead
	}
	g.at.lengthen(size)
	return nil
}

// growableKept is one whose metadata is kept beside it.
type growableKept struct {
	growable
	m *replication.Metadata
}

func (k growableKept) Metadata() (*replication.Metadata, error) { return k.m, nil }

func (d *image) lengthen(size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.b = append(d.b, make([]byte, max(0, size-int64(len(d.b))))...)
}

// hasGrown is the DiskConfig.Grown of a host.
func (h *host) hasGrown(size int64) {
	if was := h.toldSize.Swap(size); was >= size {
		h.w.t.Errorf("%s: the guest is told of %d bytes after %d", h.name, size, was)
	}
	if is := h.disk.Size(); is < size {
		h.w.t.Errorf("%s: the guest is told of %d bytes, and has %d", h.name, size, is)
	}
}

// withGrowing is withDisk for disks that can become longer, which know whose copy they are.
func withGrowing(t *testing.T, name string, f func(t *testing.T, w *world)) {
	withDisk(t, name, func(t *testing.T, w *world) {
		w.growing = true
		w.makeImages()
		w.keepsImages(false)
		f(t, w)
	})
}

// sizes wants the disk of each host to have a length.
func sizes(t *testing.T, want int64, all ...*host) {
	t.Helper()
	for _, h := range all {
		if got, image := h.disk.Size(), h.image.Size(); got != want || image != want {
			t.Errorf("%s: the disk has %d bytes, its image %d, want %d", h.name, got, image, want)
		}
	}
}

// has wants what a disk has at a place.
func (h *host) hasAt(p []byte, off int64) {
	h.w.t.Helper()
	got := make([]byte, len(p))
	if _, err := h.disk.ReadAt(got, off); err != nil || !bytes.Equal(got, p) {
		h.w.t.Errorf("%s: at %d it has %.8x, %v, want %.8x", h.name, off, got, err, p)
	}
}

const grownSize = 2*diskSize + 64<<10

var sector = bytes.Repeat([]byte{7}, sectorSize)

// A disk becomes longer on both hosts while the guest runs, protected all the while. What is written there
// since survives the host, and the guest on the other host is told how long its disk is.
func TestADiskGrowsWhileItsGuestIsProtected(t *testing.T) {
	withGrowing(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		was := a.job.session()
		if _, err := a.disk.WriteAt(sector, diskSize); err == nil {
			t.Error("a write beyond the end is made")
		}
		if err := a.job.Grow(t.Context(), "root", grownSize); err != nil {
			t.Fatal(err)
		}
		sizes(t, grownSize, a, b)
		if told := a.toldSize.Load(); told != grownSize {
			t.Errorf("the guest is told of %d bytes", told)
		}
		a.hasAt(make([]byte, sectorSize), grownSize-sectorSize)
		for _, off := range []int64{diskSize, grownSize - sectorSize} {
			if _, err := a.disk.WriteAt(sector, off); err != nil {
				t.Errorf("at %d: %v", off, err)
			}
		}
		if err := a.job.Grow(t.Context(), "root", grownSize); err != nil {
			t.Errorf("once more: %v", err)
		}
		w.hearsMore() // and so a checkpoint with both writes is there
		time.Sleep(time.Second)
		if a.job.session() != was || a.job.State() != Protected {
			t.Errorf("it is %v, in the same session %v", a.job.State(), a.job.session() == was)
		}
		a.kill(true)
		b.is(Alone)
		a.bury()
		if told := b.toldSize.Load(); told != grownSize {
			t.Errorf("the guest there is told of %d bytes", told)
		}
		b.hasAt(sector, diskSize)
		b.hasAt(sector, grownSize-sectorSize)
		a = w.boot("a", false, nil)
		b.is(Protected)
		a.is(Following)
		if err := b.job.Grow(t.Context(), "root", grownSize+diskSize); err != nil { // and in the other direction
			t.Error(err)
		}
		sizes(t, grownSize+diskSize, a, b)
		if err := b.job.Switchover(t.Context()); err != nil {
			t.Error(err)
		}
		a.is(Protected)
		a.hasAt(sector, diskSize)
		b.halt()
		a.halt()
	})
}

// Of two disks one grows, again and again, while checkpoints are made, by one verb after the other.
func TestADiskGrowsManyTimesInOneSession(t *testing.T) {
	withGrowing(t, "", func(t *testing.T, w *world) {
		w.delay = 20 * time.Millisecond
		a, b := w.protected()
		was := a.job.session()
		for i := range int64(2 * maxRegrown / 3) {
			size := diskSize + (i+1)*4096
			if err := a.job.Grow(t.Context(), "root", size); err != nil {
				t.Fatal(i, err)
			}
			if _, err := a.disk.WriteAt(sector, size-sectorSize); err != nil {
				t.Error(err)
			}
			time.Sleep(7 * time.Millisecond)
		}
		w.hearsMore()
		if a.job.session() != was {
			t.Error("it is another session")
		}
		a.kill(true)
		b.is(Alone)
		a.bury()
		for i := range int64(2 * maxRegrown / 3) {
			b.hasAt(sector, diskSize+(i+1)*4096-sectorSize)
		}
		b.halt()
	})
}

var errSmall = errors.New("no space left on device")

// A host that cannot make its copy longer says so in words, and the guest is as protected as before.
func TestADiskThatTheOtherHostCannotMakeLongerStaysAsItIs(t *testing.T) {
	for name, c := range map[string]struct {
		size   int64
		change func(*Config)
		grows  func(h *host, size int64) error
		want   string
	}{
		"no room": {grownSize, nil, func(h *host, _ int64) error {
			if h.name == "b" {
				return errSmall
			}
			return nil
		}, "the other side refuses: no space left"},
		"an image that does not grow": {grownSize, func(c *Config) { c.Disks[0].cfg.Image = c.Disks[0].cfg.Image.(growableKept).Disk }, nil, "the copy of b cannot become longer"},
		"a bound":                     {grownSize, func(c *Config) { c.Disks[0].cfg.MaxSize = grownSize - 1 }, nil, "the other side refuses: "},
		"the default bound":           {DefaultMaxSize + 4096, nil, nil, "the other side refuses: "},
		"half a sector":               {grownSize + 100, nil, nil, "the other side refuses: "},
	} {
		withGrowing(t, name, func(t *testing.T, w *world) {
			w.grows = c.grows
			b := w.boot("b", false, c.change)
			a := w.boot("a", true, nil)
			a.is(Protected)
			b.is(Following)
			was := a.job.session()
			for range 2 {
				err := a.job.Grow(t.Context(), "root", c.size)
				var r *RefusedError
				if !errors.As(err, &r) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, want %q", err, c.want)
				}
			}
			w.hearsMore()
			time.Sleep(time.Second)
			if a.job.session() != was || a.toldSize.Load() != 0 {
				t.Errorf("the session is another, or the guest was told of %d bytes", a.toldSize.Load())
			}
			sizes(t, diskSize, a, b)
			a.halt()
			b.halt()
		})
	}
}

// Where the image here cannot become longer, or the size cannot be, the other host is not asked.
func TestADiskThatCannotGrowHereDoesNotGrowThere(t *testing.T) {
	withGrowing(t, "", func(t *testing.T, w *world) {
		b := w.boot("b", false, nil)
		a := w.boot("a", true, func(c *Config) { c.Disks[0].cfg.Image = c.Disks[0].cfg.Image.(growableKept).Disk })
		a.is(Protected)
		b.is(Following)
		for _, c := range []struct {
			disk string
			size int64
			want error
		}{{"root", grownSize, errors.ErrUnsupported}, {"root", diskSize - 4096, replication.ErrSize}, {"data", grownSize, nil}} {
			err := a.job.Grow(t.Context(), c.disk, c.size)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		}
		sizes(t, diskSize, a, b)
		a.halt()
		b.halt()
	})
}

// The verb is for the host that has the guest, and is refused elsewhere by the name of that host.
func TestADiskGrowsWhereItsGuestRuns(t *testing.T) {
	withGrowing(t, "", func(t *testing.T, w *world) {
		b := w.boot("b", false, nil)
		b.is(Waiting)
		grow := func(h *host) error { return h.job.Grow(t.Context(), "root", grownSize) }
		var se *StateError
		if err := grow(b); !errors.As(err, &se) || se.State != Waiting {
			t.Errorf("while it waits: %v", err)
		}
		a := w.boot("a", true, nil)
		a.is(Protected)
		b.is(Following)
		if err := grow(b); !errors.As(err, &se) || se.State != Following || !strings.Contains(err.Error(), "; a has the guest") {
			t.Errorf("while it follows: %v", err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := a.job.Grow(ended, "root", grownSize); !errors.Is(err, context.Canceled) {
			t.Errorf("whose context has ended: %v", err)
		}
		sizes(t, diskSize, a, b)
		if err := a.job.Pause(t.Context(), ""); err != nil {
			t.Error(err)
		}
		if err := grow(a); err != nil {
			t.Errorf("while it is paused: %v", err)
		}
		sizes(t, grownSize, a)
		sizes(t, diskSize, b)
		if err := a.job.Resume(); err != nil {
			t.Error(err)
		}
		a.is(Protected) // b makes its copy longer before it follows
		b.is(Following)
		sizes(t, grownSize, a, b)
		a.halt()
		b.halt()
	})
}
