package vmstate

import (
	"bytes"
	"errors"
	"runtime"
	"testing"

	"github.com/gocolo/lockstep/internal/damage"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
)

// records returns a stream, cut at its records.
func records(t testing.TB, p []byte, live *rawRAM) damage.Input {
	t.Helper()
	doc, err := ReadDocument(reader(p), live)
	if err != nil {
		t.Fatal(err)
	}
	in := damage.Input{Bytes: p}
	for _, rec := range doc.Records {
		in.Cuts = append(in.Cuts, int(rec.Offset))
		for _, nested := range rec.Package {
			in.Cuts = append(in.Cuts, int(nested.Offset))
		}
	}
	return in
}

// allocated returns how many bytes fn takes in all, and so how many at once, at most.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// Whatever was done to a stream of QEMU, a document of it is written as it was read, or an error
// says where it cannot be read, and it takes no more memory than the stream is long.
func TestADamagedStreamComesBackOrIsRefused(t *testing.T) {
	names := whole(t)
	var other []damage.Input
	for i, name := range names {
		if testing.Short() && i%2 > 0 {
			continue // half of them
		}
		in := records(t, vector(t, name), decoder(name))
		comesBackOrIsRefused(t, in.Bytes, decoder(name))
		for how, p := range damage.Copies(uint64(i), require.Many(1, 5, 100), in, other...) {
			comesBackOrIsRefused(t, p, decoder(name))
			if n := allocated(func() { ReadDocument(reader(p), decoder(name)) }); n > 8<<20+40*uint64(len(p)) {
				t.Errorf("%s: %d bytes of %d", how, n, len(p))
			}
			if t.Failed() {
				t.Fatalf("%s: %s", name, how)
			}
		}
		other = []damage.Input{in}
	}
}

// Whatever was done to the state of all kinds of fields, it is loaded whole or not at all.
func TestADamagedStateIsLoadedOrUndone(t *testing.T) {
	var reg Registry
	if err := errors.Join(reg.Register(allEntry, full()), reg.Register(Entry{Name: "c", Version: 1}, &counter{N: 7})); err != nil {
		t.Fatal(err)
	}
	state := saved(t, &reg)
	live := hexBytes(t, `01 00000002 03 "ram" 00000000 00000004 01 7e 00000002 02 00000002 01 7e 00000002 03 00000002 01 7e 00000002`)
	packaged := written(t, func(w *qemufile.Writer) {
		PutPackaged(w, append(written(t, func(w *qemufile.Writer) { PutCommand(w, PostcopyListen()) }), state...))
		PutEOF(w)
	})
	second := bytes.Index(state, hexBytes(t, `04 00000001 01 "c"`))
	in := damage.Input{Bytes: state, Cuts: []int{0, second, len(state) - 1}}
	behind := damage.Input{Bytes: append(live, state...), Cuts: []int{0, 22, 33, 44, 44 + second, 44 + len(state) - 1}}
	inside := damage.Input{Bytes: packaged, Cuts: []int{0, 9, 14, 14 + second, 14 + len(state) - 1, len(packaged) - 1}}
	for i, in := range []damage.Input{in, behind, inside} {
		loadsOrIsUndone(t, in.Bytes)
		for how, p := range damage.Copies(uint64(i), require.Many(30, 200, 5000), in, in, behind, inside) {
			loadsOrIsUndone(t, p)
			reg, _, _ := fuzzed(t)
			if n := allocated(func() { _ = reg.Load(reader(p), nil) }); n > 1<<20 {
				t.Errorf("%d bytes of %d", n, len(p))
			}
			if t.Failed() {
				t.Fatal(how)
			}
		}
	}
}
