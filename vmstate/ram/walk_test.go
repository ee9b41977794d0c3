package ram

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// ramBodies cuts the bodies of the ram sections out of a stream whose first
// section is ram's START. It knows as much of the stream as it has to.
func ramBodies(t testing.TB, stream []byte, f Format) [][]byte {
	t.Helper()
	i := bytes.Index(stream, append([]byte{1, 0, 0, 0, 2, 3}, "ram"...))
	if i < 0 {
		t.Fatal("no ram section")
	}
	r := reader(stream[i:])
	k := Walker{Format: f}
	var bodies [][]byte
	for {
		switch kind := r.Byte(); kind {
		case 1:
			r.Skip(4 + 4 + 4 + 4)
		case 2, 3:
			r.Skip(4)
		case 8: // a command
			packaged := r.BE16() == 7
			if n := uint64(r.BE16()); packaged {
				r.Skip(uint64(r.BE32())) // the stream inside
			} else {
				r.Skip(n)
			}
			continue
		default: // devices, or the end
			return bodies
		}
		start := r.Offset()
		if err := k.Walk(r, func(*Record) error { return nil }); err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, stream[i+int(start):i+int(r.Offset())])
		r.Skip(5) // footer
		if err := r.Err(); err != nil {
			t.Fatal(err)
		}
	}
}

var vectors = []struct {
	file   string
	pages  int
	format Format
	bodies int
}{
	{"precopy_none_1M.bin", 256, Format{}, 3},
	{"precopy_none_1M_x-ignore-shared.bin", 256, Format{IgnoreShared: true}, 3},
	{"colo_none_1M_initial.bin", 256, Format{}, 3},
	{"postcopy_none_8M_stream.bin", 2048, Format{Postcopy: true}, 8},
}

func readVector(t testing.TB, file string) []byte {
	t.Helper()
	p, err := os.ReadFile(filepath.Join("testdata", "qemu-7.2", file))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestStreamsOfQEMULoad(t *testing.T) {
	for _, x := range vectors {
		t.Run(x.file, func(t *testing.T) {
			bodies := ramBodies(t, readVector(t, x.file), x.format)
			if len(bodies) != x.bodies {
				t.Fatalf("%d sections, want %d", len(bodies), x.bodies)
			}
			g, c := one(t, x.pages, CacheConfig{Format: x.format, ZeroFillOnly: true})
			copy(g.blocks[0].Host, page(1))
			r := reader(slices.Concat(bodies...))
			for i := range bodies {
				if err := c.LoadState(r, Version); err != nil {
					t.Fatalf("section %d: %v", i, err)
				}
			}
			if s := c.Stats(); s.Pages != s.ZeroPages || s.Pages < uint64(x.pages) {
				t.Errorf("%+v, want %d zero pages", s, x.pages)
			}
			flush(t, c)
			wantMemory(t, "the guest", g, [][]byte{make([]byte, x.pages*PageSize)})
		})
	}
}

// A walker finds the memory of each vector by what the stream says, and nothing else.
func TestAWalkerLearnsTheFormatFromTheStream(t *testing.T) {
	for _, x := range vectors {
		k := Walker{PageSize: PageSize}
		bodies := 0
		s := vmstate.Scanner{
			Record: func(rec *vmstate.Record) error { k.Learn(rec); return nil },
			Live: func(_ vmstate.Header, r *qemufile.Reader) error {
				bodies++
				return k.Walk(r, func(*Record) error { return nil })
			},
		}
		err := s.Stream(reader(readVector(t, x.file)))
		if err != nil || k.Format != x.format || bodies != x.bodies {
			t.Errorf("%s: %+v and %d sections, want %+v and %d: %v", x.file, k.Format, bodies, x.format, x.bodies, err)
		}
	}
}

func TestAWalkerLearnsWhatARecordSays(t *testing.T) {
	configured := func(bits uint32, capabilities ...string) *vmstate.Record {
		return &vmstate.Record{Type: vmstate.Configured, Configuration: vmstate.Configuration{TargetPageBits: bits, Capabilities: capabilities}}
	}
	advise := &vmstate.Record{Type: vmstate.CommandRecord, Command: vmstate.PostcopyAdvise{}.Command()}
	for _, x := range []struct {
		set   int // the size of pages that is known beforehand
		says  []*vmstate.Record
		size  int
		wants Format
	}{
		{0, []*vmstate.Record{configured(0)}, 0, Format{}},
		{0, []*vmstate.Record{configured(10, "xbzrle", "mapped-ram")}, 1024, Format{MappedRAM: true}},
		{4096, []*vmstate.Record{configured(10, "x-ignore-shared"), advise}, 4096, Format{IgnoreShared: true, Postcopy: true}},
		{0, []*vmstate.Record{configured(7)}, 0, Format{}},
		{0, []*vmstate.Record{configured(40)}, 0, Format{}},
		{0, []*vmstate.Record{{Type: vmstate.CommandRecord, Command: vmstate.PostcopyListen()}, {Type: vmstate.EOF}}, 0, Format{}},
	} {
		k := Walker{PageSize: x.set}
		for _, rec := range x.says {
			k.Learn(rec)
		}
		if k.PageSize != x.size || k.Format != x.wants {
			t.Errorf("%+v: pages of %d, %+v, want %d, %+v", x.says, k.PageSize, k.Format, x.size, x.wants)
		}
	}
}

// TestSaverWritesWhatQEMUWrites compares a whole precopy migration of the same
// memory, byte for byte.
func TestSaverWritesWhatQEMUWrites(t *testing.T) {
	for _, x := range vectors[:3] {
		bodies := ramBodies(t, readVector(t, x.file), x.format)
		g := newGuest(t, pages(t, "ram", x.pages))
		s := NewSaver(g.blocks, g, SaverConfig{Format: x.format})
		for i, step := range []func(w *qemufile.Writer) error{
			s.SaveSetup,
			func(w *qemufile.Writer) error { _, err := s.SaveIterate(w); return err },
			s.SaveComplete,
		} {
			got := body(t, func(w *qemufile.Writer) {
				if err := step(w); err != nil {
					t.Fatal(err)
				}
			})
			if !bytes.Equal(got, bodies[i]) {
				t.Errorf("%s: section %d differs", x.file, i)
			}
		}
	}
}

func TestEveryTruncationOfQEMUsStreamFails(t *testing.T) {
	in := slices.Concat(ramBodies(t, readVector(t, "precopy_none_1M.bin"), Format{})...)
	_, c := one(t, 256, CacheConfig{})
	whole := len(ramBodies(t, readVector(t, "precopy_none_1M.bin"), Format{})[0])
	for n := range in {
		c.NewSession()
		r := reader(in[:n])
		err := c.LoadState(r, Version)
		if n >= whole {
			if err != nil {
				t.Fatal(err)
			}
			if err = c.LoadState(r, Version); err == nil {
				err = c.LoadState(r, Version)
			}
		}
		if err == nil {
			t.Fatalf("%d bytes of %d are enough", n, len(in))
		}
	}
}

func TestRecordsAreWrittenAsTheyWereRead(t *testing.T) {
	bodies := [][]byte{slices.Concat(
		unhex(t, "0000000000004004 03 72616d 0000000000004000"),
		unhex(t, "0000000000000008 03 72616d"), page(1),
		unhex(t, "0000000000001022 07"),
		unhex(t, "0000000000000060 01 0004 0502aabb"),
		compressed(t, 0x2000, deflated(t, page(4))),
		unhex(t, "0000000000003200 0000000000001024 03 72616d 0000000000001000 0000000000123030"),
	)}
	formats := []Format{{}}
	for _, x := range vectors {
		for _, b := range ramBodies(t, readVector(t, x.file), x.format) {
			bodies, formats = append(bodies, b), append(formats, x.format)
		}
	}
	huge := unhex(t, "0000000000004004 03 72616d 0000000000004000 0000000000200000 0000000000000000"+eosHex)
	bodies, formats = append(bodies, huge), append(formats, Format{Postcopy: true, IgnoreShared: true})
	for i, in := range bodies {
		k := Walker{Format: formats[i]}
		if i > 0 {
			k.block, k.named = "ram", true // of an earlier section
		}
		total := int64(0)
		got := body(t, func(w *qemufile.Writer) {
			if err := k.Walk(reader(in), func(rec *Record) error {
				if rec.Stream != total {
					t.Errorf("record at %d, want %d", rec.Stream, total)
				}
				total += rec.Length
				rec.Put(w, k.Format)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		})
		if !bytes.Equal(got, in) {
			t.Errorf("body %d: written differently:\n% x\n% x", i, got[:min(len(got), 80)], in[:min(len(in), 80)])
		}
	}
}

func TestWalkTellsEveryRecord(t *testing.T) {
	in := slices.Concat(
		unhex(t, "0000000000004004 03 72616d 0000000000004000"),
		unhex(t, "0000000000001008 03 72616d"), page(1),
		unhex(t, "0000000000001060 01 0004 0502aabb"),
		unhex(t, "0000000000002022 00"+eosHex))
	var got []string
	k := &Walker{}
	mem := make([]byte, 4*PageSize)
	if err := k.Walk(reader(in), func(rec *Record) error {
		got = append(got, fmt.Sprintf("%v %s %#x %v %d", rec.Kind, rec.Block, rec.Offset, rec.Continue, rec.Length))
		if rec.Page() {
			return rec.Apply(mem[rec.Offset:])
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"block-list  0x0 false 20",
		"page ram 0x1000 false 4108",
		"xbzrle ram 0x1000 true 15",
		"zero ram 0x2000 true 9",
		"eos  0x0 false 8",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	if mem[0x1005] != 0xaa || mem[0x1004] != 1 {
		t.Error("the records were not applied")
	}
	stop := errors.New("stop")
	if err := (&Walker{}).Walk(reader(in), func(*Record) error { return stop }); err != stop {
		t.Errorf("an error of the callback: %v", err)
	}
	if s := Kind(99).String(); s != "kind-99" {
		t.Error(s)
	}
}

func TestWalkAllocatesOnlyForNames(t *testing.T) {
	in := slices.Concat(unhex(t, "0000000000001008 03 72616d"), page(1), unhex(t, "0000000000002022 00"+eosHex))
	var src bytes.Reader
	r := qemufile.NewReader(&src)
	k := &Walker{}
	fn := func(*Record) error { return nil }
	if n := testing.AllocsPerRun(100, func() {
		src.Reset(in)
		r.Reset(&src)
		if err := k.Walk(r, fn); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per section", n)
	}
}

func TestWalkBoundsTheBlockList(t *testing.T) {
	in := body(t, func(w *qemufile.Writer) {
		w.PutBE64(1<<40 | flagMemSize)
		for i := range 10000 {
			w.PutCountedString(fmt.Sprint(i))
			w.PutBE64(0)
		}
	})
	err := (&Walker{}).Walk(reader(in), func(*Record) error { return nil })
	if !errors.Is(err, ErrBlockList) {
		t.Errorf("10000 empty blocks: %v", err)
	}
}
