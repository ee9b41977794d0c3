package protect

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/replication"
)

// A secondary that is granted the guest and dies before its disk says so may have run it: its disk says the
// same if it could not record the generation. So neither host starts the guest by itself, until a person
// who knows better records the generation on the disks of the first primary.
func TestAPersonDecidesWhereASecondaryDiesBetweenItsGrantAndItsRecord(t *testing.T) {
	t.Parallel()
	for _, start := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := newSite(t, false)
			s.wear = map[string]*wear{}
			b := s.start("b", false, nil)
			a := s.start("a", true, nil)
			a.is(Protected)
			b.is(Following)
			s.write("a", "of a")
			s.diesUnrecorded(b, 2)
			a.kill(false)
			s.until(func() bool { return b.gone.Load() })
			s.powerCut(a, b)
			s.wear["b"].out.Store(false)
			if r, err := s.store.Load(t.Context()); err != nil || r.Generation != 2 || r.Holder != "b" || s.heldBy("a") != 1 || s.heldBy("b") != 1 {
				t.Fatalf("%+v, %v; the disks hold %d and %d", r, err, s.heldBy("a"), s.heldBy("b"))
			}

			a = s.start("a", start, nil)
			b = s.start("b", start, nil)
			time.Sleep(time.Minute)
			if one, two := a.job.State(), b.job.State(); one != Waiting || two != Waiting {
				t.Errorf("with Start %v the first primary is %v, the host that was granted the guest %v", start, one, two)
			}
			a.halt()
			b.halt()
			s.close("a")
			s.close("b")

			m, err := s.wear["a"].image(t, &image{b: make([]byte, diskSize)}).(kept).Metadata()
			if err != nil {
				t.Fatal(err)
			}
			if id := m.Identity(); id.State != replication.CopyClean { // or diskreplica would refuse it
				t.Errorf("the disk of the first primary is %v", id)
			}
			if err := m.Hold(2); err != nil {
				t.Fatal(err)
			}
			a = s.start("a", true, nil)
			b = s.start("b", false, nil)
			a.is(Protected)
			b.is(Following)
			if got, g := s.read("a"), a.job.Query().Generation; got != "of a" || g != 3 {
				t.Errorf("the disk says %q, in generation %d", got, g)
			}
			a.halt()
			b.halt()
		})
	}
}
