package protect

import (
	"testing"

	"github.com/gocolo/lockstep/event"
)

// Pages of zeros, of which most guests have many, cost nothing on the wire: that they are done counts as
// much as that others are.
func TestASynchronisationOfAGuestThatIsMostlyZerosSaysThatItIsNearlyDone(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Memory = 8 << 20
		b := w.boot("b", false, nil)
		var a *host // before there is a session that could ask for it
		var least, of uint64
		a = w.boot("a", true, func(c *Config) {
			c.Session.Step = func(_ event.Mode, op string, epoch uint64) {
				if p := a.job.Query().Progress; op == "pause" && epoch == 0 && p != nil {
					least, of = p.Remaining, p.Total
				}
			}
		})
		a.is(Protected)
		if of != 8<<20 || least > of/8 {
			t.Errorf("before the guest is paused %d bytes of %d are left", least, of)
		}
		a.halt()
		b.halt()
	})
}
