package vmstate

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// encodesWhatItDecodes checks that a body that can be taken apart can be put together, and
// then says the same.
func encodesWhatItDecodes(t *testing.T, rec *Record) {
	t.Helper()
	s, err := rec.Decode()
	if err != nil {
		return
	}
	body, err := rec.Desc.Encode(s)
	if err != nil {
		t.Fatalf("%x is taken apart, and not put together: %v", rec.Body, err)
	}
	if again, err := rec.Desc.Decode(body); err != nil || !reflect.DeepEqual(again, s) {
		t.Fatalf("%x says %v; put together it is %x and says %v, %v", rec.Body, s, body, again, err)
	}
}

// cpuOf returns the state of a CPU in a stream of QEMU, and what describes it.
func cpuOf(t *testing.T) (*DeviceDesc, Struct) {
	t.Helper()
	doc, err := ReadDocument(reader(vector(t, "pc-min-1m.mig.gz")), &rawRAM{})
	wantNil(t, "read", err)
	for i := range doc.Records {
		if rec := &doc.Records[i]; rec.Type == SectionFull && rec.Header.Name == "cpu" {
			s, err := rec.Decode()
			wantNil(t, "decode", err)
			return rec.Desc, s
		}
	}
	t.Fatal("no cpu")
	return nil, Struct{}
}

func TestAChangedValueIsEncoded(t *testing.T) {
	desc, s := cpuOf(t)
	s.Find("env.eip").Value = uint64(0xfff0)
	s.Find("env.regs").Value.([]any)[3] = uint64(7)
	segs := s.Find("env.segs").Value.([]any)
	segs[1].(Struct).Find("selector").Value = uint64(0x33)
	body, err := desc.Encode(s)
	wantNil(t, "encode", err)
	again, err := desc.Decode(body)
	wantNil(t, "decode", err)
	if !reflect.DeepEqual(again, s) {
		t.Errorf("it says %v, want %v", again, s)
	}
}

// lined is a device with a list.
type lined struct{ items []uint16 }

func (q *lined) VMState(f *Fields) {
	QTailQ(f, "items", "item", 1, &q.items, 8, func(v *uint16, f *Fields) { f.Uint16("v", v) })
}

func TestAListIsEncoded(t *testing.T) {
	var reg Registry
	wantNil(t, "register", reg.Register(Entry{Name: "queue", Version: 1}, &lined{items: []uint16{5, 6}}))
	doc, err := ReadDocument(reader(written(t, func(w *qemufile.Writer) {
		PutFileHeader(w)
		PutConfiguration(w, Configuration{Machine: "none"})
		wantNil(t, "save", reg.SaveDevices(w))
		PutEOF(w)
		reg.PutVMDesc(w)
	})), nil)
	wantNil(t, "read", err)
	for _, rec := range doc.Records {
		if rec.Type != SectionFull {
			continue
		}
		s, err := rec.Decode()
		wantNil(t, "decode", err)
		s.Find("items").Value.([]any)[1].(Struct).Find("v").Value = uint64(0x102)
		body, err := rec.Desc.Encode(s)
		wantNil(t, "encode", err)
		if want := []byte{1, 0, 5, 1, 1, 2, 0}; !bytes.Equal(body, want) {
			t.Errorf("%x, want %x", body, want)
		}
		s.Find("items").Value = []any{uint64(1), uint64(2)}
		if _, err := rec.Desc.Encode(s); !errors.Is(err, ErrValue) {
			t.Errorf("a list of numbers: %v, want ErrValue", err)
		}
		return
	}
	t.Fatal("no device")
}

func TestAValueThatDoesNotFitIsNotEncoded(t *testing.T) {
	for name, c := range map[string]struct {
		change func(s *Struct)
		want   string
	}{
		"another type":      {func(s *Struct) { s.Find("env.eip").Value = "x" }, "cpu:env.eip"},
		"an int":            {func(s *Struct) { s.Find("env.eip").Value = 1 }, "cpu:env.eip"},
		"no value":          {func(s *Struct) { s.Find("env.eip").Value = nil }, "cpu:env.eip"},
		"a bool":            {func(s *Struct) { s.Find("env.eip").Value = true }, "cpu:env.eip"},
		"a list":            {func(s *Struct) { s.Find("env.eip").Value = []any{} }, "cpu:env.eip"},
		"a struct":          {func(s *Struct) { s.Find("env.eip").Value = Struct{} }, "cpu:env.eip"},
		"a signed one":      {func(s *Struct) { s.Find("env.eip").Value = int64(1) }, "cpu:env.eip"},
		"too great":         {func(s *Struct) { s.Find("env.hflags").Value = uint64(1 << 32) }, "cpu:env.hflags"},
		"too few":           {func(s *Struct) { f := s.Find("env.regs"); f.Value = f.Value.([]any)[1:] }, "cpu:env.regs"},
		"no list":           {func(s *Struct) { s.Find("env.regs").Value = uint64(1) }, "cpu:env.regs"},
		"a field less":      {func(s *Struct) { s.Fields = s.Fields[1:] }, "cpu"},
		"another name":      {func(s *Struct) { s.Find("env.eip").Name = "pc" }, "cpu:env.eip"},
		"another version":   {func(s *Struct) { s.Version++ }, "cpu"},
		"a subsection more": {func(s *Struct) { s.Subsections = append(s.Subsections, Struct{}) }, "cpu"},
		"another part": {func(s *Struct) {
			s.Find("env.segs").Value.([]any)[2] = Struct{VMSD: "segment"}
		}, "segment"},
	} {
		t.Run(name, func(t *testing.T) {
			desc, s := cpuOf(t)
			c.change(&s)
			_, err := desc.Encode(s)
			var fe *FieldError
			if !errors.Is(err, ErrValue) || !errors.As(err, &fe) || fe.Field != c.want || strings.Contains(err.Error(), "%!") {
				t.Errorf("%v, want a FieldError about %q", err, c.want)
			}
		})
	}
}
