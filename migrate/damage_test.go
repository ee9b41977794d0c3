package migrate

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/gocolo/lockstep/internal/damage"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// records returns what a source has sent, cut at its records and pages.
func records(t testing.TB, p []byte, postcopy bool) damage.Input {
	t.Helper()
	in := damage.Input{Bytes: p}
	k := ram.Walker{Format: ram.Format{Postcopy: postcopy}}
	s := vmstate.Scanner{
		Record: func(rec *vmstate.Record) error {
			in.Cuts = append(in.Cuts, int(rec.Offset))
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
	check(t, s.Stream(qemufile.NewReader(bytes.NewReader(p))))
	return in
}

// A destination that is sent a migration that was damaged returns, and its guest runs with all its
// memory or, in postcopy, waits for it.
func TestADamagedMigrationEndsWithAGuestOrAnError(t *testing.T) {
	precopy, postcopy := records(t, record(t, false), false), records(t, record(t, true), true)
	for i, in := range []damage.Input{precopy, postcopy} {
		runsWithAllOrNot(t, in.Bytes, i == 1)
		for how, p := range damage.Copies(uint64(i), require.Many(10, 100, 1000), in, precopy, postcopy) {
			runsWithAllOrNot(t, p, i == 1)
			if t.Failed() {
				t.Fatal(how)
			}
		}
	}
}

// What a channel brings that was damaged is placed in the guest or refused, and no section has
// ended without its end.
func TestADamagedChannelEndsNoSectionEarly(t *testing.T) {
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	in := damage.Input{}
	put := func(fn func(*qemufile.Writer)) {
		in.Cuts = append(in.Cuts, b.Len())
		fn(w)
		check(t, w.Flush())
	}
	one := make([]byte, page)
	put(multifd.Init{}.Put)
	put((&multifd.Packet{Sync: true}).Put)
	put((&multifd.Packet{Block: "pc.ram", Normal: []uint64{0, page}, Zero: []uint64{2 * page}, Data: append(one, one...)}).Put)
	put((&multifd.Packet{Block: "vga.vram", Zero: []uint64{page}}).Put)
	put((&multifd.Packet{Sync: true}).Put)
	put((&multifd.Packet{Sync: true, Block: "pc.ram", Normal: []uint64{3 * page}, Data: one}).Put)
	put((&multifd.Packet{}).Put)
	in.Bytes = b.Bytes()
	if n := sections(t, in.Bytes); n != 3 {
		t.Fatalf("%d sections have ended", n)
	}
	for how, p := range damage.Copies(5, require.Many(30, 300, 5000), in) {
		if n := sections(t, p); n > lasts(p) {
			t.Fatalf("%s: %d sections have ended", how, n)
		}
	}
}

// sections returns how many sections of memory end when a destination has one channel that brings p.
func sections(t *testing.T, p []byte) (loaded int) {
	t.Helper()
	g := newGuest(t)
	var err error
	g.lazy, err = ram.NewLazy(g.blocks)
	check(t, err)
	c := Channels{Conns: []Conn{ended{bytes.NewReader(p)}}}
	v := newReceiver(context.Background(), &c, g.lazy, func(error) {})
	g.lazy.SetBarrier(v.barrier)
	eos := []byte{0, 0, 0, 0, 0, 0, 0, 0x10}
	r := qemufile.NewReader(bytes.NewReader(bytes.Repeat(eos, 5)))
	for err == nil {
		if err = g.lazy.LoadState(r, ram.Version); err == nil {
			loaded++
		}
	}
	if e := (*ram.Error)(nil); !errors.As(err, &e) {
		t.Errorf("untyped error %v", err)
	}
	_ = v.stop()
	check(t, g.lazy.Close())
	return loaded
}
