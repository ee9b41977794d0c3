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
	data    []byte   // what reads see; a test that writes to it cuts no power before it calls settle
	powered bool     // what survives for certain is tracked
	pieces  []*piece // that, where something was written: see stable
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
	if fill == 0 {
		return &fakeDisk{data: make([]byte, size)} // of which nothing is touched
	}
	return &fakeDisk{data: bytes.Repeat([]byte{fill}, size)}
}

// newPoweredFake returns a fakeDisk of data, which it keeps, whose power can be cut.
func newPoweredFake(data []byte) *fakeDisk {
	return &fakeDisk{data: data, powered: true}
}

// again returns another disk of the same content.
func (d *fakeDisk) again() *fakeDisk { return newPoweredFake(cloned(d.data)) }

// cloned returns a copy of data that touches no memory for its zeros.
func cloned(data []byte) []byte {
	var zeros piece
	p := make([]byte, len(data))
	for off := 0; off < len(p); off += len(zeros) {
		if from := data[off:min(off+len(zeros), len(p))]; !bytes.Equal(from, zeros[:len(from)]) {
			copy(p[off:], from)
		}
	}
	return p
}

// A piece is what survives for certain of so many bytes of a disk. It is copied from what
// reads see when the first of them is about to be written.
type piece [4096]byte

// keep copies the pieces of the n bytes at off, which are about to be written. The caller
// holds mu.
func (d *fakeDisk) keep(off, n int64) {
	const size = int64(len(piece{}))
	if more := (d.Size()+size-1)/size - int64(len(d.pieces)); more > 0 { // a disk can grow
		d.pieces = append(d.pieces, make([]*piece, more)...)
	}
	for i := off / size; i*size < off+n; i++ {
		if d.pieces[i] == nil {
			d.pieces[i] = new(piece)
			copy(d.pieces[i][:], d.data[i*size:])
		}
	}
}

// settle makes what reads see stable. The caller holds mu, or is alone.
func (d *fakeDisk) settle() { d.pieces, d.pending = nil, nil }

// stable returns a copy of what survives for certain of the n bytes at off. The caller
// holds mu.
func (d *fakeDisk) stable(off, n int64) []byte {
	const size = int64(len(piece{}))
	p := cloned(d.data[off : off+n])
	for i := off / size; i*size < off+n && i < int64(len(d.pieces)); i++ {
		if piece := d.pieces[i]; piece != nil {
			at := max(i*size, off)
			copy(p[at-off:], piece[at-i*size:])
		}
	}
	return p
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
	if !d.powered {
		copy(d.data[off:], p)
	} else { // it is sectors that get there, or do not
		from := off / SectorSize * SectorSize
		to := min((off+int64(len(p))+SectorSize-1)/SectorSize*SectorSize, d.Size())
		d.keep(from, to-from)
		copy(d.data[off:], p)
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
		for p, off := w.data, w.off; len(p) > 0; {
			const size = int64(len(piece{}))
			n := copy(d.pieces[off/size][off%size:], p)
			p, off = p[n:], off+int64(n)
		}
	}
	d.pending = d.pending[:0]
	return nil
}

// cutPower returns the disk as it is after the power has gone and come back.
func (d *fakeDisk) cutPower(rng *rand.Rand) *fakeDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	data := d.stable(0, d.Size())
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
	return newPoweredFake(data)
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
	got := read(t, d, off, n)
	if n > 0 && got[0] == fill && bytes.Equal(got[1:], got[:n-1]) {
		return
	}
	wantBytes(t, why, got, bytes.Repeat([]byte{fill}, int(n)), off)
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
