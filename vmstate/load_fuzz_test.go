package vmstate

import (
	"bytes"
	"errors"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/gocolo/lockstep/qemufile"
)

// fuzzed is a registry with a device of every kind, a small one, and a live one.
func fuzzed(t testing.TB) (*Registry, *everything, *counter) {
	reg := &Registry{MaxPackaged: 1 << 16}
	d, c := empty(), &counter{N: 1}
	if err := errors.Join(
		reg.Register(allEntry, d),
		reg.Register(Entry{Name: "c", Version: 1}, c),
		reg.RegisterLive(Entry{Name: "ram", Version: 4}, nil, &live{}),
	); err != nil {
		t.Fatal(err)
	}
	return reg, d, c
}

// FuzzLoad gives a stream to a registry: if it loads, the devices save to
// something that loads to the same; if not, they are as before.
func FuzzLoad(f *testing.F) {
	var reg Registry
	if err := errors.Join(reg.Register(allEntry, full()), reg.Register(Entry{Name: "c", Version: 1}, &counter{N: 7})); err != nil {
		f.Fatal(err)
	}
	state := saved(f, &reg)
	f.Add(state)
	f.Add(append(hexBytes(f, `01 00000002 03 "ram" 00000000 00000004 01 7e 00000002 02 00000002 01 7e 00000002 03 00000002 01 7e 00000002`), state...))
	f.Add(written(f, func(w *qemufile.Writer) {
		PutPackaged(w, append(written(f, func(w *qemufile.Writer) { PutCommand(w, PostcopyListen()) }), state...))
		PutEOF(w)
	}))
	f.Fuzz(func(t *testing.T, p []byte) {
		reg, d, c := fuzzed(t)
		err := reg.Load(reader(p), nil)
		if err != nil && !errors.Is(err, ErrPostcopyRun) {
			var se *SectionError
			if !errors.As(err, &se) || se.Offset > int64(len(p)) {
				t.Fatalf("error of unknown kind: %v", err)
			}
			if diff := cmp.Diff(empty(), d); diff != "" || c.N != 1 {
				t.Fatalf("a failed load left %d and\n%s", c.N, diff)
			}
			return
		}
		once := saved(t, reg)
		again, d2, c2 := fuzzed(t)
		// What was loaded may have lowered its own limit.
		d2.Limit = max(d2.Limit, d.Limit)
		if err := again.LoadDevices(once, nil); err != nil {
			t.Fatalf("saved, it does not load: %v", err)
		}
		if diff := cmp.Diff(d, d2, cmpopts.EquateEmpty()); diff != "" || c.N != c2.N {
			t.Fatalf("saved and loaded, it differs: %s", diff)
		}
		if twice := saved(t, again); !bytes.Equal(once, twice) {
			t.Fatal("saved again, it differs")
		}
		reg.Rollback()
		if diff := cmp.Diff(empty(), d); diff != "" || c.N != 1 {
			t.Fatalf("rolled back, it differs: %s", diff)
		}
	})
}

func TestHostileLengthsTakeLittleMemory(t *testing.T) {
	reg, _, _ := fuzzed(t)
	reg.MaxPackaged = 0
	for why, hex := range map[string]string{
		"a package of 256 MiB that does not come": "08 0007 0004 10000000 04",
		"a package of 4 GiB":                      "08 0007 0004 ffffffff 04",
		"a list that does not end":                `04 00000000 03 "all" 00000000 00000002`,
	} {
		stream := hexBytes(t, hex)
		r := reader(stream)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if reg.Load(r, nil) == nil {
			t.Errorf("%s is loaded", why)
		}
		runtime.ReadMemStats(&after)
		allocated := after.TotalAlloc - before.TotalAlloc
		if allocated > 1<<20 {
			t.Errorf("%s: %d bytes", why, allocated)
		}
	}
}
