package protect

import (
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
)

// A session may go on here in the moment in which another generation begins, as where its secondary says
// goodbye: the guest is not this host's any more, whatever the session says.
func TestASessionThatGoesOnWhereTheHostWasDeposedLeavesItWaiting(t *testing.T) {
	for state, want := range map[State]State{Waiting: Waiting, Asking: Alone, SwitchingOver: Alone, TakingOver: Alone} {
		j := jobIn(state)
		g, err := colotest.NewVM(colotest.VMConfig{Pages: 1})
		if err != nil {
			t.Fatal(err)
		}
		j.vm = newVM(g, nil, nil)
		if err := j.led(t.Context(), &session{peer: newPeer(hello{Host: "b"})}, nil); err != nil {
			t.Error(err)
		}
		if s := j.State(); s != want {
			t.Errorf("from %v the host has come to %v, not %v", state, s, want)
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What a host was granted may be over before it has used it: the other host is being fenced off for as long
// as that takes.
func TestAHostWhoseGrantIsOverBeforeTheOtherIsFencedDoesNotGoOn(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		fences, fenced := make(chan struct{}), make(chan struct{})
		b := w.boot("b", false, func(c *Config) {
			c.Fencer = &fencer{before: func(uint64) { close(fences); <-fenced }}
		})
		a := w.boot("a", true, nil)
		a.is(Protected)
		b.is(Following)
		waits := b.passes(Waiting)
		a.kill(false)
		a.bury()
		<-fences
		r, err := w.store.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.Generation, r.Holder, r.Token, r.Writes = r.Generation+1, "c", "of c", r.Writes+1
		w.rewrite(r)
		time.Sleep(2 * w.term)
		if b.job.Gate().Open() {
			t.Error("the gate is open")
		}
		close(fenced)
		select {
		case <-waits:
		case <-time.After(time.Minute):
			t.Errorf("b is %v, of generation %d: %v", b.job.State(), b.job.keeper.Generation(), b.states())
		}
		b.halt()
	})
}
