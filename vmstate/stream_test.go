package vmstate

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/qemufile"
)

func TestFileHeader(t *testing.T) {
	if got, want := written(t, PutFileHeader), hexBytes(t, "5145564d 00000003"); !bytes.Equal(got, want) {
		t.Errorf("got %x", got)
	}
	for why, x := range map[string]struct {
		hex    string
		want   error
		offset int64
	}{
		"not a stream":           {"7f454c46 00000003", ErrMagic, 0},
		"the obsolete version 2": {"5145564d 00000002", ErrVersion, 4},
		"a version of tomorrow":  {"5145564d 00000004", ErrVersion, 4},
		"half a magic":           {"5145", io.ErrUnexpectedEOF, 0},
		"no version":             {"5145564d", io.ErrUnexpectedEOF, 4},
		"half a version":         {"5145564d 0000", io.ErrUnexpectedEOF, 4},
		"nothing":                {"", io.EOF, 0},
	} {
		for _, before := range []int{0, 3} {
			r := reader(append(make([]byte, before), hexBytes(t, x.hex)...))
			r.Skip(uint64(before))
			err := ReadFileHeader(r)
			wantError(t, why, err, x.want)
			var se *SectionError
			if !errors.As(err, &se) || se.Offset != int64(before)+x.offset {
				t.Errorf("%s behind %d bytes: %v", why, before, err)
			}
		}
	}
}

func TestConfigurationComesBack(t *testing.T) {
	uuid := [16]byte{1, 2, 3}
	for _, x := range []struct {
		hex string
		c   Configuration
	}{
		{`07 00000004 "none"`, Configuration{Machine: "none"}},
		{`07 00000000`, Configuration{}},
		{`07 00000001 "m" 05 1e "configuration/target-page-bits" 00000001 0000000c`, Configuration{Machine: "m", TargetPageBits: 12}},
		{`07 00000001 "m" 05 1a "configuration/capabilities" 00000001 00000001 0f "x-ignore-shared"`, Configuration{Machine: "m", Capabilities: []string{"x-ignore-shared"}}},
		{`07 00000001 "m" 05 1a "configuration/capabilities" 00000001 00000000`, Configuration{Machine: "m", Capabilities: []string{}}},
		{`07 00000001 "m" 05 12 "configuration/uuid" 00000001 01020300000000000000000000000000`, Configuration{Machine: "m", UUID: &uuid}},
		{`07 00000001 "m"
			05 1e "configuration/target-page-bits" 00000001 0000000c
			05 1a "configuration/capabilities" 00000001 00000000
			05 12 "configuration/uuid" 00000001 01020300000000000000000000000000`,
			Configuration{Machine: "m", TargetPageBits: 12, Capabilities: []string{}, UUID: &uuid}},
	} {
		want := hexBytes(t, x.hex)
		got := written(t, func(w *qemufile.Writer) { PutConfiguration(w, x.c) })
		if !bytes.Equal(got, want) {
			t.Errorf("wrote %q, want %q", got, want)
		}
		r := reader(append(want, 0))
		c, err := ReadConfiguration(r)
		if diff := cmp.Diff(x.c, c); err != nil || diff != "" || r.Offset() != int64(len(want)) {
			t.Errorf("read %d of %d bytes of %q: %v %s", r.Offset(), len(want), want, err, diff)
		}
		for n := range want {
			r := reader(want[:n])
			_, err := ReadConfiguration(r)
			// A configuration has no end mark: cut before a subsection it counts as whole.
			if err == nil && n >= 5+len(x.c.Machine) && r.Offset() == int64(n) {
				continue
			}
			wantError(t, "cut", err, io.ErrUnexpectedEOF)
		}
	}
}

func TestConfigurationRefuses(t *testing.T) {
	for why, x := range map[string]struct {
		hex  string
		want error
	}{
		"a section instead":          {`01`, ErrConfiguration},
		"an unknown subsection":      {`07 00000000 05 0f "configuration/x" 00000001`, ErrUnknownSubsection},
		"somebody else's subsection": {`07 00000000 05 03 "a/b" 00000001`, ErrUnknownSubsection},
		"a subsection twice":         {`07 00000000 05 1a "configuration/capabilities" 00000001 00000000 05 1a "configuration/capabilities" 00000001 00000000`, ErrUnknownSubsection},
		"another version":            {`07 00000000 05 12 "configuration/uuid" 00000002`, ErrVersion},
		"a name of 4 GiB":            {`07 ffffffff "x"`, qemufile.ErrTooLong},
		"4 Gi capabilities":          {`07 00000000 05 1a "configuration/capabilities" 00000001 ffffffff`, ErrBounds},
		"pages of no size":           {`07 00000000 05 1e "configuration/target-page-bits" 00000001 00000000`, ErrConfiguration},
	} {
		_, err := ReadConfiguration(reader(hexBytes(t, x.hex)))
		wantError(t, why, err, x.want)
	}
}

func TestConfigurationCheck(t *testing.T) {
	a, b := [16]byte{1}, [16]byte{2}
	shared := []string{"x-ignore-shared"}
	local := Configuration{Machine: "none", TargetPageBits: 12, UUID: &a}
	for _, x := range []struct {
		why string
		c   Configuration
		ok  bool
	}{
		{"the same", local, true},
		{"a prefix of the machine", Configuration{Machine: "no"}, true},
		{"no machine", Configuration{}, true},
		{"a longer machine", Configuration{Machine: "nonex"}, false},
		{"another machine", Configuration{Machine: "pc"}, false},
		{"another page size", Configuration{TargetPageBits: 14}, false},
		{"another uuid", Configuration{UUID: &b}, false},
		{"a capability that both must have", Configuration{Capabilities: shared}, false},
		{"another capability that both must have", Configuration{Capabilities: []string{"mapped-ram"}}, false},
		{"a capability that nobody has", Configuration{Capabilities: []string{"xbzrle", "teleport"}}, false},
		{"a capability that does not matter", Configuration{Capabilities: []string{"xbzrle"}}, true},
	} {
		if err := x.c.Check(local); (err == nil) != x.ok || err != nil && !errors.Is(err, ErrConfiguration) {
			t.Errorf("%s: %v", x.why, err)
		}
	}
	local.Capabilities = shared
	wantError(t, "a capability only here", Configuration{}.Check(local), ErrConfiguration)
	wantNil(t, "a uuid only there", Configuration{UUID: &a, Capabilities: shared}.Check(Configuration{Capabilities: shared}))
}

func TestReadVMDesc(t *testing.T) {
	stream := written(t, func(w *qemufile.Writer) { PutDescription(w, []byte("{}")) })
	text, err := ReadVMDesc(reader(stream), 0)
	if err != nil || string(text) != "{}" {
		t.Errorf("%q, %v", text, err)
	}
	_, err = ReadVMDesc(reader(nil), 0)
	wantError(t, "the peer has closed", err, io.EOF)
	_, err = ReadVMDesc(reader([]byte{0}), 0)
	wantError(t, "something else", err, ErrDescription)
	_, err = ReadVMDesc(reader(stream), 1)
	wantError(t, "too long", err, qemufile.ErrTooLong)
	for n := range stream {
		if n > 0 {
			_, err = ReadVMDesc(reader(stream[:n]), 0)
			wantError(t, "cut", err, io.ErrUnexpectedEOF)
		}
	}
}

func TestTypesHaveNames(t *testing.T) {
	for got, want := range map[string]string{
		SectionFull.String(): "full", Footer.String(): "footer", SectionType(9).String(): "type 0x09", EOF.String(): "eof",
		SectionStart.String(): "start", SectionPart.String(): "part", SectionEnd.String(): "end", Description.String(): "vmdesc",
		Configured.String(): "configuration", CommandRecord.String(): "command", Subsection.String(): "subsection",
		CommandEnableCOLO.String(): "enable-colo", CommandType(99).String(): "command 99",
		ReturnPong.String(): "pong", ReturnType(99).String(): "message 99", PostcopyRunning.String(): "running",
		PostcopyState(99).String(): "state 99", Header{Type: SectionEnd, ID: 2}.String(): "end 2",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A Scanner reads one stream after the other, and finds out anew whether there are footers.
func TestAScannerExpectsNoFootersOfAStreamForThoseOfAnother(t *testing.T) {
	s := Scanner{
		Record: func(*Record) error { return nil },
		Live:   func(_ Header, r *qemufile.Reader) error { r.Byte(); return r.Err() },
	}
	const start, end = `"QEVM" 00000003 07 00000000 01 00000002 03 "ram" 00000000 00000004 01 `, `03 00000002 01 `
	wantNil(t, "with footers", s.Stream(reader(hexBytes(t, start+`7e 00000002 `+end+`7e 00000002 00`))))
	if s.NoFooters {
		t.Error("footers are not found")
	}
	wantNil(t, "without footers", s.Stream(reader(hexBytes(t, start+end+`00`))))
	if !s.NoFooters {
		t.Error("footers are found where none are")
	}
}
