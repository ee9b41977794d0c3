package diff

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/plain"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// deviceFunc is a device of which only the fields are known.
type deviceFunc func(f *vmstate.Fields)

func (d deviceFunc) VMState(f *vmstate.Fields) { d(f) }

// side describes one side of a comparison.
type side struct {
	machine string
	bare    bool // neither configuration nor footers
	blocks  []ram.BlockInfo
	pages   []ram.Record
	entries []vmstate.Entry
	devices []deviceFunc
	shift   uint32 // of section ids
	again   func() // not nil: the devices come twice, and this is called before the second time
}

// with adds a device.
func (s side) with(e vmstate.Entry, fn deviceFunc) side {
	s.entries = append(slices.Clone(s.entries), e)
	s.devices = append(slices.Clone(s.devices), fn)
	return s
}

// saver writes the memory of a side.
type saver struct{ s side }

func (m saver) SaveSetup(w *qemufile.Writer) error {
	total := uint64(0)
	for _, b := range m.s.blocks {
		total += b.Length
	}
	for _, rec := range []ram.Record{{Kind: ram.KindBlockList, Total: total, Blocks: m.s.blocks}, {Kind: ram.KindEOS}} {
		rec.Put(w, ram.Format{})
	}
	return nil
}
func (m saver) SaveIterate(*qemufile.Writer) (bool, error) { return true, nil }
func (m saver) SaveComplete(w *qemufile.Writer) error {
	for _, rec := range m.s.pages {
		rec.Put(w, ram.Format{})
	}
	eos := ram.Record{Kind: ram.KindEOS}
	eos.Put(w, ram.Format{})
	return nil
}

// stream returns a migration of the side.
func (s side) stream(t testing.TB) []byte {
	t.Helper()
	var reg vmstate.Registry
	reg.NoFooters = s.bare
	for i := range s.shift {
		if err := reg.Register(vmstate.Entry{Name: fmt.Sprintf("absent%d", i), Version: 1}, absent{}); err != nil {
			t.Fatal(err)
		}
	}
	if s.blocks != nil {
		if err := reg.RegisterLive(vmstate.Entry{Name: ram.SectionName, Version: ram.Version}, saver{s}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for i, e := range s.entries {
		if err := reg.Register(e, s.devices[i]); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	vmstate.PutFileHeader(w)
	if !s.bare {
		vmstate.PutConfiguration(w, vmstate.Configuration{Machine: s.machine})
	}
	w.Fail(reg.SaveSetup(w))
	w.Fail(reg.SaveComplete(w))
	w.Fail(reg.SaveDevices(w))
	if s.again != nil {
		s.again()
		w.Fail(reg.SaveDevices(w))
	}
	vmstate.PutEOF(w)
	reg.PutVMDesc(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type absent struct{}

func (absent) VMState(*vmstate.Fields) {}
func (absent) Needed() bool            { return false }

func (s side) state(t testing.TB) *State {
	t.Helper()
	st, err := Read(qemufile.NewReader(bytes.NewReader(s.stream(t))), Config{})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func clock(n uint64, v uint32) (vmstate.Entry, deviceFunc) {
	return vmstate.Entry{Name: "clock", Version: v, MinVersion: 1}, func(f *vmstate.Fields) { f.Uint64("now", &n) }
}

func page(c byte) []byte { return bytes.Repeat([]byte{c}, ram.PageSize) }

func base() side {
	s := side{
		machine: "pc",
		blocks:  []ram.BlockInfo{{Name: "pc.ram", Length: 4 * ram.PageSize}, {Name: "pc.rom", Length: ram.PageSize}},
		pages: []ram.Record{
			{Kind: ram.KindPage, Block: "pc.ram", Data: page(1)},
			{Kind: ram.KindPage, Block: "pc.ram", Offset: 4096, Data: page(2)},
			{Kind: ram.KindZero, Block: "pc.ram", Offset: 8192},
			{Kind: ram.KindZero, Block: "pc.ram", Offset: 12288},
			{Kind: ram.KindZero, Block: "pc.rom"},
		},
	}
	return s.with(clock(5, 2))
}

func lines[T fmt.Stringer](list []T) []string {
	var out []string
	for _, x := range list {
		out = append(out, x.String())
	}
	return out
}

func TestADifferenceAndAFindingAreOneLineThatCanBePrinted(t *testing.T) {
	for _, name := range []string{"evil\x1b[2J", "evil\nequal", "evil\u009b2J", "evil\u202elive", "evil\x9b2J"} {
		for _, line := range []string{
			Difference{Kind: Value, Where: name, Field: name, A: name, B: name}.String(),
			Difference{Kind: Pages, Where: name, Count: 1, Ranges: []Range{{0, 1}}}.String(),
			Finding{Certainty: Refusal, Where: name, Field: name, Why: name, Says: name}.String(),
		} {
			if !plain.Is(line) || !strings.Contains(line, "evil") {
				t.Errorf("%q of the name %q", line, name)
			}
		}
	}
}

func TestWhatDoesNotSurviveALoadIsNoDifference(t *testing.T) {
	a := base()
	b := base()
	b.shift = 7
	b.bare = false
	b.pages = append([]ram.Record{{Kind: ram.KindPage, Block: "pc.ram", Offset: 4096, Data: page(9)}}, b.pages...)
	b.pages[1], b.pages[2] = b.pages[2], b.pages[1]
	// A page may come as zeros or as a page of them.
	b.pages = append(b.pages, ram.Record{Kind: ram.KindPage, Block: "pc.rom", Data: page(0)})
	if got := lines(Compare(a.state(t), b.state(t))); got != nil {
		t.Errorf("differ: %q", got)
	}
	if got := lines(Load(a.state(t), b.state(t))); got != nil {
		t.Errorf("does not load: %q", got)
	}
	b.bare = true
	got := lines(Compare(a.state(t), b.state(t)))
	if want := []string{"machine: pc | (none)"}; !slices.Equal(got, want) {
		t.Errorf("without footers and configuration: %q", got)
	}
}

// What a destination holds of a device that comes twice is what came last, whichever of the
// devices it is.
func TestOfADeviceThatComesTwiceTheLastCounts(t *testing.T) {
	counter := func(name string, n *uint64) (vmstate.Entry, deviceFunc) {
		return vmstate.Entry{Name: name, Version: 1}, func(f *vmstate.Fields) { f.Uint64("n", n) }
	}
	one, two := uint64(1), uint64(2)
	a := base().with(counter("one", &one)).with(counter("two", &two))
	want := a.state(t)
	one, two = 7, 8
	a.again = func() { one, two = 1, 2 }
	if got := lines(Compare(want, a.state(t))); got != nil {
		t.Errorf("differ: %q", got)
	}
	a.again = func() { two = 3 }
	if got, want := lines(Compare(want, a.state(t))), []string{"value two: n: 2 | 3"}; !slices.Equal(got, want) {
		t.Errorf("differ: %q, want %q", got, want)
	}
}

func TestEveryKindOfDifferenceIsFound(t *testing.T) {
	u := uint32(7)
	for _, x := range []struct {
		name  string
		a, b  side
		want  []string
		shape int // how many remain without values
	}{
		{"a value", base(), func() side { s := base(); s.devices = nil; s.entries = nil; return s.with(clock(6, 2)) }(),
			[]string{"value clock: now: 5 | 6"}, 0},
		{"a version", base(), func() side { s := base(); s.devices = nil; s.entries = nil; return s.with(clock(5, 1)) }(),
			[]string{"version clock: 2 | 1"}, 1},
		{"a device", base(), base().with(vmstate.Entry{Name: "dma", Instance: 1, Version: 1}, func(f *vmstate.Fields) { f.Uint32("x", &u) }),
			[]string{"only-in-one device dma instance 1: (none) | present"}, 1},
		{"a subsection", base().with(vmstate.Entry{Name: "d", Version: 1}, func(f *vmstate.Fields) { f.Uint32("x", &u) }),
			base().with(vmstate.Entry{Name: "d", Version: 1}, func(f *vmstate.Fields) {
				f.Uint32("x", &u)
				f.Subsection("d/more", 1, true, func(f *vmstate.Fields) { f.Uint32("y", &u) })
			}), []string{"subsection d: d/more: (none) | present"}, 1},
		{"a field in a part", base().with(vmstate.Entry{Name: "d", Version: 1}, func(f *vmstate.Fields) {
			f.Struct("p", "part", 1, func(f *vmstate.Fields) { f.Uint32("x", &u); f.Uint32("z", &u) })
		}), base().with(vmstate.Entry{Name: "d", Version: 1}, func(f *vmstate.Fields) {
			f.Struct("p", "part", 1, func(f *vmstate.Fields) { f.Uint32("x", &u); f.Uint32("y", &u); f.Uint32("z", &u) })
		}), []string{"layout d: p.y: (none) | field of type uint32"}, 1},
		{"a text", base().with(vmstate.Entry{Name: "d", Version: 1}, func(f *vmstate.Fields) { f.Bytes("s", []byte("running\x00\x00")) }),
			base().with(vmstate.Entry{Name: "d", Version: 1}, func(f *vmstate.Fields) { f.Bytes("s", []byte("paused\x00\x00\x00")) }),
			[]string{`value d: s: "running" | "paused"`}, 0},
		{"a long buffer", base().with(vmstate.Entry{Name: "d", Version: 1}, func(f *vmstate.Fields) { f.Bytes("s", make([]byte, 100)) }),
			base().with(vmstate.Entry{Name: "d", Version: 1}, func(f *vmstate.Fields) { f.Bytes("s", append(make([]byte, 98), 1, 2)) }),
			[]string{"value d: s[98:]: 0000 | 0102"}, 0},
		{"an array", base().with(vmstate.Entry{Name: "d", Version: 1}, func(f *vmstate.Fields) { f.Uint32s("s", []uint32{1, 2, 3}) }),
			base().with(vmstate.Entry{Name: "d", Version: 1}, func(f *vmstate.Fields) { f.Uint32s("s", []uint32{1, 5}) }),
			[]string{"layout d: s: 3 elements | 2 elements", "value d: s[1]: 2 | 5"}, 1},
		{"pages", base(), func() side {
			s := base()
			s.pages = append(s.pages, ram.Record{Kind: ram.KindPage, Block: "pc.ram", Offset: 4096, Data: page(3)},
				ram.Record{Kind: ram.KindZero, Block: "pc.ram", Offset: 8192, Fill: 5}, ram.Record{Kind: ram.KindPage, Block: "pc.rom", Data: page(1)})
			return s
		}(), []string{"pages pc.ram: 2 differ: 0x1-0x2", "pages pc.rom: 1 differ: 0x0"}, 0},
		{"a block", base(), func() side {
			s := base()
			s.blocks = []ram.BlockInfo{{Name: "pc.ram", Length: 8 * ram.PageSize}, {Name: "vga", Length: ram.PageSize}}
			s.pages = s.pages[:4]
			return s
		}(), []string{"ram-block-size pc.ram: 16384 | 32768", "ram-block pc.rom: present | (none)", "ram-block vga: (none) | present"}, 3},
	} {
		a, b := x.a.state(t), x.b.state(t)
		if got := lines(Compare(a, b)); !slices.Equal(got, x.want) {
			t.Errorf("%s: %q", x.name, got)
		}
		if got := Compare(b, a); len(got) != len(x.want) {
			t.Errorf("%s, the other way: %q", x.name, lines(got))
		}
		if got := CompareShape(a, b); len(got) != x.shape {
			t.Errorf("%s, its shape: %q", x.name, lines(got))
		}
	}
}

func TestWhatWouldNotLoadIsSaidInWords(t *testing.T) {
	u, v := uint32(7), uint32(8)
	d := vmstate.Entry{Name: "0000:00:01.3/piix4_pm", VMSD: "piix4_pm", Version: 3, MinVersion: 1}
	old := d
	old.Version = 2
	plain := func(f *vmstate.Fields) { f.Uint32("x", &u); f.Uint32("y", &u) }
	more := func(f *vmstate.Fields) { f.Uint32("x", &u); f.Uint32("index", &u); f.Uint32("y", &u) }
	named := func(f *vmstate.Fields) { f.Uint32("x", &u); f.Uint32("other", &u) }
	sub := func(version uint32) deviceFunc {
		return func(f *vmstate.Fields) {
			plain(f)
			f.Subsection("piix4_pm/s", version, true, func(f *vmstate.Fields) { f.Uint32("z", &u) })
		}
	}
	equal := func(n uint32) deviceFunc { return func(f *vmstate.Fields) { f.Uint32Equal("nirq", n) } }
	limit := func(n int32) deviceFunc { return func(f *vmstate.Fields) { f.Int32LE("n", &n) } }
	bytesOf := func(n int) deviceFunc { return func(f *vmstate.Fields) { f.Bytes("b", make([]byte, n)) } }
	queue := func(n int) deviceFunc {
		return func(f *vmstate.Fields) {
			list := make([]uint32, n)
			vmstate.QTailQ(f, "q", "q-item", 1, &list, 10, func(x *uint32, f *vmstate.Fields) { f.Uint32("x", x) })
		}
	}
	other := func() side { s := base(); s.machine = "q35"; return s }()
	bare := func() side { s := base(); s.bare = true; return s }()
	small := func() side {
		s := base()
		s.blocks = []ram.BlockInfo{{Name: "pc.ram", Length: ram.PageSize}, {Name: "pc.rom", Length: ram.PageSize}}
		s.pages = s.pages[:1]
		return s
	}()
	renamed := func() side {
		s := base()
		s.blocks = []ram.BlockInfo{s.blocks[0], {Name: "0000:00:02.0/vga.vram", Length: ram.PageSize}}
		s.pages = s.pages[:4]
		return s
	}()
	tables := func(n uint64) side {
		s := base()
		s.blocks = []ram.BlockInfo{s.blocks[0], s.blocks[1], {Name: "/rom@etc/acpi/tables", Length: n * ram.PageSize}}
		return s
	}
	for _, x := range []struct {
		name string
		a, b side
		want []string
	}{
		{"another machine", base(), other, []string{`refusal: configuration: machine type "pc", local is "q35" (QEMU: Machine type received is 'pc' and local is 'q35')`}},
		{"nothing old from something new", bare, base(), []string{
			`refusal: A has no configuration and B expects one (send-configuration) (QEMU: Configuration section missing)`,
			`refusal: A has no footers and B expects them (send-section-footer) (QEMU: Missing section footer for ram)`}},
		{"something new from nothing old", base(), bare, []string{
			`refusal: A has a configuration and B expects none (send-configuration) (QEMU: Unknown savevm section type 7)`,
			`refusal: A has footers and B expects none (send-section-footer) (QEMU: Unknown savevm section type 126)`}},
		{"less memory", base(), small, []string{`refusal: RAM block pc.ram: it has 16384 bytes in A and 4096 in B (QEMU: Size mismatch: pc.ram: 0x4000 != 0x1000: Invalid argument)`}},
		{"a block of another name", renamed, base(), []string{`refusal: RAM block 0000:00:02.0/vga.vram: B does not have it; it has pc.ram, pc.rom (QEMU: Unknown ramblock "0000:00:02.0/vga.vram", cannot accept migration)`}},
		{"tables that grow", tables(1), tables(2), []string{"doubt: RAM block /rom@etc/acpi/tables: it has 4096 bytes in A and 8192 in B; QEMU's own tables may change their size, up to a limit"}},
		{"a device that is not there", base().with(d, plain), base(), []string{`refusal: device 0000:00:01.3/piix4_pm: B does not have it (unless B leaves it out of its own stream) (QEMU: Unknown savevm section or instance '0000:00:01.3/piix4_pm' 0)`}},
		{"a device elsewhere", base().with(d, plain), base().with(vmstate.Entry{Name: "0000:00:07.3/piix4_pm", VMSD: "piix4_pm", Version: 3}, plain), []string{`refusal: device 0000:00:01.3/piix4_pm: B does not have it; it has 0000:00:07.3/piix4_pm (unless B leaves it out of its own stream) (QEMU: Unknown savevm section or instance '0000:00:01.3/piix4_pm' 0)`}},
		{"one device more over there", base(), base().with(d, plain), nil},
		{"a version too new", base().with(d, plain), base().with(old, plain), []string{`refusal: device 0000:00:01.3/piix4_pm: it has version 3 in A and 2 in B (QEMU: savevm: unsupported version 3 for '0000:00:01.3/piix4_pm' v2)`}},
		{"a version that is older", base().with(old, plain), base().with(d, plain), []string{"doubt: device 0000:00:01.3/piix4_pm: it has version 2 in A and 3 in B, which may be too old"}},
		{"a field that B lacks", base().with(d, more), base().with(d, plain), []string{`refusal: device 0000:00:01.3/piix4_pm: index: B does not have it: its 4 bytes (uint32) are read as y (QEMU: Missing section footer for 0000:00:01.3/piix4_pm)`}},
		{"a field that A lacks", base().with(d, plain), base().with(d, more), []string{`refusal: device 0000:00:01.3/piix4_pm: index: A does not have it: B reads 4 bytes (uint32) from the bytes of y (QEMU: Missing section footer for 0000:00:01.3/piix4_pm)`}},
		{"a field that an older A lacks", base().with(old, plain), base().with(d, more), []string{"doubt: device 0000:00:01.3/piix4_pm: it has version 2 in A and 3 in B, which may be too old",
			`doubt: device 0000:00:01.3/piix4_pm: index: A does not have it: B reads 4 bytes (uint32) from the bytes of y; unless B reads it so for this older version (QEMU: Missing section footer for 0000:00:01.3/piix4_pm)`}},
		{"a field of another name", base().with(d, plain), base().with(d, named), nil},
		{"a last field", base().with(d, func(f *vmstate.Fields) { plain(f); f.Uint32("end", &u) }), base().with(d, plain), []string{`refusal: device 0000:00:01.3/piix4_pm: end: B does not have it: its 4 bytes (uint32) are read as what follows (QEMU: Missing section footer for 0000:00:01.3/piix4_pm)`}},
		{"a subsection", base().with(d, sub(1)), base().with(d, plain), []string{`doubt: device 0000:00:01.3/piix4_pm: piix4_pm/s: B's stream does not have this subsection: it may know it and not need it now, or not know it (QEMU: error while loading state for instance 0x0 of device '0000:00:01.3/piix4_pm': No such file or directory)`}},
		{"a newer subsection", base().with(d, sub(2)), base().with(d, sub(1)), []string{"refusal: device 0000:00:01.3/piix4_pm: piix4_pm/s: the subsection has version 2 in A and 1 in B"}},
		{"a subsection less", base().with(d, plain), base().with(d, sub(1)), nil},
		{"a value that must be equal", base().with(d, equal(4)), base().with(d, equal(8)), []string{"refusal: device 0000:00:01.3/piix4_pm: nirq: it is 4 in A, and B requires its own 8"}},
		{"a value that may not be more", base().with(d, limit(4)), base().with(d, limit(3)), []string{`refusal: device 0000:00:01.3/piix4_pm: n: it is 4 in A, and B takes at most 3 (QEMU: Invalid value 4 expecting positive value <= 3)`}},
		{"a value that may be less", base().with(d, limit(3)), base().with(d, limit(4)), nil},
		{"a buffer of another length", base().with(d, bytesOf(3)), base().with(d, bytesOf(4)), []string{`doubt: device 0000:00:01.3/piix4_pm: b: it has 3 bytes in A and 4 in B; that fits only if an earlier field, or it itself, tells how long it is (QEMU: Missing section footer for 0000:00:01.3/piix4_pm)`}},
		{"a longer list", base().with(d, queue(2)), base().with(d, queue(5)), nil},
		{"a field of another width", base().with(d, func(f *vmstate.Fields) { f.Uint32("x", &u) }), base().with(d, func(f *vmstate.Fields) { f.Uint64("x", new(uint64)) }), []string{`refusal: device 0000:00:01.3/piix4_pm: x: A has 4 bytes (uint32), and B reads 8 bytes (uint64) (QEMU: Missing section footer for 0000:00:01.3/piix4_pm)`}},
		{"another value", base().with(d, func(f *vmstate.Fields) { f.Uint32("x", &u) }), base().with(d, func(f *vmstate.Fields) { f.Uint32("x", &v) }), nil},
	} {
		if got := lines(Load(x.a.state(t), x.b.state(t))); !slices.Equal(got, x.want) {
			t.Errorf("%s:\n%s", x.name, strings.Join(got, "\n"))
		}
	}
}

func TestPagesThatAreDifferencesNeedTheirContents(t *testing.T) {
	a := base()
	a.pages = append(a.pages, ram.Record{Kind: ram.KindXBZRLE, Block: "pc.ram", Offset: 4096, Data: []byte{5, 1, 0xaa}})
	stream := a.stream(t)
	if _, err := Read(qemufile.NewReader(bytes.NewReader(stream)), Config{}); err == nil || !strings.Contains(err.Error(), "scratch") {
		t.Errorf("without contents: %v", err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "scratch"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := Read(qemufile.NewReader(bytes.NewReader(stream)), Config{Scratch: f})
	if err != nil {
		t.Fatal(err)
	}
	b := base()
	changed := page(2)
	changed[5] = 0xaa
	b.pages = append(b.pages, ram.Record{Kind: ram.KindPage, Block: "pc.ram", Offset: 4096, Data: changed})
	if d := lines(Compare(got, b.state(t))); d != nil {
		t.Errorf("%q", d)
	}
}

func TestBoundsAreKeptAndSaid(t *testing.T) {
	a := base()
	stream := a.stream(t)
	s, err := Read(qemufile.NewReader(bytes.NewReader(stream)), Config{MaxPages: 1})
	if err != nil || len(s.Partial) != 1 || !strings.Contains(s.Partial[0], "too large") {
		t.Errorf("pages: %v, %q", err, s.Partial)
	}
	a = base().with(vmstate.Entry{Name: "big", Version: 1}, func(f *vmstate.Fields) { f.Bytes("b", make([]byte, 1<<20)) })
	s, err = Read(qemufile.NewReader(bytes.NewReader(a.stream(t))), Config{MaxState: 1 << 10})
	if err != nil || len(s.Partial) != 1 || s.Find("big", 0).Body != nil || s.Find("big", 0).Length != 1<<20 {
		t.Errorf("devices: %v, %q, %+v", err, s.Partial, s.Devices)
	}
	if missing, all := s.Missing(); missing != 0 || all != 5 {
		t.Errorf("%d of %d are missing", missing, all)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(base().stream(f), base().stream(f))
	f.Add(base().stream(f), func() []byte { s := base(); s.bare = true; return s.stream(f) }())
	u := uint32(1)
	f.Add(base().with(vmstate.Entry{Name: "d", Version: 1}, func(f *vmstate.Fields) {
		f.StructArray("s", "p", 1, 2, func(i int, f *vmstate.Fields) { f.Bytes("x", make([]byte, i+1)) })
		f.Subsection("d/s", 1, true, func(f *vmstate.Fields) { f.Uint32("z", &u) })
	}).stream(f), base().stream(f))
	f.Fuzz(func(t *testing.T, pa, pb []byte) {
		a, errA := Read(qemufile.NewReader(bytes.NewReader(pa)), Config{})
		b, errB := Read(qemufile.NewReader(bytes.NewReader(pb)), Config{})
		for _, d := range Compare(a, b) {
			_ = d.String()
		}
		for _, x := range Load(a, b) {
			_ = x.String()
		}
		if errA == nil && errB == nil && bytes.Equal(pa, pb) {
			if d := Compare(a, b); d != nil {
				t.Fatalf("a stream differs from itself: %q", lines(d))
			}
		}
	})
}
