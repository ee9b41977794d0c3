package ram

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

func TestPagePathsAllocateNothing(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		const n = 600
		r := rand.New(rand.NewPCG(1, 9))
		for _, x := range []struct {
			name string
			cfg  SaverConfig
		}{{"plain", SaverConfig{}}, {"differences", SaverConfig{XBZRLE: n * PageSize / 2}}} {
			t.Run(x.name, func(t *testing.T) {
				prim := newGuest(t, pages(t, "ram", n), pages(t, "vga", 8))
				sec := prim.twin(t)
				s, c := NewSaver(prim.blocks, prim, x.cfg), k.cache(t, sec, CacheConfig{})
				l := newLink(t)
				l.sync(s, c)
				data := randomPage(r)
				touch := func() {
					data[0]++
					for i := range 200 {
						if i%10 != 0 {
							prim.write(0, i*PageSize, data...)
						} else {
							prim.dirty["ram"].Set(i + 300) // zeros
						}
					}
					prim.write(1, 0, data...)
					for i := range 20 {
						if !c.KeepsCopy() && i%10 == 0 {
							continue // the primary's guest does not write these
						}
						sec.write(0, i*3*PageSize, data[:5]...)
					}
				}
				w := qemufile.NewWriter(io.Discard)
				want := func(what string, got float64) {
					t.Helper()
					if got != 0 {
						t.Errorf("%s: %v allocations", what, got)
					}
				}
				want("iterate", testing.AllocsPerRun(40, func() {
					touch()
					s.Pending(true)
					if _, err := s.SaveIterate(w); err != nil {
						t.Fatal(err)
					}
				}))
				want("complete from the guest", testing.AllocsPerRun(40, func() {
					touch()
					if err := s.SaveComplete(w); err != nil {
						t.Fatal(err)
					}
				}))
				want("capture and complete", testing.AllocsPerRun(40, func() {
					touch()
					if !capture(t, s) {
						t.Fatal("did not fit")
					}
					if err := s.SaveComplete(w); err != nil {
						t.Fatal(err)
					}
				}))
				touch()
				in := body(t, func(w *qemufile.Writer) {
					if err := s.SaveComplete(w); err != nil {
						t.Fatal(err)
					}
				})
				if x.cfg.XBZRLE > 0 {
					return // deltas do not apply twice
				}
				var src bytes.Reader
				rd := qemufile.NewReader(&src)
				want("load and flush", testing.AllocsPerRun(40, func() {
					touch()
					src.Reset(in)
					rd.Reset(&src)
					if err := c.LoadState(rd, Version); err != nil {
						t.Fatal(err)
					}
					if err := c.Flush(); err != nil {
						t.Fatal(err)
					}
				}))
			})
		}
	})
}
