package vmstate

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/gocolo/lockstep/qemufile"
)

// machine is 20 KiB of device state in the proportions of a small machine: many
// integers, some arrays, a few buffers, subsections.
type machine struct {
	regs  [16]uint64
	cr    [8]uint32
	flags [12]uint8
	msrs  [100]uint64
	fpu   [512]byte
	on    bool
	extra uint64
}

func (m *machine) VMState(f *Fields) {
	f.Uint64("regs[0]", &m.regs[0])
	for i := range m.regs[1:] {
		f.Uint64("regs", &m.regs[i+1])
	}
	for i := range m.cr {
		f.Uint32("cr", &m.cr[i])
	}
	for i := range m.flags {
		f.Uint8("flags", &m.flags[i])
	}
	f.Uint64s("msrs", m.msrs[:])
	f.Bytes("fpu", m.fpu[:])
	f.Struct("part", "part", 1, func(f *Fields) { f.Bool("on", &m.on) })
	f.Subsection("machine/extra", 1, m.on, func(f *Fields) { f.Uint64("extra", &m.extra) })
}

func machines(t testing.TB) (*Registry, int) {
	t.Helper()
	reg := new(Registry)
	for i := range uint32(14) {
		if err := reg.Register(Entry{Name: "machine", Instance: i, Version: 1}, &machine{on: true}); err != nil {
			t.Fatal(err)
		}
	}
	return reg, len(saved(t, reg))
}

func TestSavingAndLoadingAllocateNothing(t *testing.T) {
	reg, size := machines(t)
	if size < 20<<10 {
		t.Fatalf("%d bytes", size)
	}
	var blob bytes.Buffer
	w := qemufile.NewWriter(&blob)
	save := func() {
		blob.Reset()
		if err := reg.SaveDevices(w); err != nil {
			t.Fatal(err)
		}
		PutEOF(w)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	save()
	if n := testing.AllocsPerRun(100, save); n != 0 {
		t.Errorf("saving: %v allocations", n)
	}
	state := bytes.Clone(blob.Bytes())
	load := func() {
		if err := reg.LoadDevices(state, nil); err != nil {
			t.Fatal(err)
		}
		if err := reg.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	load()
	if n := testing.AllocsPerRun(100, load); n != 0 {
		t.Errorf("loading: %v allocations", n)
	}
	undo := func() {
		if err := reg.LoadDevices(state, nil); err != nil {
			t.Fatal(err)
		}
		reg.Rollback()
	}
	if n := testing.AllocsPerRun(100, undo); n != 0 {
		t.Errorf("rolling back: %v allocations", n)
	}
}

func TestLiveSectionsAllocateNothing(t *testing.T) {
	var reg Registry
	l := &steady{}
	wantNil(t, "register", reg.RegisterLive(Entry{Name: "ram", Version: 4}, l, l))
	var blob bytes.Buffer
	w := qemufile.NewWriter(&blob)
	wantNil(t, "setup", reg.SaveSetup(w))
	PutEOF(w)
	wantNil(t, "flush", w.Flush())
	r := reader(nil)
	src := bytes.NewReader(nil)
	load := func() {
		src.Reset(blob.Bytes())
		r.Reset(src)
		if err := reg.Load(r, nil); err != nil {
			t.Fatal(err)
		}
	}
	load()
	round := func() {
		blob.Reset()
		if _, err := reg.SaveIterate(w); err != nil {
			t.Fatal(err)
		}
		if _, err := reg.Capture(); err != nil {
			t.Fatal(err)
		}
		if err := reg.SaveComplete(w); err != nil {
			t.Fatal(err)
		}
		PutEOF(w)
		reg.Pending(true)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		load()
	}
	round()
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// steady is a live device of one byte that keeps nothing.
type steady struct{ live }

func (s *steady) LoadState(r *qemufile.Reader, _ uint32) error { r.Byte(); return r.Err() }

// copyTime returns the bound of both benchmarks: moving the same bytes.
func copyTime(n int) time.Duration {
	a, b := make([]byte, n), make([]byte, n)
	start := time.Now()
	const rounds = 1000
	for range rounds {
		copy(a, b)
	}
	return time.Since(start) / rounds
}

// BenchmarkSaveDevices saves 20 KiB of device state into memory. of-copy is its
// time beside that of a copy of as many bytes.
func BenchmarkSaveDevices(b *testing.B) {
	reg, size := machines(b)
	var blob bytes.Buffer
	w := qemufile.NewWriter(&blob)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		blob.Reset()
		if err := reg.SaveDevices(w); err != nil {
			b.Fatal(err)
		}
		w.Flush()
	}
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(copyTime(size)), "copies")
}

// BenchmarkLoadDevices stages and commits 20 KiB of device state.
func BenchmarkLoadDevices(b *testing.B) {
	reg, size := machines(b)
	state := saved(b, reg)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		if err := reg.LoadDevices(state, nil); err != nil {
			b.Fatal(err)
		}
		if err := reg.Commit(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(copyTime(size)), "copies")
}

// BenchmarkDocument takes a stream of a small machine apart and describes it.
func BenchmarkDocument(b *testing.B) {
	for _, name := range []string{"pc-min-1m.mig.gz", "q35-usb.mig.gz"} {
		b.Run(fmt.Sprint(name), func(b *testing.B) {
			stream := vector(b, name)
			b.SetBytes(int64(len(stream)))
			for b.Loop() {
				if _, err := ReadDocument(reader(stream), &rawRAM{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
