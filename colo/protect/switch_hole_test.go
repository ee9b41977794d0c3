package protect

import (
	"testing"
	"time"
)

// Nobody knows what a host has said that was granted the guest and then died: the one
// that gave the guest away does not go on with it, nor does either begin it anew.
func TestAHostThatDiesOnceItIsGrantedTheGuestTakesItAlong(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		time.Sleep(300 * time.Millisecond)
		granted := b.passes(TakingOver)
		done := make(chan error, 1)
		go func() { done <- a.job.Switchover(t.Context()) }()
		<-granted
		b.kill(false)
		b.bury()
		<-done // what it says depends on what b could still say
		a.is(Waiting)
		before := w.heard()
		time.Sleep(time.Minute)
		if s := a.job.State(); s != Waiting || !a.guest.Paused() || a.job.Gate().Open() {
			t.Errorf("the host that gave the guest away is %v", s)
		}
		b = w.boot("b", true, nil)
		b.is(Waiting)
		time.Sleep(time.Minute)
		if s := b.job.State(); s != Waiting || w.heard() != before {
			t.Errorf("the host that comes back without the guest is %v, %d frames", s, w.heard()-before)
		}
		a.halt()
		b.halt()
		// Which it does by a person's word: the generation that nobody has any more.
		a = w.boot("a", true, func(c *Config) { c.Held = 2 })
		a.is(Alone)
		a.halt()
	})
}
