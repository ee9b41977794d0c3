package protect

import (
	"testing"
	"testing/synctest"
	"time"
)

// A guest that is about to be handed over stands still on the other host too when that has committed the
// last checkpoint: it would be paused once more otherwise, while it runs nowhere. Where what both
// guests say is compared it runs up to then.
func TestAGuestThatIsHandedOverIsNotPausedOnceMore(t *testing.T) {
	for name, compared := range map[string]bool{"output waits": false, "output is compared": true} {
		bubble(t, name, func(t *testing.T, w *world) {
			w.guest.Interval, w.compared, w.heeds = 10*time.Millisecond, compared, []string{}
			if compared {
				w.guest.TSCPerMille = 1
			}
			a, b := w.protected()
			time.Sleep(250 * time.Millisecond)
			a.slow.Store(int64(400 * time.Millisecond)) // of the release, which comes after the last checkpoint
			done := make(chan error, 1)
			go func() { done <- a.job.Switchover(t.Context()) }()
			a.is(SwitchingOver)
			for stood := 0; stood < 10; {
				time.Sleep(10 * time.Millisecond)
				if stood++; !a.guest.Paused() {
					stood = 0
				}
			}
			synctest.Wait()
			if b.job.State() != Following || !a.guest.Paused() {
				t.Fatalf("too late: b is %v", b.job.State())
			}
			if b.guest.Paused() == compared {
				t.Errorf("the guest on the host that takes it stands still: %v", !compared)
			}
			a.slow.Store(0)
			if err := <-done; err != nil {
				t.Error(err)
			}
			b.is(Protected)
			w.hearsMore()
			b.halt()
			a.halt()
		})
	}
}

// A guest that was left standing for a switchover runs on in a takeover, if its primary dies before the
// last checkpoint or after it.
func TestAGuestThatWasLeftStandingForASwitchoverRunsInATakeover(t *testing.T) {
	for name, after := range map[string]time.Duration{"at once": 0, "later": 150 * time.Millisecond, "when it is released": 450 * time.Millisecond} {
		bubble(t, name, func(t *testing.T, w *world) {
			w.guest.Interval, w.heeds = 10*time.Millisecond, []string{}
			a, b := w.protected()
			time.Sleep(250 * time.Millisecond)
			a.slow.Store(int64(400 * time.Millisecond))
			done := make(chan error, 1)
			go func() { done <- a.job.Switchover(t.Context()) }()
			for range 200 { // the question before the last checkpoint is answered late as well
				if time.Sleep(10 * time.Millisecond); a.guest.Paused() {
					break
				}
			}
			time.Sleep(after)
			a.kill(true)
			b.is(Alone)
			w.hearsMore()
			<-done
			a.bury()
			b.halt()
		})
	}
}
