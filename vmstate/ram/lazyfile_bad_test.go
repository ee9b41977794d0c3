package ram

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// lists returns the ram section of a file that has as many lists of one block each, and more
// records behind them.
func lists(t *testing.T, length uint64, more func(w *qemufile.Writer), blocks ...string) *os.File {
	t.Helper()
	b := body(t, func(w *qemufile.Writer) {
		const header = 8 + 1 + 3 + 8 + 4 + 3*8 // of a list of one block with a name of three letters
		at := uint64(0)
		for _, name := range blocks {
			w.PutBE64(length | flagMemSize)
			w.PutCountedString(name)
			w.PutBE64(length)
			w.PutBE32(mappedVersion)
			w.PutBE64(PageSize)
			w.PutBE64(at + header)
			w.PutBE64(at + header + 8)
			w.Write(make([]byte, 8+length)) // no page
			at += header + 8 + length
		}
		if more != nil {
			more(w)
		}
		w.PutBE64(flagEOS)
	})
	f := mappedFile(t)
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestEachBlockIsInAFileOnce(t *testing.T) {
	for name, test := range map[string]struct {
		blocks []string
		want   error
	}{
		"in two lists":   {[]string{"ram", "rom"}, nil},
		"one twice":      {[]string{"ram", "ram"}, ErrBlockList},
		"one missing":    {[]string{"ram"}, ErrBlockList},
		"one too often":  {[]string{"ram", "rom", "rom"}, ErrBlockList},
		"one is unknown": {[]string{"ram", "rim"}, ErrUnknownBlock},
	} {
		l := newLazy(t, pages(t, "ram", 3), pages(t, "rom", 3))
		_, err := l.OpenMapped(lists(t, 3*PageSize, nil, test.blocks...), 0)
		if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
		if (l.from != nil) != (test.want == nil) {
			t.Errorf("%s: it has a file: %v", name, l.from != nil)
		}
	}
}

// All of the memory is at the fixed places: a page elsewhere would be lost, or be the guest's
// before anything was checked.
func TestAPageOutsideTheFixedPlacesIsRefused(t *testing.T) {
	pageRecord := func(w *qemufile.Writer) {
		w.PutBE64(PageSize | flagPage)
		w.PutCountedString("ram")
		w.Write(page(5))
	}
	var e *Error
	l := newLazy(t, pages(t, "ram", 3))
	if _, err := l.OpenMapped(lists(t, 3*PageSize, pageRecord, "ram"), 0); !errors.Is(err, ErrFlags) || !errors.As(err, &e) || e.Block != "ram" {
		t.Errorf("in the section: %v", err)
	}
	b := pages(t, "ram", 3)
	b.Host[0] = 9
	before := bytes.Clone(b.Host)
	l = newLazy(t, b)
	if _, err := l.OpenMapped(lists(t, 3*PageSize, nil, "ram"), 0); err != nil {
		t.Fatal(err)
	}
	later := body(t, func(w *qemufile.Writer) { pageRecord(w); w.PutBE64(flagEOS) })
	if err := l.LoadState(reader(later), Version); !errors.Is(err, ErrFlags) || !errors.As(err, &e) || e.Block != "ram" || e.Offset != PageSize {
		t.Errorf("in a later section: %v", err)
	}
	if !bytes.Equal(b.Host, before) {
		t.Error("the guest has changed")
	}
	if err := l.LoadState(reader(unhex(t, eosHex)), Version); err != nil {
		t.Errorf("the end of memory: %v", err)
	}
}

// A Lazy that was closed refuses to fill its memory. Other calls find nothing to do.
func TestAClosedLazyTakesPartInNothing(t *testing.T) {
	was := pages(t, "ram", 3)
	b := pages(t, "ram", 3)
	l := newLazy(t, b)
	if _, err := l.OpenMapped(inFile(t, 0, was), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Listen(), l.Close()); err != nil {
		t.Fatal(err)
	}
	l.Interrupt()
	if err := l.Serve(func(string, uint64, uint32) { t.Error("asked") }); err != nil {
		t.Errorf("Serve after Close: %v", err)
	}
	var e *Error
	if err := l.Fill(context.Background()); !errors.As(err, &e) {
		t.Errorf("Fill after Close: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
	if l.Missing() != 3 {
		t.Errorf("%d pages are missing", l.Missing())
	}
}
