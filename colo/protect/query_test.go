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
// What the guest has written since a checkpoint of long ago the other host has before the guest
// stands still: the last checkpoint comes right after another, whatever MinInterval says.
func TestALastCheckpointHasLittleInIt(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Pages, w.guest.Touch = 1024, 64
		var err error
		if w.oracle, err = colotest.NewOracle(w.guest); err != nil {
			t.Fatal(err)
		}
		var a *host
		var last Progress
		pauses := 0
		a = w.boot("a", true, func(c *Config) {
			c.CheckpointDelay, c.MinInterval = 10*time.Second, 2*time.Second
			c.Session.Step = func(mode event.Mode, op string, _ uint64) {
				if q := a.job.Query(); mode == event.ModePrimary && q.State == SwitchingOver && op == "pause" {
					last = *q.Progress
					pauses++
				}
			}
		})
		b := w.boot("b", false, nil)
		a.is(Protected)
		time.Sleep(3 * time.Second)
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Fatal(err)
		}
		if pauses != 2 || last.Total > 200<<12 {
			t.Errorf("%d pauses, and of the last one %+v", pauses, last)
		}
		b.is(Protected)
		b.halt()
		a.halt()
	})
}

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
			c.CheckpointDelay = 10 * time.Second // none comes between the last two
			c.Session.Step = func(mode event.Mode, op string, _ uint64) {
				q := a.job.Query()
				switch {
				case mode != event.ModePrimary || q.State != SwitchingOver:
				case op == "send ram ahead" || op == "pause":
					seen = append(seen, *q.Progress)
				case op == "expect vmstate-received" && len(seen) == 1: // the guest writes on
					time.Sleep(150 * time.Millisecond)
				}
			}
		})
		b := w.boot("b", false, nil)
		a.is(Protected)
		time.Sleep(150 * time.Millisecond)
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Fatal(err)
		}
		// Of the checkpoint before the last one, and then of that one.
		if len(seen) != 3 || seen[0] != (Progress{}) || seen[1] != (Progress{}) || seen[2].Sent < 100<<12 || seen[2].Total != seen[2].Sent+seen[2].Remaining {
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
