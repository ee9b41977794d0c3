package protect

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/replication"
)

// A host was granted the guest and died, and what it has said nobody knows. Whichever
// of the two a person starts then, its disks must say that they are of the generation
// that was granted. Those of the host that was granted the guest do; on the one that
// gave it away the person writes that on them.
func TestAGuestThatDiedWithTheHostItWasGivenToIsStartedFromEitherHostsDisks(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a", "b"} {
		t.Run("on "+name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, false)
				b := s.start("b", false, nil)
				a := s.start("a", true, nil)
				a.is(Protected)
				b.is(Following)
				s.write("a", "of a")
				b.on(TakingOver, func() {
					b.killed.Store(true)
					b.gone.Store(true)
					s.f.part("a", "b", false)
				})
				if err := a.job.Switchover(t.Context()); !errors.Is(err, failover.ErrRefused) {
					t.Fatal(err)
				}
				a.is(Waiting)
				s.powerCut(b, a)
				r, err := s.store.Load(t.Context())
				if err != nil || r.Generation != 2 || r.Holder != "b" {
					t.Fatalf("%+v, %v", r, err)
				}
				if name == "a" {
					for held, want := range map[uint64]error{0: failover.ErrRefused, 2: errCopy} {
						a = s.start("a", true, func(c *Config) { c.Held = held })
						a.is(Waiting)
						if err := a.job.Query().LastError; !errors.Is(err, want) {
							t.Errorf("with Held %d: %v", held, err)
						}
						a.halt()
						s.close("a")
					}
					f, err := replication.OpenFile(s.image("a"))
					if err != nil {
						t.Fatal(err)
					}
					m, err := f.Metadata()
					if err == nil {
						err = m.Hold(r.Generation)
					}
					if err := errors.Join(err, f.Close()); err != nil {
						t.Fatal(err)
					}
				}
				h := s.start(name, true, nil)
				h.is(Alone)
				if got := s.read(name); got != "of a" {
					t.Errorf("the disk says %q", got)
				}
				other := s.start(map[string]string{"a": "b", "b": "a"}[name], false, nil)
				h.is(Protected)
				other.halt()
				h.halt()
			})
		})
	}
}
