package replication

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/event"
)

var (
	errInjected = errors.New("injected fault")
	errPower    = errors.New("power failure")
)

// fakeDisk is a disk in memory that can fail, and whose power can be cut: of
// what was written since the last Sync any sectors may then be lost.
type fakeDisk struct {
	mu      sync.Mutex
	data    []byte // what reads see
	stable  []byte // what survives for certain; nil: not tracked
	pending []pendingWrite

	// Asked before each operation, if set.
	failRead, failWrite func(off int64, n int) error
	failSync            func() error

	syncs, zeroed int
	copy          Identity // what a fakeRemote says of it, if it says nothing itself
	power         *power   // shared by the disks of a host; nil: for ever
}

// power fails after some more operations on the disks that share it.
type power struct {
	mu   sync.Mutex
	left int // operations; negative: no failure is planned
	out  bool
}

// use counts an operation. The one during which the power fails may still
// have an effect; those after it have none.
func (p *power) use() (during, after bool) {
	if p == nil {
		return false, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out {
		return false, true
	}
	if p.left == 0 {
		p.out = true
		return true, false
	}
	p.left--
	return false, false
}

type pendingWrite struct {
	off  int64
	data []byte
}

func newFake(size int, fill byte) *fakeDisk {
	return &fakeDisk{data: bytes.Repeat([]byte{fill}, size)}
}

// newPoweredFake returns a fakeDisk whose power can be cut.
func newPoweredFake(data []byte) *fakeDisk {
	return &fakeDisk{data: bytes.Clone(data), stable: bytes.Clone(data)}
}

func (d *fakeDisk) Size() int64 { return int64(len(d.data)) }

func (d *fakeDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := checkRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	if during, after := d.power.use(); during || after {
		return 0, errPower
	}
	if d.failRead != nil {
		if err := d.failRead(off, len(p)); err != nil {
			return 0, err
		}
	}
	return copy(p, d.data[off:]), nil
}

func (d *fakeDisk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := checkRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	if d.failWrite != nil {
		if err := d.failWrite(off, len(p)); err != nil {
			return 0, err
		}
	}
	during, after := d.power.use()
	if after {
		return 0, errPower
	}
	copy(d.data[off:], p)
	if d.stable != nil { // it is sectors that get there, or do not
		from := off / SectorSize * SectorSize
		to := min((off+int64(len(p))+SectorSize-1)/SectorSize*SectorSize, d.Size())
		d.pending = append(d.pending, pendingWrite{from, bytes.Clone(d.data[from:to])})
	}
	if during {
		return 0, errPower
	}
	return len(p), nil
}

func (d *fakeDisk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.syncs++
	if d.failSync != nil {
		if err := d.failSync(); err != nil {
			d.pending = d.pending[:0] // reads still have it, and the next sync succeeds
			return err
		}
	}
	if during, after := d.power.use(); during || after {
		return errPower
	}
	for _, w := range d.pending {
		copy(d.stable[w.off:], w.data)
	}
	d.pending = d.pending[:0]
	return nil
}

// cutPower returns the disk as it is after the power has gone and come back.
func (d *fakeDisk) cutPower(rng *rand.Rand) *fakeDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	data := bytes.Clone(d.stable)
	keep := rng.IntN(5) // sometimes nothing at all reached the platter, sometimes everything
	for _, w := range d.pending {
		for p, off := w.data, w.off; len(p) > 0; {
			n := min(SectorSize-off%SectorSize, int64(len(p)))
			if rng.IntN(4) < keep {
				copy(data[off:], p[:n])
			}
			p, off = p[n:], off+n
		}
	}
	return &fakeDisk{data: data, stable: bytes.Clone(data)}
}

// heard returns a bus, and where the events of one type that it carries go.
func heard[T event.Event]() (*event.Bus, *[]T) {
	bus, all := new(event.Bus), new([]T)
	event.Subscribe(bus, func(e T) { *all = append(*all, e) })
	return bus, all
}

func read(t *testing.T, d Disk, off, n int64) []byte {
	t.Helper()
	p := make([]byte, n)
	if _, err := d.ReadAt(p, off); err != nil {
		t.Fatalf("read %d at %d: %v", n, off, err)
	}
	return p
}

func write(t *testing.T, d Disk, fill byte, off, n int64) {
	t.Helper()
	if _, err := d.WriteAt(bytes.Repeat([]byte{fill}, int(n)), off); err != nil {
		t.Fatalf("write %#x to %d at %d: %v", fill, n, off, err)
	}
}

// want asserts that every byte of a range is fill.
func want(t *testing.T, why string, d Disk, fill byte, off, n int64) {
	t.Helper()
	wantBytes(t, why, read(t, d, off, n), bytes.Repeat([]byte{fill}, int(n)), off)
}

func wantBytes(t *testing.T, why string, got, want []byte, off int64) {
	t.Helper()
	if d := firstDifference(got, want); d >= 0 {
		t.Fatalf("%s: at offset %d: %#x, want %#x", why, off+int64(d), got[d], want[d])
	}
}

func firstDifference(a, b []byte) int {
	if len(a) != len(b) {
		panic(fmt.Sprintf("comparing %d bytes with %d", len(a), len(b)))
	}
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

func wantErr(t *testing.T, why string, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("%s: error %v, want %v", why, err, target)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
