package protect

import (
	"context"
	"strings"
	"testing"
	"time"
)

// lateNIC takes its time to say that all has left, in a switchover.
type lateNIC struct {
	paced
	late time.Duration
}

func (n lateNIC) Drain(ctx context.Context) error {
	time.Sleep(n.late)
	return n.paced.Drain(ctx)
}

// The host that is to take the guest fails in the last checkpoint, half way, and says so while this one waits for
// its last output to leave, or when it has given the guest up. Nobody else can have the guest then: it goes on
// here, may act, and is protected again when that host is back.
func TestAGuestWhoseLastCheckpointTearsTheOtherHostGoesOnWhereItRan(t *testing.T) {
	for name, late := range map[string]time.Duration{"while the output leaves": time.Second, "when it is given up": 0} {
		for heeds, hosts := range map[string][]string{"": nil, ", by a release": {}} {
			bubble(t, name+heeds, func(t *testing.T, w *world) {
				w.ailing, w.heeds, w.term, w.guest.Interval = true, hosts, 2*time.Second, 20*time.Millisecond
				b := w.boot("b", false, nil)
				a := w.boot("a", true, func(c *Config) {
					c.Network = []Network{lateNIC{c.Network[0].(paced), late}}
				})
				a.is(Protected)
				b.is(Following)
				time.Sleep(250 * time.Millisecond)
				b.ails.spare.Store(1) // the checkpoint before the last one
				a.on(SwitchingOver, func() { b.ails.commit.Store(1) })
				err := a.job.Switchover(t.Context())
				if err == nil || !strings.Contains(err.Error(), "the guest runs on here") {
					t.Errorf("%v", err)
				}
				if <-b.done; b.job.State() != Concluded || b.ails.commit.Load() > 0 {
					t.Fatalf("b was %v", b.states())
				}
				b.bury()
				time.Sleep(2 * w.term) // what is held and not renewed is over
				if q := a.job.Query(); q.State != Alone || !q.Open || q.Generation == 0 {
					t.Fatalf("a has the guest without a grant: %+v", q)
				}
				w.hearsMore()
				w.boot("b", false, nil)
				a.is(Protected)
				w.hearsMore()
				for _, h := range w.living() {
					h.halt()
				}
			})
		}
	}
}
