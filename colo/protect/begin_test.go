package protect

import (
	"errors"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/failover"
)

// Start for a guest that has run before needs its copy: whoever starts a program a second
// time learns what it lacks.
func TestAHostThatStartsAGuestAnewWithoutACopyIsToldWhatItLacks(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a := w.boot("a", true, nil)
		a.is(Alone)
		a.halt()
		a = w.boot("a", true, nil)
		a.is(Waiting)
		const want = "the guest has run before, and nothing says that its copy is here"
		if i := a.job.Query(); !errors.Is(i.LastError, failover.ErrRefused) || !strings.Contains(i.LastError.Error(), want) || !strings.Contains(i.Reason, want) {
			t.Errorf("reason %q, error %v, want %q", i.Reason, i.LastError, want)
		}
		a.halt()
	})
}
