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

// fuzzed returns a registry with a device of every kind, a small one, and a live one.
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

// FuzzLoad gives anything to a registry.
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
	for _, x := range badStates(f) {
		f.Add(x)
	}
	f.Fuzz(loadsOrIsUndone)
}

// loadsOrIsUndone gives a stream to a registry: if it loads, the devices save to
// something that loads to the same; if not, they are as before.
func loadsOrIsUndone(t *testing.T, p []byte) {
	t.Helper()
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
}

// FuzzState cuts the device state of a checkpoint with the description of the
// initial migration: what is cut is put together again to the same bytes.
func FuzzState(f *testing.F) {
	initial, err := ReadDocument(reader(vector(f, "colo_none_1M_initial.bin")), &rawRAM{})
	if err != nil {
		f.Fatal(err)
	}
	checkpoint := vector(f, "colo_none_1M_checkpoint1.bin")
	f.Add(checkpoint[len(checkpoint)-0xb7:])
	for _, x := range badStates(f) {
		f.Add(x)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		again := written(t, func(w *qemufile.Writer) {
			s := Scanner{Devices: initial.VMDesc, Record: func(rec *Record) error {
				rec.Put(w)
				if rec.Type == SectionFull && rec.Desc != nil {
					encodesWhatItDecodes(t, rec)
				}
				return nil
			}}
			err = s.State(p, 0)
		})
		var se *SectionError
		switch {
		case err == nil && !bytes.Equal(again, p):
			t.Fatalf("%x becomes %x", p, again)
		case err != nil && !errors.As(err, &se):
			t.Fatalf("error of unknown kind: %v", err)
		case err != nil && !bytes.HasPrefix(p, again):
			t.Fatalf("before the error %x becomes %x", p, again)
		}
	})
}

// badStates returns device states of the classes of input that hurt readers.
func badStates(t testing.TB) map[string][]byte {
	var reg Registry
	if err := errors.Join(reg.Register(allEntry, full()), reg.Register(Entry{Name: "c", Version: 1}, &counter{N: 7})); err != nil {
		t.Fatal(err)
	}
	state := saved(t, &reg)
	// with replaces bytes that occur once.
	with := func(old, fresh string) []byte {
		o := hexBytes(t, old)
		if bytes.Count(state, o) != 1 {
			t.Fatalf("%s is there %d times", old, bytes.Count(state, o))
		}
		return bytes.Replace(state, o, hexBytes(t, fresh), 1)
	}
	const count = "0102030405 000000 02 0007 0008"
	return map[string][]byte{
		"a count above the capacity":               with(count, "0102030405 000000 ff 0007 0008"),
		"an index beyond the length":               with(count, "0102030405 000000 05 0007 0008"),
		"a length of 4 GiB":                        with(`00000003 "abc"`, `ffffffff "abc"`),
		"a length that is negative when signed":    with(`00000003 "abc"`, `80000003 "abc"`),
		"a limit below zero":                       with("ffffffff 00000005 ffffffff", "ffffffff fffffffb ffffffff"),
		"a list that goes on":                      with("01 0001 0001 05", "01 0001 0001 01"),
		"a tree of another count":                  with("00000001 01 0009 0009", "ffffffff 01 0009 0009"),
		"a pointer where there is none":            with("30 0007 0008 30", "31 0007 0008 30"),
		"an unknown subsection":                    with(`05 0b "all/latched"`, `05 0b "all/lotched"`),
		"a foreign subsection":                     with(`05 0b "all/latched"`, `05 0b "xxx/latched"`),
		"a subsection with the prefix alone":       with(`05 0b "all/latched"`, `05 03 "all"`),
		"sections that look like EOF":              append(make([]byte, 8), state...),
		"a body that looks like EOF and a footer":  with("00000007 7e 00000001", "00000000 00 7e 00000001"),
		"a package of 4 GiB":                       append(hexBytes(t, "08 0007 0004 ffffffff"), state...),
		"a package that says less than it has":     append(hexBytes(t, "08 0007 0004 00000001"), state...),
		"a discard whose ranges overflow":          append(hexBytes(t, `08 0006 0016 00 03 "ram" 00 ffffffffffffff00 0000000000000200`), state...),
		"an id of another section in the footer":   with("00000007 7e 00000001", "00000007 7e 00000000"),
		"a section id that is taken":               with(`04 00000001 01 "c"`, `04 00000000 01 "c"`),
		"a version that is a negative number":      with(`01 "c" 00000000 00000001`, `01 "c" 00000000 ffffffff`),
		"an instance that is a negative number":    with(`01 "c" 00000000 00000001`, `01 "c" ffffffff 00000001`),
		"a name that says it is longer than it is": with(`04 00000001 01 "c"`, `04 00000001 ff "c"`),
	}
}

func TestBadStatesAreRefusedAndUndone(t *testing.T) {
	for why, x := range badStates(t) {
		reg, d, c := fuzzed(t)
		var se *SectionError
		// What looks like EOF is one, and the rest is behind the end.
		if err := reg.LoadDevices(x, nil); !errors.As(err, &se) {
			t.Errorf("%s: %v", why, err)
		}
		if diff := cmp.Diff(empty(), d); diff != "" || c.N != 1 {
			t.Errorf("%s: %d is left and\n%s", why, c.N, diff)
		}
	}
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
