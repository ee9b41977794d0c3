//go:build unix

package sharedfile

import (
	"os"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// A host hears of a record that a person has put in the place of the one that it has seen, also of one
// with an earlier number.
func TestARecordThatWasPutBackIsAChange(t *testing.T) {
	s := open(t)
	seen := advance(t, s, failover.Record{}, 5)
	changed := make(chan failover.Record, 1)
	go func() {
		r, err := s.Changed(t.Context(), seen)
		if err != nil {
			t.Error(err)
		}
		changed <- r
	}()
	back := failover.Record{Generation: 2, Writes: 2}
	if err := os.WriteFile(s.state(back.Writes), back.Encode(), 0o644); err != nil {
		t.Fatal(err)
	}
	for n := back.Writes + 1; n <= seen.Writes; n++ {
		if err := os.Remove(s.state(n)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case r := <-changed:
		if r != back && r.Writes >= seen.Writes { // or one of those that were removed later
			t.Errorf("%+v", r)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nobody hears of it")
	}
}

// The other host may run as another user, whatever the umask of this one is.
func TestARecordCanBeReadByTheOtherHost(t *testing.T) {
	s := open(t)
	r := advance(t, s, failover.Record{}, 1)
	fi, err := os.Stat(s.state(r.Writes))
	if err != nil || fi.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
}

func TestASwapToAnotherNumberThanTheNextChangesNothing(t *testing.T) {
	s := open(t)
	r := advance(t, s, failover.Record{}, 2)
	for _, n := range []uint64{0, 1, 2, 4} {
		next := r
		next.Writes, next.Note = n, "out of turn"
		if ok, err := s.Swap(t.Context(), r, next); ok || err == nil {
			t.Errorf("to state %d: %v, %v", n, ok, err)
		}
	}
	if got, err := s.Load(t.Context()); got != r || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
}
