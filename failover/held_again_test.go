package failover

import (
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
