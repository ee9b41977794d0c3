package protect

import (
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
)

func TestQueryAnswersAtOnceWhileTheArbiterIsSlow(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		a.slow.Store(int64(2 * time.Second))
		w.f.part("a", "b", false)
		a.is(Asking)
		begin := time.Now()
		s := a.job.Query()
		if took := time.Since(begin); took != 0 || s.State != Asking || s.Generation == 0 {
			t.Errorf("after %v: %+v", took, s)
		}
		a.slow.Store(0)
		w.f.join("a", "b")
		a.is(Protected)
		b.is(Following)
		b.halt()
		a.halt()
	})
}

// Whoever waits for a switchover sees what is still to be sent.
func TestASwitchoverSaysHowFarItIs(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Pages, w.guest.Touch = 1024, 64
		var err error
		if w.oracle, err = colotest.NewOracle(w.guest); err != nil {
			t.Fatal(err)
		}
		var a *host // before there is a secondary whose session could ask for it
		var seen []Progress
		a = w.boot("a", true, func(c *Config) {
			c.Session.Step = func(mode event.Mode, op string, _ uint64) {
				if q := a.job.Query(); mode == event.ModePrimary && q.State == SwitchingOver && (op == "send ram ahead" || op == "pause") {
					seen = append(seen, *q.Progress)
				}
			}
		})
		b := w.boot("b", false, nil)
		a.is(Protected)
		time.Sleep(150 * time.Millisecond)
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(seen) < 2 || seen[0] != (Progress{}) || seen[1].Sent < 100<<12 || seen[1].Total != seen[1].Sent+seen[1].Remaining {
			t.Errorf("%+v", seen)
		}
		a.is(Following)
		if p := a.job.Query().Progress; p != nil {
			t.Errorf("it goes on after the end: %+v", p)
		}
		b.is(Protected)
		b.halt()
		a.halt()
	})
}
