package protect

import (
	"fmt"
	"testing"
	"time"
)

// A primary that was stopped, past its term, in the middle of a write goes on: the
// write waits at a gate that does not open any more, and its session, which has
// ended, for the vCPU that writes. The host follows the other one all the same.
func TestAPrimaryThatWasStoppedWhileItsGuestWritesFollows(t *testing.T) {
	for _, after := range []time.Duration{0, 2 * time.Millisecond, 7 * time.Millisecond} {
		bubble(t, fmt.Sprint(after), func(t *testing.T, w *world) {
			w.disks = true
			a, b := w.protected()
			time.Sleep(after)
			a.suspend()
			b.is(Alone)
			time.Sleep(5 * time.Second)
			a.resume()
			since := time.Now()
			b.is(Protected)
			a.is(Following)
			if took := time.Since(since); took > 5*time.Second { // of the bubble's clock
				t.Errorf("it took %v: %s", took, a.states())
			}
			b.halt()
			a.halt()
			w.clean()
		})
	}
}
