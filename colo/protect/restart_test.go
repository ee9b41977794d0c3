package protect

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// diesUnrecorded has a host die when it is about to record on its disk that it has been granted
// that generation.
func (s *site) diesUnrecorded(h *host, generation uint64) {
	w := s.wear[h.name]
	dies := func() {
		if r, err := s.store.Load(s.t.Context()); err == nil && r.Generation == generation {
			w.before.Store(nil)
			w.out.Store(true)
			h.killed.Store(true)
			h.gone.Store(true)
		}
	}
	w.before.Store(&dies)
}

// unrecorded returns a site where host a was granted generation 2, by a pause, and died before its
// disk said so; b died too.
func unrecorded(t *testing.T) *site {
	s := newSite(t, false)
	s.wear = map[string]*wear{}
	b := s.start("b", false, nil)
	a := s.start("a", true, nil)
	a.is(Protected)
	b.is(Following)
	s.write("a", "of a")
	s.diesUnrecorded(a, 2)
	a.job.Pause(t.Context(), "for the night") // nobody hears what it returns
	s.powerCut(a, b)
	s.wear["a"].out.Store(false)
	r, err := s.store.Load(t.Context())
	if held := s.heldBy("a"); err != nil || r.Generation != 2 || r.Holder != "a" || held != 1 {
		t.Fatalf("%+v, %v; the disk holds %d", r, err, held)
	}
	return s
}

// heldBy returns the generation that a host's disk says.
func (s *site) heldBy(name string) uint64 {
	m, err := s.wear[name].image(s.t, &image{b: make([]byte, diskSize)}).(kept).Metadata()
	if err != nil {
		s.t.Fatal(err)
	}
	return m.Held()
}

// The copies of both hosts are of the generation before the granted one, and refused. But the
// arbiter's record names the host that has the newest.
func TestAHostThatDiesBetweenAGrantAndItsRecordStartsTheGuestAgain(t *testing.T) {
	t.Parallel()
	for _, start := range []bool{false, true} {
		for name, deaths := range map[string]int{"once": 1, "twice": 2} {
			t.Run(map[bool]string{false: "by itself ", true: "with Start "}[start]+name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					s := unrecorded(t)
					a := s.start("a", start, nil)
					want := uint64(3)
					if deaths > 1 {
						s.diesUnrecorded(a, 3)
						s.until(func() bool { return a.gone.Load() })
						s.powerCut(a)
						s.wear["a"].out.Store(false)
						a = s.start("a", start, nil)
						want++
					}
					b := s.start("b", false, nil)
					a.is(Protected)
					b.is(Following)
					if got, g := s.read("a"), a.job.Query().Generation; got != "of a" || g != want {
						t.Errorf("the disk says %q, in generation %d, want %d", got, g, want)
					}
					a.halt()
					b.halt()
				})
			})
		}
	}
}

// The one that was granted the guest may still act for it until its term is over.
func TestAHostThatStartsItsGuestAgainWaitsForTheGrantOfTheProcessBefore(t *testing.T) {
	t.Parallel()
	for _, start := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := unrecorded(t)
			r, err := s.store.Load(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			r.Term = 20 * time.Second
			s.rewrite(r)
			began := time.Now()
			a := s.start("a", start, nil)
			a.is(Alone)
			if waited := time.Since(began); waited < r.Term {
				t.Errorf("it has the guest after %v", waited)
			}
			a.halt()
		})
	}
}

// Whom the record names otherwise, or not, may have a newer guest, or may have had one.
func TestAHostStartsNoGuestFromDisksThatTheRecordDoesNotProveTheLast(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*failover.Record){
		"another host was granted the generation": func(r *failover.Record) { r.Holder = "b" },
		"the disks are two generations old":       func(r *failover.Record) { r.Generation++; r.Writes++ },
		"the guest was given back":                func(r *failover.Record) { *r = ofNobody(r.Generation) },
	} {
		for _, start := range []bool{false, true} {
			t.Run(map[bool]string{false: "", true: "with Start, "}[start]+name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					s := unrecorded(t)
					r, err := s.store.Load(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					change(&r)
					s.rewrite(r)
					a := s.start("a", start, nil)
					time.Sleep(time.Minute)
					if st := a.job.State(); st != Waiting || s.heldBy("a") != 1 {
						t.Errorf("it is %v, and its disk holds %d", st, s.heldBy("a"))
					}
					a.halt()
				})
			})
		}
	}
}

// A guest that was saved goes on once: what Held says is no copy over which the guest has written.
func TestAGuestOfAFileIsNotStartedAgainByTheHostThatHasStartedItBefore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := unrecorded(t)
		a := s.start("a", true, func(c *Config) { c.Held = 1 })
		time.Sleep(time.Minute)
		if i := a.job.Query(); i.State != Waiting || !errors.Is(i.LastError, failover.ErrRefused) {
			t.Errorf("it is %v: %v", i.State, i.LastError)
		}
		a.halt()
	})
}

// The rule itself, of records that no arbiter here writes too.
func TestOnlyTheNextGenerationOfThisHostIsProvedToBeTheLast(t *testing.T) {
	j := &Job{cfg: Config{Host: "a"}}
	for _, c := range []struct {
		record failover.Record
		want   bool
	}{
		{failover.Record{Generation: 8, Holder: "a", Token: "t"}, true},
		{failover.Record{Generation: 7, Holder: "a", Token: "t"}, false},
		{failover.Record{Generation: 9, Holder: "a", Token: "t"}, false},
		{failover.Record{Generation: 8, Holder: "b", Token: "t"}, false},
		{failover.Record{Generation: 8, Holder: "a"}, false},
		{failover.Record{}, false},
	} {
		if got := j.wasOurs(c.record, 7); got != c.want {
			t.Errorf("%+v over disks of generation 7: %v", c.record, got)
		}
	}
}

// A host that has its guest's own disks does not claim the guest at once: another one, on which the guest
// is alive, has its chance first.
func TestAHostStartsItsGuestFromItsDisksWhenNobodyElseHasClaimedIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, false)
		a := s.start("a", true, nil)
		a.is(Alone)
		s.write("a", "of a")
		a.halt() // it gives the guest back, so that the arbiter makes nobody wait
		s.close("a")
		begun := time.Now()
		a = s.start("a", false, nil)
		a.is(Alone)
		if d, least := time.Since(begun), a.job.cfg.Term+a.job.cfg.Lost; d < least || d > least+time.Second {
			t.Errorf("it has started the guest after %v, where others have %v", d, least)
		}
		if g := a.job.Query().Generation; g != 2 {
			t.Errorf("generation %d", g)
		}
		a.halt()
	})
}
