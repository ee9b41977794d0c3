package failover

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// Two goroutines of a host ask at once, and the person is heard by one of them: the other takes its place,
// or comes later. The yes is for both.
func TestAPersonIsNotAskedAgainForWhatIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewManual(Record{})
		k, err := NewKeeper(KeeperConfig{Arbiter: m, Holder: "a", Term: -1})
		if err != nil {
			t.Fatal(err)
		}
		var got [2]uint64
		done := make(chan error, 2)
		for i := range got {
			go func() { // awaited below
				var err error
				got[i], err = k.Acquire(t.Context(), 2)
				done <- err
			}()
			synctest.Wait()
		}
		if err := m.Grant(); err != nil {
			t.Fatal(err)
		}
		for range got {
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(time.Minute):
				t.Fatal("a question is left without an answer")
			}
		}
		if got != [2]uint64{3, 3} {
			t.Errorf("generations %d", got)
		}

		k.Gate().Shut()
		if g, err := k.Acquire(t.Context(), 2); g != 3 || err != nil || !k.Gate().Open() {
			t.Errorf("generation %d, %v; the gate is open: %v", g, err, k.Gate().Open())
		}

		// What is not held any more is for the person to say again.
		k.Drop()
		go k.Acquire(t.Context(), 2) // ends with the test
		synctest.Wait()
		if c, ok := m.Waiting(); !ok || c.After != 2 {
			t.Errorf("nobody is asked: %+v", c)
		}
	})
}

// A late is an arbiter that hears the first question when hears is closed.
type late struct {
	Arbiter
	hears chan struct{}
	first bool
}

func (a *late) Acquire(ctx context.Context, c Claim) (Grant, error) {
	if a.first {
		a.first = false
		<-a.hears
	}
	return a.Arbiter.Acquire(ctx, c)
}

// The same, of a question that is heard after the person has said yes to the other one.
func TestAPersonIsNotAskedWhatWasAnsweredMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewManual(Record{})
		a := &late{m, make(chan struct{}), true}
		k, err := NewKeeper(KeeperConfig{Arbiter: a, Holder: "a", Term: -1})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan uint64, 2)
		for range 2 {
			go func() { // awaited below
				g, err := k.Acquire(t.Context(), 2)
				if err != nil && t.Context().Err() == nil {
					t.Error(err)
				}
				done <- g
			}()
			synctest.Wait()
		}
		if err := m.Grant(); err != nil {
			t.Fatal(err)
		}
		if g := <-done; g != 3 {
			t.Errorf("generation %d", g)
		}
		close(a.hears)
		select {
		case g := <-done:
			if g != 3 {
				t.Errorf("generation %d by the same yes", g)
			}
		case <-time.After(time.Minute):
			t.Fatal("a question is left without an answer")
		}
	})
}
