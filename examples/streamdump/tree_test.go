package main

import (
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/plain"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// shown is a device with values that are worth little in full.
type shown struct{}

func (shown) VMState(f *vmstate.Fields) {
	words := make([]uint64, 16)
	words[0], words[1], words[15] = 1<<63|6, 1, 1<<63
	f.Bitmap("dirty", words, 1024)
	f.Struct("part", "part", 1, func(f *vmstate.Fields) {
		f.Bytes("long", make([]byte, maxShown+5))
		f.Bytes("text", []byte("hello\x00\x00"))
	})
	large := uint64(1<<63 + 1)
	f.Uint64("large", &large)
}

// begin writes what a stream begins with.
func begin(w *qemufile.Writer, capabilities ...string) {
	vmstate.PutFileHeader(w)
	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "none", Capabilities: capabilities})
}

func TestValuesAreShownForPeople(t *testing.T) {
	stream := written(t, func(w *qemufile.Writer) {
		var reg vmstate.Registry
		w.Fail(reg.Register(vmstate.Entry{Name: "bits", Version: 1}, shown{}))
		begin(w)
		w.Fail(reg.SaveDevices(w))
		vmstate.PutEOF(w)
		reg.PutVMDesc(w)
	})
	status, out, stderr := run(stream, "-json", "-fields", "-verify")
	for _, want := range []string{
		`"dirty":"5 of 1024 bits: 1-2 63-64 1023-1023"`, `"long (first 65536 of 65541 bytes)":"0000`, `"text.text":"hello"`, `"large":"9223372036854775809"`,
	} {
		if status != 0 || !strings.Contains(out, want) {
			t.Errorf("status %d, %s; %s is not in %.300s", status, stderr, want, out)
		}
	}
	_, out, _ = run(stream, "-fields")
	for _, want := range []string{"dirty = 5 of 1024 bits: 1-2 63-64 1023-1023  (bitmap)", `text = "hello"  (buffer, 7 bytes)`, "large = 9223372036854775809  (uint64)"} {
		if !strings.Contains(out, want) {
			t.Errorf("%s is not in %.2000s", want, out)
		}
	}
	if _, out, _ = run(stream); strings.Count(out, "\n") != 7 {
		t.Errorf("a device is more than a line:\n%s", out)
	}
}

func TestPartsOfALiveDeviceAreOneRow(t *testing.T) {
	stream := written(t, func(w *qemufile.Writer) {
		begin(w)
		h := vmstate.Header{Type: vmstate.SectionStart, ID: 3, Name: "dirty-bitmap", Version: 1}
		for _, typ := range []vmstate.SectionType{vmstate.SectionStart, vmstate.SectionPart, vmstate.SectionPart, vmstate.SectionPart, vmstate.SectionEnd} {
			h.Type = typ
			h.Put(w)
			w.WriteString("abc")
			vmstate.PutFooter(w, 3)
		}
		vmstate.PutEOF(w)
	})
	_, out, _ := run(stream)
	if strings.Count(out, " part ") != 1 || !strings.Contains(out, "yes, opaque, 3 sections") {
		t.Errorf("%s", out)
	}
	if _, out, _ := run(stream, "-fields"); strings.Count(out, " part ") != 3 {
		t.Errorf("with -fields:\n%s", out)
	}
	if _, out, _ := run(stream, "-json"); strings.Count(out, `"kind":"part"`) != 3 {
		t.Errorf("as JSON:\n%s", out)
	}
}

func TestNamesDoNotMoveTheCursor(t *testing.T) {
	// By bytes, and by characters that stand for them or turn the text around them.
	for _, evil := range []string{"evil\x1b[2J\n", "evil\u009b2J", "evil\u202elive", "evil\x9b2J"} {
		stream := written(t, func(w *qemufile.Writer) {
			begin(w)
			vmstate.Header{Type: vmstate.SectionStart, ID: 3, Name: evil, Version: 1}.Put(w)
		})
		for _, args := range [][]string{nil, {"-json"}} {
			status, out, stderr := run(stream, args...)
			said := stderr
			if args == nil { // JSON is read by programs
				said += out
			}
			if status != 1 || strings.Contains(out, "\x1b") || strings.Count(stderr, "\n") != 1 || !plain.Is(strings.ReplaceAll(said, "\n", "")) {
				t.Errorf("%q: status %d, %q %q", evil, status, out, stderr)
			}
		}
	}
}
