package protect

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// A host that has lost the other one, and is refused the guest, says both in words that a person
// understands.
func TestAHostThatIsRefusedTheGuestSaysInWordsHowItLostTheOther(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = 20 * time.Millisecond
		var off atomic.Bool
		a, b := w.beating(&off)
		waits := b.passes(Waiting)
		off.Store(true)
		<-waits
		off.Store(false)
		err := b.job.Query().LastError
		inWords := func(text string) bool { // whichever side was the first to notice
			return !strings.Contains(text, "colo:") && (strings.Contains(text, " (a was silent for 1s: ") ||
				strings.Contains(text, " (the connections with a have ended") || strings.Contains(text, " (a has ended the session: "))
		}
		if !errors.Is(err, failover.ErrRefused) || !inWords(err.Error()) {
			t.Errorf("%v, want a refusal, and the loss in words", err)
		}
		for line := range strings.Lines(b.reasons()) {
			if strings.Contains(line, "colo:") {
				t.Error(line)
			}
		}
		a.is(Protected)
		a.halt()
		b.halt()
	})
}

// An order whose context has ended already is not carried out: nobody waits for it.
func TestAnOrderWhoseTimeIsOverChangesNothing(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = 20 * time.Millisecond
		a, b := w.protected()
		late := errors.New("too late")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(late)
		for range 10 {
			for verb, err := range map[string]error{
				"switchover": a.job.Switchover(ctx), "migrate": a.job.Migrate(ctx), "pause": a.job.Pause(ctx, ""),
				"complete": a.job.Complete(ctx), "cancel": a.job.Cancel(ctx),
			} {
				if err != late {
					t.Errorf("%s: %v", verb, err)
				}
			}
		}
		if q := a.job.Query(); q.State != Protected || q.Generation != 1 || q.LastError != nil {
			t.Errorf("%v, generation %d, %v", q.State, q.Generation, q.LastError)
		}
		a.halt()
		b.halt()
	})
}
