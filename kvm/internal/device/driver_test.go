package device

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// board is a guest's memory and interrupt controllers, with one device.
type board struct {
	t    testing.TB
	mem  []byte
	gate *Gate

	mu     sync.Mutex
	marked map[uint64]bool // pages
	level  bool
	rises  int // of the line
}

const testMemory = 1 << 20

func newBoard(t testing.TB) *board {
	b := &board{t: t, mem: make([]byte, testMemory), gate: NewGate(), marked: map[uint64]bool{}}
	b.gate.Open()
	return b
}

func (b *board) memory() *Memory {
	return NewMemory(b.mem, len(b.mem), func(gpa, n uint64) {
		b.mu.Lock()
		defer b.mu.Unlock()
		for p := gpa / 4096; n > 0 && p <= (gpa+n-1)/4096; p++ {
			b.marked[p] = true
		}
	})
}

func (b *board) line(level bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if level && !b.level {
		b.rises++
	}
	b.level = level
}

func (b *board) raised() (level bool, rises int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.level, b.rises
}

// watch calls fn, in which only the device writes memory, and fails unless every
// page that changed was marked.
func (b *board) watch(fn func()) {
	b.t.Helper()
	before := bytes.Clone(b.mem)
	clear(b.marked)
	fn()
	b.mu.Lock()
	defer b.mu.Unlock()
	for p := 0; p < len(b.mem); p += 4096 {
		if !bytes.Equal(b.mem[p:p+4096], before[p:p+4096]) && !b.marked[uint64(p)/4096] {
			b.t.Errorf("page %#x was written and not marked", p)
		}
	}
}

// untouched is watch for what must not write memory at all.
func (b *board) untouched(why string, fn func()) {
	b.t.Helper()
	before := bytes.Clone(b.mem)
	fn()
	if !bytes.Equal(b.mem, before) {
		b.t.Errorf("%s: memory was written", why)
	}
}

// ring is a driver's end of a virtqueue.
type ring struct {
	b     *board
	ports Ports
	index uint16
	base  uint64
	avail uint16
	seen  uint16
}

// part is a piece of memory for a descriptor.
type part struct {
	addr  uint64
	n     uint32
	write bool
}

func newRing(b *board, ports Ports, index uint16, base uint64) *ring {
	r := &ring{b: b, ports: ports, index: index, base: base}
	clear(b.mem[base:][:queueBytes])
	r.out(regSelect, 2, uint32(index))
	r.out(regPFN, 4, uint32(base/queueAlign))
	return r
}

func (r *ring) out(reg uint16, n int, v uint32) {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], v)
	r.ports.Out(reg, p[:n])
}

func (r *ring) in(reg uint16, n int) uint32 {
	var p [4]byte
	r.ports.In(reg, p[:n])
	return binary.LittleEndian.Uint32(p[:])
}

// desc writes a descriptor.
func (r *ring) desc(i uint16, p part, flags, next uint16) {
	d := r.b.mem[r.base+16*uint64(i):]
	binary.LittleEndian.PutUint64(d, p.addr)
	binary.LittleEndian.PutUint32(d[8:], p.n)
	if p.write {
		flags |= descWrite
	}
	binary.LittleEndian.PutUint16(d[12:], flags)
	binary.LittleEndian.PutUint16(d[14:], next)
}

// offer makes a chain available that begins with descriptor head.
func (r *ring) offer(head uint16, parts ...part) {
	for i, p := range parts {
		flags := uint16(descNext)
		if i == len(parts)-1 {
			flags = 0
		}
		r.desc(head+uint16(i), p, flags, head+uint16(i)+1)
	}
	r.push(head)
}

// push makes available what a descriptor begins.
func (r *ring) push(head uint16) {
	a := r.b.mem[r.base+availAt:]
	binary.LittleEndian.PutUint16(a[4+2*(r.avail%QueueSize):], head)
	r.avail++
	binary.LittleEndian.PutUint16(a[2:], r.avail)
}

func (r *ring) kick() { r.out(regNotify, 2, uint32(r.index)) }

// used returns what the device has returned since the last call.
func (r *ring) used() (list []usedEntry) {
	u := r.b.mem[r.base+usedAt:]
	for r.seen != binary.LittleEndian.Uint16(u[2:]) {
		e := u[4+8*uint64(r.seen%QueueSize):]
		list = append(list, usedEntry{binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:])})
		r.seen++
	}
	return list
}

type usedEntry struct{ head, n uint32 }

// want fails unless the device has returned exactly these.
func (r *ring) want(why string, want ...usedEntry) {
	r.b.t.Helper()
	if got := r.used(); !slices.Equal(got, want) {
		r.b.t.Errorf("%s: returned %v, want %v", why, got, want)
	}
}

// drain performs a worker's steps here and now.
func drain(step func() bool) {
	for step() {
	}
}

// entry returns the section of a device.
func entry(s State) vmstate.Entry {
	e := vmstate.Entry{Name: "device", Version: 1, MinVersion: 1}
	if _, ok := s.(*Net); ok {
		e.Version = NetVersion
	}
	return e
}

// stream saves a device and returns its section.
func stream(t testing.TB, s State) []byte {
	t.Helper()
	s.Save()
	var reg vmstate.Registry
	must(t, reg.Register(entry(s), s))
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	must(t, reg.SaveDevices(w))
	vmstate.PutEOF(w)
	must(t, w.Flush())
	return b.Bytes()
}

// load loads a section into a device.
func load(s State, stream []byte) error {
	var reg vmstate.Registry
	if err := reg.Register(entry(s), s); err != nil {
		return err
	}
	if err := reg.LoadDevices(stream, nil); err != nil {
		return err
	}
	if err := reg.Commit(); err != nil {
		return err
	}
	s.Apply()
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run calls a device's Work until the test's function has returned.
func run(work func(context.Context, *Gate), gate *Gate, fn func()) {
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { work(ctx, gate) })
	fn()
	stop()
	wg.Wait()
}
