package diff

import (
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/internal/damage"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// memoryFile is a Scratch in memory: of pages that came, and zeros elsewhere.
type memoryFile map[int64][ram.PageSize]byte

func (m memoryFile) ReadAt(p []byte, at int64) (int, error) {
	page := m[at/ram.PageSize]
	return copy(p, page[at%ram.PageSize:]), nil
}

func (m memoryFile) WriteAt(p []byte, at int64) (int, error) {
	page := m[at/ram.PageSize]
	n := copy(page[at%ram.PageSize:], p)
	m[at/ram.PageSize] = page
	return n, nil
}

// recorded returns a stream of QEMU, cut at its records and at those of its memory.
func recorded(t testing.TB, path string) damage.Input {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	in := io.Reader(f)
	if strings.HasSuffix(path, ".gz") {
		if in, err = gzip.NewReader(f); err != nil {
			t.Fatal(err)
		}
	}
	p, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	return at(t, p)
}

// at cuts a stream at its records and at those of its memory.
func at(t testing.TB, p []byte) damage.Input {
	t.Helper()
	in := damage.Input{Bytes: p}
	var k ram.Walker
	s := vmstate.Scanner{
		Record: func(rec *vmstate.Record) error {
			in.Cuts = append(in.Cuts, int(rec.Offset))
			k.Learn(rec)
			for _, nested := range rec.Package {
				in.Cuts = append(in.Cuts, int(nested.Offset))
			}
			return nil
		},
		Live: func(_ vmstate.Header, r *qemufile.Reader) error {
			return k.Walk(r, func(rec *ram.Record) error {
				in.Cuts = append(in.Cuts, int(rec.Stream))
				return nil
			})
		},
	}
	if err := s.Stream(reader(p)); err != nil {
		t.Fatal(err)
	}
	return in
}

func reader(p []byte) *qemufile.Reader {
	r := new(qemufile.Reader)
	r.ResetBytes(p)
	return r
}

// Whatever was done to a stream, a state is read of it that is the same as itself, or an error says
// why not and a part of it is. Each of two states differs from the other in the same places, and
// neither takes more memory than the stream is long.
func TestOfADamagedStreamAStateIsReadOrAnError(t *testing.T) {
	paths, err := filepath.Glob("../testdata/qemu-7.2/*")
	if err != nil {
		t.Fatal(err)
	}
	inputs := map[string]damage.Input{"one of every kind": at(t, base().stream(t))}
	for _, path := range paths {
		switch name := filepath.Base(path); {
		case name == "README.md", strings.Contains(name, "checkpoint"), strings.Contains(name, "package"):
		default:
			inputs[name] = recorded(t, path)
		}
	}
	names := make([]string, 0, len(inputs))
	for name := range inputs {
		names = append(names, name)
	}
	slices.Sort(names)
	var other []damage.Input
	refused, n := 0, 0
	for i, name := range names {
		if testing.Short() && i%2 > 0 {
			continue // half of them
		}
		in := inputs[name]
		whole, err := read(in.Bytes, Config{Scratch: make(memoryFile)})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for how, p := range damage.Copies(uint64(i), require.Many(1, 3, 60), in, other...) {
			n++
			if !comparesWith(t, whole, p) {
				refused++
			}
			if t.Failed() {
				t.Fatalf("%s: %s", name, how)
			}
		}
		other = []damage.Input{in}
	}
	if t.Logf("%d of %d were refused", refused, n); refused == 0 || refused == n {
		t.Errorf("%d of %d were refused", refused, n)
	}
}

// comparesWith reads p, and compares it with another state. It reports whether all of p was read.
func comparesWith(t *testing.T, whole *State, p []byte) (read bool) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s, err := Read(reader(p), Config{Scratch: make(memoryFile)})
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 24<<20+60*uint64(len(p)) {
		t.Errorf("%d bytes of %d", n, len(p))
	}
	if section, header := (*vmstate.SectionError)(nil), (*qemufile.Error)(nil); err != nil && !errors.As(err, &section) && !errors.As(err, &header) &&
		!errors.Is(err, vmstate.ErrMagic) && !errors.Is(err, vmstate.ErrVersion) && !errors.Is(err, vmstate.ErrBounds) {
		t.Errorf("untyped error: %v", err)
	}
	if d := Compare(s, s); len(d) != 0 {
		t.Errorf("it differs from itself: %q", lines(d))
	}
	there, back := Compare(whole, s), Compare(s, whole)
	for i := range back {
		back[i].A, back[i].B = back[i].B, back[i].A
	}
	order := func(a, b Difference) int { return strings.Compare(a.String(), b.String()) }
	slices.SortFunc(there, order)
	slices.SortFunc(back, order)
	if diff := cmp.Diff(lines(there), lines(back)); diff != "" {
		t.Errorf("one way (-) it differs otherwise than the other (+):\n%s", diff)
	}
	if shape := CompareShape(whole, s); len(shape) > len(there) {
		t.Errorf("%d differences of shape, and %d in all", len(shape), len(there))
	}
	for _, f := range append(Load(whole, s), Load(s, whole)...) {
		if text := f.String(); strings.Contains(text, "\n") {
			t.Errorf("a finding of two lines: %q", text)
		}
	}
	return err == nil
}
