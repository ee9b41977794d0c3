package vmstate

import (
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

func TestAPackageIsLoadedWhereItStands(t *testing.T) {
	d := &counter{}
	ram := &live{}
	var reg Registry
	wantNil(t, "register", reg.Register(Entry{Name: "a"}, d))
	wantNil(t, "register", reg.RegisterLive(Entry{Name: "ram"}, ram, ram))
	device := hexBytes(t, `04 00000000 01 "a" 00000000 00000000 00000009 7e 00000000`)
	pack := func(tail string) []byte {
		nested := written(t, func(w *qemufile.Writer) {
			PutCommand(w, PostcopyListen())
			w.Write(device)
			w.Write(hexBytes(t, tail))
		})
		return written(t, func(w *qemufile.Writer) {
			PutPackaged(w, nested)
			w.Write(hexBytes(t, `01 00000001 03 "ram" 00000000 00000000 07 7e 00000001 00`))
		})
	}
	var got []string
	note := func(c Command) error { got = append(got, c.String()); return nil }
	r := reader(pack("08 0005 0000"))
	wantError(t, "run ends the loop", reg.Load(r, note), ErrPostcopyRun)
	if d.N != 9 || !slices.Equal(got, []string{"packaged", "postcopy-listen", "postcopy-run"}) {
		t.Errorf("n %d after %v", d.N, got)
	}
	wantNil(t, "commit", reg.Commit())
	wantNil(t, "the rest", reg.Load(r, note))
	if string(ram.got) != "\x07" {
		t.Errorf("ram %x", ram.got)
	}
	wantNil(t, "EOF ends only the package", reg.Load(reader(pack("00")), nil))
	d.N = 1
	wantNil(t, "commit", reg.Commit())
	for why, x := range map[string]struct {
		stream []byte
		want   error
	}{
		"neither RUN nor EOF":     {pack(""), io.ErrUnexpectedEOF},
		"more after RUN":          {pack("08 0005 0000 00"), ErrTrailing},
		"more after EOF":          {pack("00 00"), ErrTrailing},
		"a package in a package":  {pack("08 0007 0004 00000001 00"), ErrCommand},
		"a package of 4 GiB":      {hexBytes(t, "08 0007 0004 ffffffff"), qemufile.ErrTooLong},
		"a package of no length":  {hexBytes(t, "08 0007 0004 00000000 00"), io.ErrUnexpectedEOF},
		"a package that is short": {hexBytes(t, "08 0007 0004 00000010 00"), io.ErrUnexpectedEOF},
	} {
		err := reg.Load(reader(x.stream), nil)
		wantError(t, why, err, x.want)
		var se *SectionError
		if !errors.As(err, &se) || se.Offset > int64(len(x.stream)) {
			t.Errorf("%s: %v", why, err)
		}
		if d.N != 1 {
			t.Errorf("%s: n is %d", why, d.N)
		}
	}
}

// The place of an error inside a package is that in the stream, like every other.
func TestAnErrorInAPackageSaysWhereInTheStream(t *testing.T) {
	var reg Registry
	wantNil(t, "register", reg.Register(Entry{Name: "a"}, &counter{}))
	good := hexBytes(t, `04 00000000 01 "a" 00000000 00000000 00000009 7e 00000000`)
	bad := hexBytes(t, `04 00000001 01 "x" 00000000 00000000`)
	head := len(good) + len(hexBytes(t, "08 0007 0004 00000000"))
	stream := written(t, func(w *qemufile.Writer) {
		w.Write(good)
		PutPackaged(w, slices.Concat(good, bad))
	})
	err := reg.Load(reader(stream), nil)
	var se *SectionError
	if want := int64(head + len(good)); !errors.Is(err, ErrUnknownSection) || !errors.As(err, &se) || se.Offset != want {
		t.Errorf("%v, want offset %d", err, want)
	}
}
