package ram

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/internal/damage"
	"github.com/gocolo/lockstep/qemufile"
)

// FuzzLoadState gives a cache and a walker anything.
func FuzzLoadState(f *testing.F) {
	for _, x := range vectors {
		for _, b := range ramBodies(f, readVector(f, x.file), x.format) {
			f.Add(b, x.format.IgnoreShared, false)
		}
	}
	whole, _ := cuts(f, Format{}, slices.Concat(unhex(f, "0000000000006004 03 72616d 0000000000004000 03 626967 0000000000001000 04 66696c65 0000000000001000 0000000000001008 03 72616d"), page(1),
		unhex(f, "0000000000001060 01 0003 0501aa 0000000000000022 00"+eosHex)))
	for _, p := range damage.Copies(1, 20, whole) {
		f.Add(p, false, false)
	}
	for _, s := range []string{
		"0000000000004004 03 72616d 0000000000004000" + eosHex,
		"0000000000004004 03 72616d fffffffffffff000" + eosHex,
		"0000000000001002 03 72616d 55 0000000000000022 00" + eosHex,
		"0000000000001040 03 72616d 01 0004 0502aabb 0000000000001060 01 0003 050001" + eosHex,
		"fffffffffffff008 03 72616d" + eosHex,
		"0000000000001100 03 72616d ffffffff" + eosHex,
		"0000000000000200 0000000000000030",
		"0000000000000028", "0000000000000001", "0000000000000080",
		"fffffffffffff004 03 72616d 0000000000004000 00 0000000000000000",
	} {
		f.Add(unhex(f, s), false, true)
	}
	f.Add(slices.Concat(unhex(f, "0000000000001008 03 72616d"), page(1), compressed(f, 0x2000, deflated(f, page(2))), unhex(f, eosHex)), true, true)

	g := newGuest(f, Block{Name: "ram", Host: newMemory(f, 4*PageSize)},
		Block{Name: "big", Host: newMemory(f, 4*PageSize), Used: PageSize, Resizable: true, HostPageSize: 2 << 20},
		Block{Name: "file", Host: newMemory(f, PageSize), Shared: true})
	f.Fuzz(func(t *testing.T, in []byte, shared, postcopy bool) {
		loadsOrRefuses(t, g, in, Format{IgnoreShared: shared, Postcopy: postcopy})
	})
}

// loadsOrRefuses gives a cache and a walker the same bytes. Neither may panic or
// take memory on a peer's word; the guest stays as it is until a flush of what
// loaded without error; and what a walk reads, it can write again.
func loadsOrRefuses(t *testing.T, g *guest, in []byte, format Format) {
	t.Helper()
	for i := range g.blocks {
		clear(g.blocks[i].Host)
	}
	c, err := NewCache(g.blocks, g, CacheConfig{Format: format})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := reader(in)
	for err == nil && r.Offset() < int64(len(in)) {
		err = c.LoadState(r, Version)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20+uint64(len(in))*64 {
		t.Fatalf("%d bytes of input took %d bytes of memory", len(in), n)
	}
	for i := range g.blocks {
		for off := 0; off < len(g.blocks[i].Host); off += PageSize {
			if !isZero(g.blocks[i].Host[off : off+PageSize]) {
				t.Fatal("a load changed the guest")
			}
		}
	}
	var e *Error
	switch {
	case err == nil:
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	case !errors.As(err, &e) || e.Stream < 0 || e.Stream > int64(len(in)):
		t.Fatalf("error %#v does not say where", err)
	default:
		if err := c.Flush(); !errors.Is(err, ErrDiscarded) {
			t.Fatalf("Flush after a failed load: %v", err)
		}
	}

	var again bytes.Buffer
	w := qemufile.NewWriter(&again)
	k := Walker{Format: format}
	r = reader(in)
	var walked error
	var end int64
	for walked == nil && r.Offset() < int64(len(in)) {
		walked = k.Walk(r, func(rec *Record) error {
			rec.Put(w, format)
			end = r.Offset()
			return nil
		})
	}
	if err == nil && walked != nil && !errors.Is(walked, ErrOffset) {
		t.Fatalf("what loads does not walk: %v", walked)
	}
	if walked != nil && !errors.As(walked, &e) {
		t.Fatalf("untyped error %v", walked)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Bytes(), in[:end]) {
		t.Fatalf("written differently: % x, read % x", again.Bytes(), in[:end])
	}
	_, _ = io.Copy(io.Discard, &again)
}
