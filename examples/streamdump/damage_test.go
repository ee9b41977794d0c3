package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/damage"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// records returns a stream, cut at its records and at those of its memory, as far as it can be read.
func records(p []byte) damage.Input {
	in := damage.Input{Bytes: p}
	k := ram.Walker{Detect: true}
	s := vmstate.Scanner{
		Record: func(rec *vmstate.Record) error {
			in.Cuts = append(in.Cuts, int(rec.Offset))
			return nil
		},
		Live: func(_ vmstate.Header, r *qemufile.Reader) error {
			return k.Walk(r, func(rec *ram.Record) error {
				in.Cuts = append(in.Cuts, int(rec.Stream))
				return nil
			})
		},
		Padding: true, MaxSkip: 1 << 40,
	}
	_ = s.Stream(qemufile.NewReader(bytes.NewReader(p))) // some of them have no end, or are no stream
	return in
}

// Whatever was done to a stream, the program ends with a status, and what it prints is JSON.
func TestADamagedStreamIsPrinted(t *testing.T) {
	names, err := filepath.Glob("testdata/streams/*.gz")
	if err != nil || len(names) == 0 {
		t.Fatal(err)
	}
	var other []damage.Input
	for i, name := range names {
		if testing.Short() && i%3 > 0 {
			continue // a third of them
		}
		p, err := os.ReadFile(file(t, strings.TrimSuffix(filepath.Base(name), ".gz")))
		if err != nil {
			t.Fatal(err)
		}
		if len(p) > 4<<20 {
			continue
		}
		in := records(p)
		for how, p := range damage.Copies(uint64(i), require.Many(1, 2, 20), in, other...) {
			if ends(t, p); t.Failed() {
				t.Fatalf("%s: %s", name, how)
			}
		}
		other = []damage.Input{in}
	}
}
