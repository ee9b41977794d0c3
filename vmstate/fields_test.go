package vmstate

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/qemufile"
)

// part is a piece of a device with a description of its own.
type part struct {
	A, B uint16
	Sub  bool
}

func (p *part) fields(f *Fields) {
	f.Uint16("a", &p.A)
	f.Uint16("b", &p.B)
	f.Subsection("part/sub", 1, p.Sub, func(f *Fields) { f.Bool("sub", &p.Sub) })
}

// everything is a device with one field of each kind.
type everything struct {
	U8  uint8
	U16 uint16
	U32 uint32
	U64 uint64
	I8  int8
	I16 int16
	I32 int32
	I64 int64
	T   bool

	Fixed   [5]byte
	Count   uint8
	Counted [4]uint16
	Len     uint32
	Made    []byte
	U8s     [3]uint8
	U32s    [2]uint32
	U64s    [2]uint64
	I8s     [2]int8
	I16s    [2]int16
	I32s    [2]int32
	I64s    [2]int64
	Ts      [2]bool

	Limit   int32
	Timer   int64
	Double  uint64
	Bits    [2]uint64
	Name    string
	One     part
	Many    [3]part
	Ptrs    [3]*part
	Queue   []part
	List    []part
	Tree    []part
	Derived int

	Late    uint32 // since version 2
	Latched uint64
	Deep    uint8
}

func (d *everything) VMState(f *Fields) {
	f.Uint8("u8", &d.U8)
	f.Uint16("u16", &d.U16)
	f.Uint32("u32", &d.U32)
	f.Uint64("u64", &d.U64)
	f.Int8("i8", &d.I8)
	f.Int16("i16", &d.I16)
	f.Int32("i32", &d.I32)
	f.Int64("i64", &d.I64)
	f.Bool("t", &d.T)
	f.Bytes("fixed", d.Fixed[:])
	f.Unused(3)
	f.Uint8("count", &d.Count)
	f.Uint16s("counted", Elems(f, d.Counted[:], uint64(d.Count)))
	f.Uint32("len", &d.Len)
	f.Bytes("made", Resize(f, &d.Made, uint64(d.Len), 64))
	f.Uint8s("u8s", d.U8s[:])
	f.Uint32s("u32s", d.U32s[:])
	f.Uint64s("u64s", d.U64s[:])
	f.Int8s("i8s", d.I8s[:])
	f.Int16s("i16s", d.I16s[:])
	f.Int32s("i32s", d.I32s[:])
	f.Int64s("i64s", d.I64s[:])
	f.Bools("ts", d.Ts[:])
	f.Uint8Equal("same8", 8)
	f.Uint16Equal("same16", 16)
	f.Uint32Equal("same32", 32)
	f.Uint64Equal("same64", 64)
	f.Int32Equal("minus", -1)
	f.Int32LE("limit", &d.Limit)
	f.Timer("timer", &d.Timer)
	f.CPUDouble("double", &d.Double)
	f.Bitmap("bits", d.Bits[:], 65)
	f.Capability("name", &d.Name)
	f.Struct("one", "part", 1, d.One.fields)
	f.StructArray("many", "part", 1, len(d.Many), func(i int, f *Fields) { d.Many[i].fields(f) })
	f.Pointers("ptrs", "part", 1, len(d.Ptrs), func(i int) bool { return d.Ptrs[i] == nil }, func(i int, f *Fields) { d.Ptrs[i].fields(f) })
	f.Tmp("tmp", "tmp", 1, func(f *Fields) {
		v := uint16(d.Derived)
		f.Uint16("v", &v)
		Set(f, &d.Derived, int(v))
	})
	QTailQ(f, "queue", "part", 1, &d.Queue, 4, (*part).fields)
	QList(f, "list", "part", 1, &d.List, 4, (*part).fields)
	GTree(f, "tree", "part", 1, &d.Tree, 4, (*part).fields)
	f.Check("count at most 4", d.Count <= 4)
	if f.Version() >= 2 {
		f.Uint32("late", &d.Late)
	}
	f.Subsection("all/latched", 3, d.Latched != 0, func(f *Fields) {
		f.Uint64("latched", &d.Latched)
		f.Subsection("all/latched/deep", 1, d.Deep != 0, func(f *Fields) { f.Uint8("deep", &d.Deep) })
	})
}

func full() *everything {
	return &everything{
		U8: 1, U16: 0x0203, U32: 0x04050607, U64: 0x08090a0b0c0d0e0f, I8: -1, I16: -2, I32: -3, I64: -4, T: true,
		Fixed: [5]byte{1, 2, 3, 4, 5}, Count: 2, Counted: [4]uint16{7, 8}, Len: 3, Made: []byte("abc"),
		U8s: [3]uint8{1, 2, 3}, U32s: [2]uint32{1, 2}, U64s: [2]uint64{3, 4}, I8s: [2]int8{-1, 1}, I16s: [2]int16{-2, 2},
		I32s: [2]int32{-3, 3}, I64s: [2]int64{-4, 4}, Ts: [2]bool{true, false},
		Limit: 5, Timer: TimerOff, Double: 0x3ff0000000000000, Bits: [2]uint64{1, 1}, Name: "x-colo",
		One:  part{1, 2, true},
		Many: [3]part{{1, 2, false}, {3, 4, false}, {5, 6, true}}, Ptrs: [3]*part{nil, {7, 8, false}, nil},
		Queue: []part{{1, 1, true}, {2, 2, false}}, List: nil, Tree: []part{{9, 9, false}},
		Derived: 77, Late: 42, Latched: 0x1122334455667788, Deep: 9,
	}
}

// empty can receive what full sends: it agrees on pointers and limits.
func empty() *everything { return &everything{Limit: 9, Ptrs: [3]*part{nil, {}, nil}} }

func registry(t testing.TB, e Entry, d Device) *Registry {
	t.Helper()
	reg := new(Registry)
	if err := reg.Register(e, d); err != nil {
		t.Fatal(err)
	}
	return reg
}

var allEntry = Entry{Name: "all", Version: 2, MinVersion: 1}

func saved(t testing.TB, reg *Registry) []byte {
	t.Helper()
	return written(t, func(w *qemufile.Writer) {
		w.Fail(reg.SaveDevices(w))
		PutEOF(w)
	})
}

func TestEveryKindOfFieldComesBack(t *testing.T) {
	stream := saved(t, registry(t, allEntry, full()))
	got := empty()
	reg := registry(t, allEntry, got)
	wantNil(t, "load", reg.Load(reader(stream), nil))
	wantNil(t, "commit", reg.Commit())
	if diff := cmp.Diff(full(), got); diff != "" {
		t.Errorf("loaded device differs (-saved +loaded):\n%s", diff)
	}
	if again := saved(t, reg); !bytes.Equal(again, stream) {
		t.Errorf("saved again:\n%x\nwant\n%x", again, stream)
	}
}

func TestRollbackRestoresEveryField(t *testing.T) {
	stream := saved(t, registry(t, allEntry, full()))
	got := empty()
	got.Made, got.Queue, got.Name, got.Derived, got.U64 = []byte("old"), []part{{5, 5, true}}, "old", 5, 1<<63
	want := *got
	want.Ptrs = [3]*part{nil, {}, nil}
	reg := registry(t, allEntry, got)
	for range 2 {
		// Twice in one load: the log is undone last first.
		twice := append(bytes.Clone(stream[:len(stream)-1]), stream...)
		wantNil(t, "load", reg.Load(reader(twice), nil))
		if cmp.Equal(&want, got) {
			t.Fatal("load did not write through")
		}
		reg.Rollback()
		if diff := cmp.Diff(&want, got); diff != "" {
			t.Fatalf("after the rollback (-want +got):\n%s", diff)
		}
	}
}

func TestEveryTruncationUndoesTheLoad(t *testing.T) {
	stream := saved(t, registry(t, allEntry, full()))
	got := empty()
	reg := registry(t, allEntry, got)
	r := reader(nil)
	for n := range len(stream) {
		r.Reset(bytes.NewReader(stream[:n]))
		err := reg.Load(r, nil)
		wantError(t, "cut", err, io.ErrUnexpectedEOF)
		var se *SectionError
		if !errors.As(err, &se) || se.Offset > int64(n) {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if diff := cmp.Diff(empty(), got); diff != "" {
			t.Fatalf("cut at %d left (-want +got):\n%s", n, diff)
		}
	}
}

func TestFieldBytes(t *testing.T) {
	type test struct {
		why  string
		f    func(f *Fields)
		want string
	}
	three := []part{{1, 2, false}}
	u8, le, off := uint8(0xaa), int32(2), int64(TimerOff)
	words := []uint64{0x8000000000000001, 1}
	name := "xbzrle"
	for _, x := range []test{
		{"an integer is big endian", func(f *Fields) { f.Uint16Equal("x", 0x0102) }, "0102"},
		{"a bool is one byte", func(f *Fields) { b := true; f.Bool("x", &b) }, "01"},
		{"unused bytes are zeros", func(f *Fields) { f.Unused(130) }, strings.Repeat("00", 130)},
		{"an array has no count", func(f *Fields) { f.Uint16s("x", []uint16{1, 2}) }, "0001 0002"},
		{"int32 le is an int32", func(f *Fields) { f.Int32LE("x", &le) }, "00000002"},
		{"a timer that is off is all ones", func(f *Fields) { f.Timer("x", &off) }, "ffffffffffffffff"},
		{"a bitmap is whole words", func(f *Fields) { f.Bitmap("x", words, 65) }, "8000000000000001 0000000000000001"},
		{"a null pointer is a marker", func(f *Fields) {
			f.Pointers("x", "part", 1, 2, func(i int) bool { return i == 0 }, func(_ int, f *Fields) { f.Uint8("x", &u8) })
		}, "30 aa"},
		{"a list has a byte before each element and one at its end", func(f *Fields) {
			QTailQ(f, "x", "part", 1, &three, 1, (*part).fields)
		}, "01 0001 0002 00"},
		{"a tree has a count too", func(f *Fields) { GTree(f, "x", "part", 1, &three, 1, (*part).fields) }, "00000001 01 0001 0002 00"},
		{"a capability is counted", func(f *Fields) { f.Capability("x", &name) }, `06 "xbzrle"`},
		{"a struct has no header, and its subsections follow it", func(f *Fields) {
			p := part{1, 2, true}
			f.Struct("x", "part", 7, p.fields)
			f.Uint8("y", &u8)
		}, `0001 0002 05 08 "part/sub" 00000001 01 aa`},
	} {
		stream := saved(t, registry(t, Entry{Name: "d"}, deviceFunc(x.f)))
		body := stream[15 : len(stream)-6]
		if want := hexBytes(t, x.want); !bytes.Equal(body, want) {
			t.Errorf("%s: got %x, want %x", x.why, body, want)
		}
		reg := registry(t, Entry{Name: "d"}, deviceFunc(x.f))
		if err := reg.Load(reader(stream), nil); err != nil {
			t.Errorf("%s: %v", x.why, err)
		}
	}
}

type deviceFunc func(f *Fields)

func (d deviceFunc) VMState(f *Fields) { d(f) }

func TestFieldsRefuse(t *testing.T) {
	boom := errors.New("boom")
	le, words, made := int32(2), []uint64{0}, []byte(nil)
	var list []part
	for _, x := range []struct {
		why  string
		body string
		f    func(f *Fields)
		want error
	}{
		{"a value that must be equal", "05", func(f *Fields) { f.Uint8Equal("x", 6) }, ErrValue},
		{"a signed value that must be equal", "fffffffe", func(f *Fields) { f.Int32Equal("x", -1) }, ErrValue},
		{"int32 le above the limit", "00000003", func(f *Fields) { f.Int32LE("x", &le) }, ErrValue},
		{"int32 le below zero", "ffffffff", func(f *Fields) { f.Int32LE("x", &le) }, ErrValue},
		{"a failed check", "", func(f *Fields) { f.Check("x", false) }, ErrValue},
		{"whatever the device does not like", "", func(f *Fields) { f.Fail(boom) }, boom},
		{"a count beyond the array", "ff", func(f *Fields) {
			var n uint8
			f.Uint8("n", &n)
			f.Uint64s("x", Elems(f, words, uint64(n)))
		}, ErrBounds},
		{"a count of 4 Gi elements", "ffffffff", func(f *Fields) {
			var n uint32
			f.Uint32("n", &n)
			f.Bytes("x", Resize(f, &made, uint64(n), 1<<20))
		}, ErrBounds},
		{"a negative count", "ffffffff", func(f *Fields) {
			var n int32
			f.Int32("n", &n)
			f.Bytes("x", Elems(f, made, uint64(n)))
		}, ErrBounds},
		{"a bitmap that does not fit", "", func(f *Fields) { f.Bitmap("x", words, 1<<63) }, ErrBounds},
		{"a bitmap one bit too long", "", func(f *Fields) { f.Bitmap("x", words, 65) }, ErrBounds},
		{"a pointer where null is expected", "31", func(f *Fields) {
			f.Pointers("x", "p", 1, 1, func(int) bool { return true }, nil)
		}, ErrValue},
		{"a list beyond its limit", "01 00000000 01 00000000 00", func(f *Fields) { QTailQ(f, "x", "part", 1, &list, 1, (*part).fields) }, ErrBounds},
		{"a tree of fewer nodes than announced", "00000002 01 00000000 00", func(f *Fields) { GTree(f, "x", "part", 1, &list, 4, (*part).fields) }, ErrValue},
		{"a tree of more nodes than announced", "00000001 01 00000000 01 00000000 00", func(f *Fields) { GTree(f, "x", "part", 1, &list, 4, (*part).fields) }, ErrBounds},
		{"a tree of 4 Gi nodes", "ffffffff 00", func(f *Fields) { GTree(f, "x", "part", 1, &list, 4, (*part).fields) }, ErrBounds},
		{"an unknown subsection of its own", `05 03 "d/x" 00000001`, func(f *Fields) {}, ErrUnknownSubsection},
		{"its own by the prefix alone, without a slash", `05 02 "dx" 00000001`, func(f *Fields) {}, ErrUnknownSubsection},
		{"a subsection twice", `05 03 "d/x" 00000001 05 03 "d/x" 00000001`, func(f *Fields) { f.Subsection("d/x", 1, false, func(*Fields) {}) }, ErrUnknownSubsection},
		{"a subsection that is too new", `05 03 "d/x" 00000002`, func(f *Fields) { f.Subsection("d/x", 1, false, func(*Fields) {}) }, ErrVersion},
		{"somebody else's subsection, by the footer", `05 03 "e/x" 00000001`, func(f *Fields) { f.Subsection("d/x", 1, false, func(*Fields) {}) }, ErrFooter},
		{"a subsection with too short a name, by the footer", `05 01 "d" 00000001`, func(f *Fields) {}, ErrFooter},
	} {
		stream := append(hexBytes(t, `04 00000001 01 "d" 00000000 00000000`), hexBytes(t, x.body)...)
		stream = append(stream, hexBytes(t, "7e 00000001 00")...)
		reg := registry(t, Entry{Name: "d"}, deviceFunc(x.f))
		err := reg.Load(reader(stream), nil)
		wantError(t, x.why, err, x.want)
		var se *SectionError
		if !errors.As(err, &se) || se.Section.Name != "d" || se.Offset != 0 {
			t.Errorf("%s: %v does not say which section", x.why, err)
		}
	}
}

func TestSavingRefusesWhatCouldNotBeLoaded(t *testing.T) {
	for why, x := range map[string]struct {
		f    func(f *Fields)
		want error
	}{
		"a subsection outside its parent": {func(f *Fields) { f.Subsection("e/x", 1, true, func(*Fields) {}) }, ErrUnknownSubsection},
		"a count beyond the array":        {func(f *Fields) { f.Bytes("x", Elems(f, []byte(nil), 1)) }, ErrBounds},
		"a name of 256 bytes":             {func(f *Fields) { s := strings.Repeat("x", 256); f.Capability("x", &s) }, qemufile.ErrTooLong},
	} {
		w := qemufile.NewWriter(io.Discard)
		wantError(t, why, registry(t, Entry{Name: "d"}, deviceFunc(x.f)).SaveDevices(w), x.want)
	}
}

func TestAnOldVersionLacksItsFields(t *testing.T) {
	old := full()
	old.Late = 0
	stream := saved(t, registry(t, Entry{Name: "all", Version: 1}, old))
	got := empty()
	got.Late = 7
	reg := registry(t, allEntry, got)
	wantNil(t, "load", reg.Load(reader(stream), nil))
	if got.Late != 7 || got.Deep != 9 {
		t.Errorf("late is %d, deep %d", got.Late, got.Deep)
	}
}

func TestAnErrorNamesTheField(t *testing.T) {
	reg := registry(t, Entry{Name: "d"}, deviceFunc(func(f *Fields) { f.Uint8Equal("x", 6) }))
	err := reg.Load(reader(hexBytes(t, `04 00000001 01 "d" 00000000 00000000 05 7e 00000001`)), nil)
	var fe *FieldError
	if !errors.As(err, &fe) || fe.Field != "d:x" {
		t.Errorf("got %v", err)
	}
	if want := "vmstate: section full 1 d/0 v0 at offset 0: d:x: 0x5, want 0x6: unacceptable value"; err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
}

func TestFieldsSayWhatTheyDo(t *testing.T) {
	var modes []bool
	var undone []int
	reg := registry(t, Entry{Name: "d"}, deviceFunc(func(f *Fields) {
		modes = append(modes, f.Loading())
		f.OnRollback(func() { undone = append(undone, 1) })
		f.OnRollback(func() { undone = append(undone, 2) })
	}))
	stream := saved(t, reg)
	wantNil(t, "load", reg.Load(reader(stream), nil))
	reg.Rollback()
	reg.Rollback()
	if !reflect.DeepEqual(modes, []bool{false, true}) || !reflect.DeepEqual(undone, []int{2, 1}) {
		t.Errorf("modes %v, undone %v", modes, undone)
	}
}
