package protect

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

// rewrite has the arbiter's record be another one, as a person can who reaches the place where it is.
func (w *world) rewrite(r failover.Record) {
	w.t.Helper()
	for done := false; !done; { // whoever has the guest may renew meanwhile
		was, err := w.store.Load(w.t.Context())
		if err == nil {
			done, err = w.store.Swap(w.t.Context(), was, r)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// ofNobody is the record that a person writes who knows the generation.
func ofNobody(generation uint64) failover.Record {
	return failover.Record{Generation: generation, Writes: generation}
}

// A pair whose arbiter has lost its record, and is not reached therefore, goes on; and keeps its guest
// when a person gives that to the primary, and then writes the record of the generation before.
func TestAPairKeepsItsGuestWhenThePersonWritesTheRecordAnewThatWasLost(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = 10 * time.Millisecond
		a, b := w.protected()
		a.noArbiter.Store(true)
		b.noArbiter.Store(true)
		time.Sleep(3 * w.term)
		before := a.job.Query().Generation
		if err := a.job.Fenced(); err != nil {
			t.Fatal(err)
		}
		w.until(func() bool {
			i := b.job.Query()
			return a.job.State() == Protected && i.State == Following && i.Generation == before+1
		})
		w.rewrite(failover.Record{})
		w.rewrite(ofNobody(before))
		a.noArbiter.Store(false)
		b.noArbiter.Store(false)
		w.until(func() bool {
			r, _ := w.store.Load(t.Context())
			return r.Generation == before+1 && r.Holder == "a"
		})
		w.until(func() bool { // the person is told that it was granted
			all := said[event.Arbitration](a)
			return len(all) > 1 && all[0].Answer == event.ArbiterUnreachable && all[len(all)-1].Answer == event.ArbiterGranted
		})
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Error(err)
		}
		b.is(Protected)
		w.hearsMore()
		a.halt()
		b.halt()
	})
}

// A host whose disks are of a generation that the record has lost starts no guest, whatever was
// configured, until a person has written the record anew.
func TestDisksOfAGenerationThatTheRecordHasLostStartAGuestWhenItIsWrittenAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, false)
		generation := s.ranOnA()

		s.rewrite(failover.Record{})
		a := s.start("a", true, nil)
		a.is(Waiting)
		if err := a.job.Query().LastError; !errors.Is(err, failover.ErrRefused) {
			t.Errorf("the record is lost: %v", err)
		}
		a.halt()
		s.close("a")

		s.rewrite(ofNobody(generation))
		a = s.start("a", true, nil)
		a.is(Alone)
		if g := a.job.Query().Generation; g != generation+1 {
			t.Errorf("generation %d, want the one after %d", g, generation)
		}
		a.halt()
		s.close("a")
		s.clean()
	})
}
