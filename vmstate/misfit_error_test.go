package vmstate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/gocolo/lockstep/qemufile"
)

// threeDevices returns a stream of devices a, b and c, of 1, 2 and 3 bytes; change
// may alter the description and the bodies.
func threeDevices(t testing.TB, noConfiguration, noFooters bool, lengths [3]int, text string) []byte {
	t.Helper()
	return written(t, func(w *qemufile.Writer) {
		PutFileHeader(w)
		if !noConfiguration {
			PutConfiguration(w, Configuration{Machine: "none"})
		}
		for i, name := range []string{"dev-a", "dev-b", "dev-c"} {
			Header{Type: SectionFull, ID: uint32(i + 1), Name: name, Version: 1}.Put(w)
			w.Write(bytes.Repeat([]byte{byte(0xa0 + i)}, lengths[i]))
			if !noFooters {
				PutFooter(w, uint32(i+1))
			}
		}
		PutEOF(w)
		if text != "" {
			PutDescription(w, []byte(text))
		}
	})
}

// threeDescribed returns the description of the three devices.
func threeDescribed() string {
	var d []string
	for i, name := range []string{"dev-a", "dev-b", "dev-c"} {
		var f []string
		for j := range i + 1 {
			f = append(f, fmt.Sprintf(`{"name": "f%d", "type": "uint8", "size": 1}`, j))
		}
		d = append(d, fmt.Sprintf(`{"name": "%s", "instance_id": 0, "vmsd_name": "%s", "version": 1, "fields": [%s]}`, name, name, strings.Join(f, ", ")))
	}
	return `{"page_size": 4096, "devices": [` + strings.Join(d, ", ") + `]}`
}

// devicesOf tells of each FULL section whether it is decoded ("a"), or why not.
func devicesOf(d *Document) (got []string) {
	for _, rec := range d.Records {
		if rec.Type != SectionFull {
			continue
		}
		if _, err := rec.Decode(); err != nil {
			got = append(got, err.Error())
		} else {
			got = append(got, rec.Header.Name)
		}
	}
	return got
}

func TestADeviceThatDisagreesWithItsDescriptionCostsOnlyItself(t *testing.T) {
	good := [3]int{1, 2, 3}
	for _, x := range []struct {
		name                       string
		noConfiguration, noFooters bool
		lengths                    [3]int
		text                       string
		want                       []string
		err                        error
	}{
		{"all fit", false, false, good, threeDescribed(), []string{"dev-a", "dev-b", "dev-c"}, nil},
		{"all fit without footers", false, true, good, threeDescribed(), []string{"dev-a", "dev-b", "dev-c"}, nil},
		{"all fit without anything", true, true, good, threeDescribed(), []string{"dev-a", "dev-b", "dev-c"}, nil},
		{"the first is longer", false, false, [3]int{5, 2, 3}, threeDescribed(), []string{"device dev-a: described 1 bytes, found 5", "dev-b", "dev-c"}, nil},
		{"the second is shorter", false, false, [3]int{1, 0, 3}, threeDescribed(), []string{"dev-a", "device dev-b: described 2 bytes, found 0", "dev-c"}, nil},
		{"the last is longer", false, false, [3]int{1, 2, 9}, threeDescribed(), []string{"dev-a", "dev-b", "device dev-c: described 3 bytes, found 9"}, nil},
		{"all are longer", false, false, [3]int{2, 3, 4}, threeDescribed(), []string{"device dev-a: described 1 bytes, found 2", "device dev-b: described 2 bytes, found 3", "device dev-c: described 3 bytes, found 4"}, nil},
		{"one is longer, and there are no footers", true, true, [3]int{1, 7, 3}, threeDescribed(), []string{"dev-a", "device dev-b: described 2 bytes, found 7", "dev-c"}, nil},
		{"a description that is broken", false, false, good, strings.Replace(threeDescribed(), `"f1"`, `"f1`, 1),
			[]string{"dev-a", "device dev-b: vmstate: vm description: at byte 303: invalid character 't' after object key:value pair", "dev-c"}, ErrDescription},
		{"a device of another name", false, false, good, strings.Replace(threeDescribed(), `"dev-b"`, `"dev-x"`, 1), []string{"dev-a", "device dev-b: nothing describes it", "dev-c"}, nil},
		{"a device of another instance", false, false, good, strings.Replace(threeDescribed(), `"dev-b", "instance_id": 0`, `"dev-b", "instance_id": 9`, 1), []string{"dev-a", "device dev-b: nothing describes it", "dev-c"}, nil},
		{"one described that is not there", false, false, good, strings.Replace(threeDescribed(), `{"name": "dev-b"`, `{"name": "dev-x", "instance_id": 0, "size": 7}, {"name": "dev-b"`, 1), []string{"dev-a", "dev-b", "dev-c"}, nil},
		{"one described beyond all bounds", false, false, good, strings.Replace(threeDescribed(), `"f1", "type": "uint8", "size": 1`, `"f1", "type": "uint8", "size": 1099511627776`, 1), []string{"dev-a", "device dev-b: described as more than 1 TiB, found 2 bytes", "dev-c"}, nil},
		{"no description", false, false, good, "", []string{"vmstate: no vm description of full 1 dev-a/0 v1", "vmstate: no vm description of full 2 dev-b/0 v1", "vmstate: no vm description of full 3 dev-c/0 v1"}, nil},
		{"neither footers nor a description", true, true, good, "", []string{"vmstate: no vm description of full 1 dev-a/0 v1", "vmstate: no vm description of full 2 dev-b/0 v1", "vmstate: no vm description of full 3 dev-c/0 v1"}, nil},
		{"an array of pointers", false, false, [3]int{1, 9, 3}, strings.Replace(threeDescribed(), `{"name": "f1", "type": "uint8", "size": 1}`, `{"name": "p", "array_len": 2, "type": "struct", "struct": {}, "size": 1}`, 1),
			[]string{"dev-a", "device dev-b: described 3 bytes, found 9", "dev-c"}, nil},
		{"null pointers only", false, false, [3]int{1, 3, 3}, strings.Replace(threeDescribed(), `{"name": "f1", "type": "uint8", "size": 1}`, `{"name": "p", "array_len": 2, "type": "struct", "struct": {}, "size": 1}`, 1),
			[]string{"dev-a", "dev-b", "dev-c"}, nil},
	} {
		stream := threeDevices(t, x.noConfiguration, x.noFooters, x.lengths, x.text)
		doc, err := ReadDocument(reader(stream), nil)
		if x.err == nil {
			wantNil(t, x.name, err)
		} else {
			wantError(t, x.name, err, x.err)
		}
		if got := devicesOf(doc); !slices.Equal(got, x.want) {
			t.Errorf("%s: %q", x.name, got)
		}
		if again := written(t, func(w *qemufile.Writer) { doc.Put(w) }); !bytes.Equal(again, stream) {
			t.Errorf("%s: written again, it differs", x.name)
		}
		for _, rec := range doc.Records {
			if rec.Type == SectionFull && rec.Guessed != (x.noFooters && rec.Desc == nil) {
				t.Errorf("%s: %s is guessed: %t", x.name, rec.Header, rec.Guessed)
			}
			var m *MisfitError
			if rec.Misfit != nil && (!errors.As(rec.Misfit, &m) || m.Name != rec.Header.Name || m.Found != rec.BodyLength || !errors.Is(m, ErrDescription)) {
				t.Errorf("%s: %+v", x.name, m)
			}
		}
	}
}

// A footer that is damaged costs its device, if the next can be told.
func TestADamagedFooterIsCutByTheNextHeader(t *testing.T) {
	stream := threeDevices(t, false, false, [3]int{1, 2, 3}, threeDescribed())
	at := bytes.Index(stream, []byte{0x7e, 0, 0, 0, 2})
	stream[at] = 0x7d
	doc, err := ReadDocument(reader(stream), nil)
	wantError(t, "the footer", err, ErrFooter)
	got := devicesOf(doc)
	if len(got) != 3 || got[0] != "dev-a" || got[2] != "dev-c" {
		t.Errorf("%q", got)
	}
}

func TestADescriptionIsRepairedDeviceByDevice(t *testing.T) {
	text := threeDescribed()
	d, err := RepairVMDesc([]byte(text))
	wantNil(t, "nothing wrong", err)
	if len(d.Devices) != 3 {
		t.Errorf("%d devices", len(d.Devices))
	}
	for at := range text {
		p := []byte(text)
		p[at] = 0xff
		d, err := RepairVMDesc(p)
		if err == nil {
			continue // inside a name
		}
		wantError(t, "broken", err, ErrDescription)
		broken := 0
		for i := range d.Devices {
			if d.Devices[i].Broken != nil {
				broken++
			}
		}
		if begin := strings.Index(text, `{"name": "dev-a"`); at > begin && (len(d.Devices)-broken < 2 || broken > 1) {
			t.Fatalf("byte %d of %q: %d devices, %d of them lost", at, text[max(0, at-10):at], len(d.Devices), broken)
		}
	}
}

func TestZerosBehindTheEndAreLeftUnread(t *testing.T) {
	for _, text := range []string{"", threeDescribed()} {
		stream := threeDevices(t, false, false, [3]int{1, 2, 3}, text)
		s := Scanner{Padding: true, Record: func(*Record) error { return nil }}
		r := reader(append(bytes.Clone(stream), make([]byte, 100)...))
		wantNil(t, "padded", s.Stream(r))
		if r.Offset() != int64(len(stream)) {
			t.Errorf("read to %d of %d", r.Offset(), len(stream))
		}
	}
}

func TestLongDevicesPassBy(t *testing.T) {
	lengths := [3]int{1, 300000, 3}
	text := strings.Replace(threeDescribed(), `"f1", "type": "uint8", "size": 1`, `"f1", "type": "buffer", "size": 299999`, 1)
	for _, described := range []bool{true, false} {
		if !described {
			text = ""
		}
		stream := threeDevices(t, false, false, lengths, text)
		var passed []byte
		var records []Record
		s := Scanner{
			MaxState: 256, Large: func(p []byte) { passed = append(passed, p...) }, MaxSkip: 1 << 20,
			Record: func(rec *Record) error { records = append(records, *rec); return nil },
		}
		r := qemufile.NewReader(iotest.HalfReader(bytes.NewReader(stream)))
		wantNil(t, "scan", s.Stream(r))
		first := bytes.Index(stream, []byte("\x04\x00\x00\x00\x01\x05"))
		if !bytes.HasPrefix(stream[first:], passed) || len(passed) < 300000 || r.Offset() != int64(len(stream)) {
			t.Errorf("%d bytes passed by", len(passed))
		}
		got := devicesOf(&Document{Records: records})
		if len(got) != 3 || described && (got[0] != "dev-a" || got[2] != "dev-c" || !strings.Contains(got[1], "300000 bytes: too long")) {
			t.Errorf("%q", got)
		}
		elided := records[slices.IndexFunc(records, func(rec Record) bool { return rec.Elided })]
		if elided.BodyLength != 300000 || elided.Body != nil {
			t.Errorf("%+v", elided)
		}
		w := qemufile.NewWriter(io.Discard)
		if elided.Put(w); w.Err() == nil {
			t.Error("what was not kept is written")
		}
		for n := first; n < len(stream); n += 9973 {
			r := qemufile.NewReader(iotest.HalfReader(bytes.NewReader(stream[:n])))
			if err := s.Stream(r); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("cut at %d: %v", n, err)
			}
		}
	}
}

func TestValuesThatAreManyAreBounded(t *testing.T) {
	d, err := ParseVMDesc([]byte(`{"devices": [{"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1, "fields": [{"name": "x", "type": "uint16", "size": 2, "array_len": 1048576}]}]}`))
	wantNil(t, "parse", err)
	_, err = d.Devices[0].Decode(make([]byte, 2<<20))
	wantError(t, "a million integers", err, ErrBounds)
	wantError(t, "a million integers", err, ErrDescription)
	for limit, want := range map[int]error{7: ErrDescription, 8: nil} {
		p := newDescParser([]byte(`{"devices": [{"name":"a","size":0}, {"name":"b","fields":[{"name":"x","size":0},{"name":"x","size":0,"struct":{"fields":[{"name":"x","size":0}]}}],"subsections":[{"vmsd_name":"b/s","fields":[{"name":"y","size":0}]}]}]}`))
		p.limit = limit
		if _, err := p.parse(); !errors.Is(err, want) {
			t.Errorf("at most %d: %v", limit, err)
		}
	}
}

func TestJSONKeepsEveryDigitAndShowsText(t *testing.T) {
	s := Struct{Fields: []Field{
		{"exact", "uint64", uint64(1 << 53)}, {"large", "uint64", uint64(1<<53 + 1)}, {"small", "int64", int64(-1<<53 - 1)}, {"minus", "int64", int64(-5)},
		{"text", "buffer", []byte("running\x00\x00")}, {"bytes", "buffer", []byte{1, 2}}, {"one", "buffer", []byte("x\x00")}, {"list", "uint64", []any{uint64(1 << 60), true}},
	}, Subsections: []Struct{{VMSD: "d/s", Fields: []Field{{"x", "bool", false}}}}}
	text, err := json.Marshal(s)
	wantNil(t, "marshal", err)
	want := `{"exact":9007199254740992,"large":"9007199254740993","small":"-9007199254740993","minus":-5,` +
		`"text":"72756e6e696e670000","text.text":"running","bytes":"0102","one":"7800","list":["1152921504606846976",true],"subsections":{"d/s":{"x":false}}}`
	if string(text) != want {
		t.Errorf("got %s", text)
	}
}

func TestUnknownLiveDevicesPassByWithoutFooters(t *testing.T) {
	for _, n := range []int{0, 1, 5, 300, 546, 547, 1000, 5000} {
		part := bytes.Repeat([]byte{1, 0, 0, 0, 9, 3}, n/6+1)[:n] // looks like a header, but for its name
		stream := written(t, func(w *qemufile.Writer) {
			PutFileHeader(w)
			h := Header{Type: SectionStart, ID: 1, Name: "ram", Version: 4}
			h.Put(w)
			w.PutByte(1)
			h = Header{Type: SectionStart, ID: 7, Name: "storage", Version: 1}
			h.Put(w)
			w.Write(part)
			for _, typ := range []SectionType{SectionPart, SectionEnd} {
				Header{Type: typ, ID: 7}.Put(w)
				w.Write(part)
			}
			Header{Type: SectionEnd, ID: 1}.Put(w)
			w.PutByte(2)
			Header{Type: SectionFull, ID: 3, Name: "dev-a", Version: 1}.Put(w)
			w.PutByte(3)
			PutEOF(w)
			PutDescription(w, []byte(`{"page_size": 4096, "devices": [{"name": "dev-a", "instance_id": 0, "size": 1}]}`))
		})
		doc, err := ReadDocument(reader(stream), oneByte{})
		wantNil(t, fmt.Sprint(n), err)
		if got := devicesOf(doc); !slices.Equal(got, []string{"dev-a"}) {
			t.Errorf("%d: %q", n, got)
		}
		lengths := []int{}
		for _, rec := range doc.Records {
			if o, ok := rec.Live.(Opaque); ok {
				lengths = append(lengths, len(o))
			}
		}
		if !slices.Equal(lengths, []int{n, n, n}) {
			t.Errorf("bodies of %v, want %d", lengths, n)
		}
		if again := written(t, func(w *qemufile.Writer) { doc.Put(w) }); !bytes.Equal(again, stream) {
			t.Errorf("%d: written again, it differs", n)
		}
	}
}

func TestBytesBehindADescriptionThatFitsOnlyByNameAreLeftUnread(t *testing.T) {
	stream := hexBytes(t, `"QEVM" 00000003 07 00000000 04 00000000 01 "a" 00000000 00000001 0102 7e 00000000 00`+
		described(`{"devices": [{"name": "a", "instance_id": 0, "size": 1}, {"name": "b", "instance_id": 0, "size": 4}]}`))
	r := reader(append(bytes.Clone(stream), "next"...))
	if _, err := ReadDocument(r, nil); err != nil {
		t.Fatal(err)
	}
	if at := r.Offset(); at != int64(len(stream)) {
		t.Errorf("%d bytes are consumed, the document has %d", at, len(stream))
	}
	if left := r.Bytes(4, 4); string(left) != "next" {
		t.Errorf("%q is left, %v", left, r.Err())
	}
}
