package vmstate

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/qemufile"
)

func TestADescriptionTakesApartWhatItDescribes(t *testing.T) {
	d := full()
	reg := registry(t, allEntry, d)
	stream := saved(t, reg)
	text, err := reg.VMDesc()
	wantNil(t, "describe", err)
	if !json.Valid(text) {
		t.Fatalf("not JSON: %s", text)
	}
	desc, err := ParseVMDesc(text)
	wantNil(t, "parse", err)
	dev := desc.Find("all", 0)
	body := stream[17 : len(stream)-6]
	if dev == nil || dev.Len() != int64(len(body)) {
		t.Fatalf("described %d bytes, saved %d", dev.Len(), len(body))
	}
	s, err := dev.Decode(body)
	wantNil(t, "decode", err)
	for name, want := range map[string]any{
		"u8": uint64(1), "i8": int64(-1), "i64": int64(-4), "t": true, "fixed": []byte{1, 2, 3, 4, 5}, "late": uint64(42),
		"counted": []any{uint64(7), uint64(8)}, "timer": int64(-1), "limit": int64(5), "minus": int64(-1), "same64": int64(64),
		"u8s": []byte{1, 2, 3}, "double": uint64(0x3ff0000000000000), "made": []byte("abc"),
	} {
		f := s.Find(name)
		if f == nil {
			t.Errorf("no field %s", name)
		} else if diff := cmp.Diff(want, f.Value); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if one := s.Find("one").Value.(Struct); len(one.Subsections) != 1 || one.Find("b").Value != uint64(2) {
		t.Errorf("one: %+v", one)
	}
	if two := s.Find("many[2]"); two == nil || len(two.Value.(Struct).Subsections) != 1 {
		t.Errorf("many: %+v", two)
	}
	if null := s.Find("ptrs[0]"); null == nil || null.Type != "nullptr" || string(null.Value.([]byte)) != "0" {
		t.Errorf("ptrs: %+v", null)
	}
	if q, ok := s.Find("queue").Value.([]any); !ok || len(q) != 2 || q[1].(Struct).Find("a").Value != uint64(2) {
		t.Errorf("queue: %+v", s.Find("queue"))
	}
	if len(s.Subsections) != 1 || len(s.Subsections[0].Subsections) != 1 || s.Subsections[0].Subsections[0].Find("deep").Value != uint64(9) {
		t.Errorf("subsections: %+v", s.Subsections)
	}
	for n := range body {
		if _, err := dev.Decode(body[:n]); !errors.Is(err, ErrDescription) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	_, err = dev.Decode(append(bytes.Clone(body), 0))
	wantError(t, "one byte more", err, ErrDescription)
}

func TestDescriptionText(t *testing.T) {
	var u8 uint8
	var u32 uint32
	pair := func(f *Fields) { f.Uint8("a", &u8); f.Uint32("b", &u32) }
	for why, x := range map[string]struct {
		f    func(f *Fields)
		want string // the fields
	}{
		"an array of integers": {func(f *Fields) { f.Int32s("irq_count", make([]int32, 4)) },
			`[{"name": "irq_count", "array_len": 4, "type": "int32", "size": 4}]`},
		"an array of one is a plain field": {func(f *Fields) { f.Int32s("x", make([]int32, 1)) }, `[{"name": "x", "type": "int32", "size": 4}]`},
		"nothing is not described": {func(f *Fields) {
			f.Bytes("x", nil)
			f.Unused(0)
			f.Struct("y", "y", 1, func(*Fields) {})
			f.StructArray("z", "z", 1, 0, nil)
		}, `[]`},
		"names that are not unique": {func(f *Fields) { f.Unused(1); f.Uint8("x", &u8); f.Unused(2); f.Uint8("x", &u8); f.Unused(3) },
			`[{"name": "unused[0]", "type": "unused_buffer", "size": 1}, {"name": "x[0]", "type": "uint8", "size": 1}, ` +
				`{"name": "unused[1]", "type": "unused_buffer", "size": 2}, {"name": "x[1]", "type": "uint8", "size": 1}, ` +
				`{"name": "unused[2]", "type": "unused_buffer", "size": 3}]`},
		"a struct": {func(f *Fields) { f.Struct("s", "pair", 3, pair) },
			`[{"name": "s", "type": "struct", "struct": {"vmsd_name": "pair", "version": 3, "fields": [` +
				`{"name": "a", "type": "uint8", "size": 1}, {"name": "b", "type": "uint32", "size": 4}]}, "size": 5}]`},
		"structs that are alike": {func(f *Fields) { f.StructArray("s", "pair", 3, 2, func(_ int, f *Fields) { pair(f) }) },
			`[{"name": "s", "array_len": 2, "type": "struct", "struct": {"vmsd_name": "pair", "version": 3, "fields": [` +
				`{"name": "a", "type": "uint8", "size": 1}, {"name": "b", "type": "uint32", "size": 4}]}, "size": 5}]`},
		"structs that differ": {func(f *Fields) {
			f.StructArray("s", "p", 1, 2, func(i int, f *Fields) { f.Bytes("x", make([]byte, i+1)) })
		}, `[{"name": "s", "index": 0, "type": "struct", "struct": {"vmsd_name": "p", "version": 1, "fields": [{"name": "x", "type": "buffer", "size": 1}]}, "size": 1}, ` +
			`{"name": "s", "index": 1, "type": "struct", "struct": {"vmsd_name": "p", "version": 1, "fields": [{"name": "x", "type": "buffer", "size": 2}]}, "size": 2}]`},
		"tmp": {func(f *Fields) { f.Tmp("t", "tmp", 0, pair) },
			`[{"name": "t", "type": "tmp", "vmsd_name": "tmp", "version": 0, "fields": [{"name": "a", "type": "uint8", "size": 1}, {"name": "b", "type": "uint32", "size": 4}], "size": 5}]`},
		"vstruct": {func(f *Fields) { f.VStruct("v", "p", 7, func(f *Fields) { f.Uint8("a", &u8) }) },
			`[{"name": "v", "type": "vstruct", "struct": {"vmsd_name": "p", "version": 7, "fields": [{"name": "a", "type": "uint8", "size": 1}]}, "size": 1}]`},
		"other types": {func(f *Fields) {
			f.Info("config", "pci config", make([]byte, 256))
			f.Uint64Equal("e", 1)
			f.CPUDouble("d", new(uint64))
		},
			`[{"name": "config", "type": "pci config", "size": 256}, {"name": "e", "type": "int64 equal", "size": 8}, {"name": "d", "type": "CPU_Double_U", "size": 8}]`},
		"subsections": {func(f *Fields) {
			f.Uint8("a", &u8)
			f.Subsection("d/x", 2, true, func(f *Fields) { f.Uint8("b", &u8) })
			f.Subsection("d/y", 2, false, nil)
			f.Subsection("d/z", 1, true, func(f *Fields) {})
		}, `[{"name": "a", "type": "uint8", "size": 1}], "subsections": [{"vmsd_name": "d/x", "version": 2, "fields": [{"name": "b", "type": "uint8", "size": 1}]}, ` +
			`{"vmsd_name": "d/z", "version": 1, "fields": []}]`},
	} {
		reg := registry(t, Entry{Name: "0000:00:01.0/d", VMSD: "d", Instance: 3, Version: 5}, deviceFunc(x.f))
		stream := saved(t, reg)
		text, err := reg.VMDesc()
		wantNil(t, why, err)
		want := `{"page_size": 4096, "devices": [{"name": "0000:00:01.0/d", "instance_id": 3, "vmsd_name": "d", "version": 5, "fields": ` + x.want + `}]}`
		if string(text) != want {
			t.Errorf("%s:\ngot  %s\nwant %s", why, text, want)
		}
		desc, err := ParseVMDesc(text)
		wantNil(t, why, err)
		head := 1 + 4 + 1 + len("0000:00:01.0/d") + 8
		if _, err := desc.Devices[0].Decode(stream[head : len(stream)-6]); err != nil {
			t.Errorf("%s: %v", why, err)
		}
	}
}

// The description of timer and globalstate is QEMU's own, byte for byte.
func TestOurDescriptionIsQEMUs(t *testing.T) {
	stream := vector(t, "precopy_none_1M.bin")
	var ticks, clock int64
	var size uint32
	var state [100]byte
	var reg Registry
	wantNil(t, "register", reg.Register(Entry{Name: "timer", Version: 2}, deviceFunc(func(f *Fields) {
		f.Int64("cpu_ticks_offset", &ticks)
		f.Unused(8)
		f.Int64("cpu_clock_offset", &clock)
	})))
	wantNil(t, "register", reg.RegisterLive(Entry{Name: "gap"}, plainLive{}, nil))
	wantNil(t, "register", reg.RegisterLive(Entry{Name: "ram", Version: 4}, nil, skipRAM{}))
	wantNil(t, "register", reg.RegisterLive(Entry{Name: "gap", Instance: 1}, plainLive{}, nil))
	wantNil(t, "register", reg.Register(Entry{Name: "globalstate", Version: 1}, deviceFunc(func(f *Fields) {
		f.Uint32("size", &size)
		f.Bytes("runstate", state[:])
	})))
	r := reader(stream)
	wantNil(t, "header", ReadFileHeader(r))
	c, err := ReadConfiguration(r)
	wantNil(t, "configuration", err)
	wantNil(t, "match", c.Check(Configuration{Machine: "none"}))
	wantNil(t, "load", reg.Load(r, nil))
	want, err := ReadVMDesc(r, 0)
	wantNil(t, "description", err)
	wantNil(t, "commit", reg.Commit())
	devices := saved(t, &reg)
	if !bytes.HasSuffix(stream[:r.Offset()-int64(len(want))-5], devices) {
		t.Errorf("devices saved again: %x", devices)
	}
	if got, err := reg.VMDesc(); err != nil || string(got) != string(want) {
		t.Errorf("%v\ngot  %s\nwant %s", err, got, want)
	}
}

// skipRAM reads RAM and forgets it.
type skipRAM struct{}

func (skipRAM) LoadState(r *qemufile.Reader, _ uint32) error {
	_, err := new(rawRAM).DecodeLive(Header{Name: "ram"}, r)
	return err
}

func TestPutVMDescRefusesADeviceThatChanged(t *testing.T) {
	n := 1
	reg := registry(t, Entry{Name: "d"}, deviceFunc(func(f *Fields) { f.Bytes("x", make([]byte, n)) }))
	saved(t, reg)
	n = 2
	w := qemufile.NewWriter(new(bytes.Buffer))
	reg.PutVMDesc(w)
	wantError(t, "changed", w.Flush(), ErrDescription)
	reg = registry(t, Entry{Name: "d"}, deviceFunc(func(f *Fields) {
		f.Subsection("d/x", 1, true, func(*Fields) {})
		f.Unused(1)
	}))
	saved(t, reg)
	if _, err := reg.VMDesc(); err == nil {
		t.Error("a field after a subsection is accepted")
	}
}

func TestParseVMDescIsLenient(t *testing.T) {
	d, err := ParseVMDesc([]byte(`{"configuration": {"vmsd_name": "configuration", "fields": [{}]}, "page_size": 4096, "devices": [
		{"name": "old", "instance_id": 1, "size": 7, "fields": [{"name": "data", "size": 7, "type": "buffer"}], "new": [{"x": null}]},
		{"name": "q", "instance_id": 0, "vmsd_name": "q", "version": 1, "fields": [
			{"name": "list", "type": "qtailq", "vmsd_name": "e", "version": 1, "fields": [{"name": "x", "type": "uint8", "size": 1}],
			 "vmsd_name": "e", "version": 1, "fields": [{"name": "x", "type": "uint8", "size": 1}], "size": 5},
			{"name": "tree", "type": "gtree", "fields": [{"name": "x", "type": "uint8", "size": 1}], "size": 6}]}]}`))
	wantNil(t, "parse", err)
	if d.PageSize != 4096 || len(d.Devices) != 2 || d.Find("old", 1).Len() != 7 || d.Find("old", 0) != nil {
		t.Fatalf("%+v", d)
	}
	s, err := d.Devices[0].Decode(make([]byte, 7))
	if err != nil || len(s.Find("data").Value.([]byte)) != 7 {
		t.Errorf("old device: %+v, %v", s, err)
	}
	s, err = d.Devices[1].Decode([]byte{1, 8, 1, 9, 0, 0, 0, 0, 0, 1, 0})
	if err != nil || s.Find("list").Value.([]any)[1].(Struct).Fields[0].Value != uint64(9) || len(s.Find("tree").Value.([]byte)) != 6 {
		t.Errorf("list: %+v, %v", s, err)
	}
	// A list that does not have the layout of a list is given as bytes.
	s, err = d.Devices[1].Decode([]byte{2, 8, 1, 9, 0, 0, 0, 0, 0, 1, 0})
	if err != nil || len(s.Find("list").Value.([]byte)) != 5 {
		t.Errorf("list: %+v, %v", s, err)
	}
}

func TestParseVMDescRefuses(t *testing.T) {
	for why, text := range map[string]string{
		"no JSON":                "x",
		"no object":              "[]",
		"a cut":                  `{"devices": [`,
		"two objects":            `{} {}`,
		"a device of no name":    `{"devices": [{"size": 1}]}`,
		"a device that is none":  `{"devices": [1]}`,
		"a field of no size":     `{"devices": [{"name": "a", "fields": [{"name": "x"}]}]}`,
		"a field of no name":     `{"devices": [{"name": "a", "fields": [{"size": 1}]}]}`,
		"a negative size":        `{"devices": [{"name": "a", "size": -1}]}`,
		"a fraction":             `{"devices": [{"name": "a", "size": 1.5}]}`,
		"a size beyond 1 TiB":    `{"devices": [{"name": "a", "size": 1099511627777}]}`,
		"a number too large":     `{"devices": [{"name": "a", "instance_id": 4294967296}]}`,
		"an array that overflow": `{"devices": [{"name": "a", "fields": [{"name": "x", "size": 1099511627776, "array_len": 1099511627776}]}]}`,
		"a string for a number":  `{"page_size": "x"}`,
		"a number for a string":  `{"devices": [{"name": 1}]}`,
		"a nameless subsection":  `{"devices": [{"name": "a", "subsections": [{}]}]}`,
	} {
		_, err := ParseVMDesc([]byte(text))
		wantError(t, why, err, ErrDescription)
	}
	huge := DeviceDesc{Size: -1, StructDesc: StructDesc{Fields: []FieldDesc{{Size: maxDescSize, Count: 1}, {Size: maxDescSize, Count: 1}}}}
	if huge.Len() != -1 {
		t.Error("a sum beyond 1 TiB")
	}
}

func FuzzVMDesc(f *testing.F) {
	reg := registry(f, allEntry, full())
	body := saved(f, reg)
	text, err := reg.VMDesc()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text, body[17:len(body)-6])
	f.Add([]byte(`{"devices": [{"name": "a", "instance_id": 0, "size": 3}]}`), []byte{1, 2, 3})
	f.Add([]byte(`{"devices": [{"name": "a", "fields": [{"name": "x", "type": "qtailq", "size": 3, "vmsd_name": "a", "fields": []}]}]}`), []byte{1, 0, 3})
	f.Fuzz(func(t *testing.T, text, body []byte) {
		d, err := ParseVMDesc(text)
		if err != nil {
			if !errors.Is(err, ErrDescription) {
				t.Fatalf("error of unknown kind: %v", err)
			}
			return
		}
		for i := range d.Devices {
			s, err := d.Devices[i].Decode(body)
			if err != nil {
				if !errors.Is(err, ErrDescription) {
					t.Fatalf("error of unknown kind: %v", err)
				}
				continue
			}
			if d.Devices[i].Len() != int64(len(body)) {
				t.Fatalf("decoded %d bytes of %d", d.Devices[i].Len(), len(body))
			}
			if _, err := json.Marshal(s); err != nil {
				t.Fatal(err)
			}
		}
	})
}
