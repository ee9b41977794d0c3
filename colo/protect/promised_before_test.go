package protect

import (
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

// A primary that does not reach the arbiter acts by what its secondary has promised. The process of
// that dies, and a person starts its copy. The arbiter would grant it at once: the primary's grant
// is long over.
func TestAHostThatIsStartedWaitsForWhatItMayHavePromisedBefore(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = 10 * time.Millisecond
		prompt := failover.NewStoreArbiter(w.store) // which need not look at the record for a term, as a new one
		slow := func(c *Config) { c.Lost, c.PeerTimeout = 10*w.term, 20*w.term }
		b := w.boot("b", false, func(c *Config) { slow(c); c.Arbiter = prompt })
		a := w.boot("a", true, slow)
		a.is(Protected)
		b.is(Following)
		a.noArbiter.Store(true)
		time.Sleep(5 * w.term)
		held := b.job.Query().Generation
		b.kill(true)
		if !a.job.Gate().Open() {
			t.Fatal("the gate is shut, which the promises keep open")
		}
		w.forget() // the guest begins anew at b
		a.nicGone()
		begin, open := time.Now(), make(chan bool, 1)
		again := w.boot("b", true, func(c *Config) {
			slow(c)
			c.Arbiter, c.Held = prompt, held
			event.Subscribe(c.Events, func(e event.JobStatusChange) {
				if e.State == Alone.String() {
					open <- a.job.Gate().Open()
				}
			})
		})
		if <-open {
			t.Errorf("b runs the guest after %v, while the gate of a is open", time.Since(begin))
		}
		a.noArbiter.Store(false)
		b.bury()
		a.halt()
		again.halt()
		w.forget()
	})
}
