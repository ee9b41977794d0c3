package protect

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// Nobody knows what a host has said that was granted the guest and then died: the one
// that gave the guest away does not go on with it, nor does either begin it anew.
func TestAHostThatDiesOnceItIsGrantedTheGuestTakesItAlong(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		time.Sleep(300 * time.Millisecond)
		b.on(TakingOver, func() { // before it can say that it runs the guest, which a would follow
			b.killed.Store(true)
			b.gone.Store(true)
			w.f.part("a", "b", false)
		})
		if err := a.job.Switchover(t.Context()); err == nil {
			t.Error("no error")
		}
		b.kill(false)
		b.bury()
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

// Whoever switches a host off because its guest is elsewhere must not be told so of a
// guest that runs nowhere.
func TestAVerbThatGaveTheGuestToAHostThatDiedIsAnError(t *testing.T) {
	for name, verb := range map[string]func(*Job, context.Context) error{"switchover": (*Job).Switchover, "migrate": (*Job).Migrate} {
		for _, silent := range []bool{false, true} {
			bubble(t, name+map[bool]string{true: ", silently"}[silent], func(t *testing.T, w *world) {
				a, b := w.protected()
				b.on(TakingOver, func() { // before it can say anything
					b.killed.Store(true)
					b.gone.Store(true)
					w.f.part("a", "b", silent)
				})
				err := verb(a.job, t.Context())
				b.kill(silent)
				b.bury()
				if !errors.Is(err, failover.ErrRefused) || !strings.Contains(err.Error(), name+": this host is waiting: the other side was lost") {
					t.Errorf("%v", err)
				}
				if s := a.job.State(); s != Waiting || !a.guest.Paused() || a.ended() {
					t.Errorf("a is %v", s)
				}
				if n := a.job.Query().Stats.Switchovers; n != 0 {
					t.Errorf("%d switchovers", n)
				}
				a.halt()
			})
		}
	}
}

func TestASwitchoverThatIsGivenUpSaysThatTheGuestRunsHere(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		ctx, cancel := context.WithCancel(t.Context())
		a.on(SwitchingOver, cancel)
		err := a.job.Switchover(ctx)
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "switchover: the guest runs on here: ") {
			t.Errorf("%v", err)
		}
		a.is(Protected)
		a.halt()
		b.halt()
	})
}
