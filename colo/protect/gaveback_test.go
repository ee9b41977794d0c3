package protect

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// What a secondary has promised to a host that has given the guest back binds nobody: it
// goes on at once.
func TestAHostThatLeavesHasItsPromiseEnded(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.term = 5 * time.Second
		a, b := w.protected()
		time.Sleep(300 * time.Millisecond)
		begun := time.Now()
		a.stop(errHalt)
		b.is(Alone)
		if took := time.Since(begun); took > time.Second {
			t.Errorf("the secondary of a host that has left goes on after %v, in terms of %v", took, w.term)
		}
		a.bury()
		_, answers, _ := a.exits()
		// The other host may have taken over before this one has asked at all.
		if len(answers) > 1 || len(answers) == 1 && strings.Count(answers[0].Error, failover.ErrRefused.Error()) != 1 {
			t.Errorf("the host that has left is not refused in words that come once: %+v", answers)
		}
		b.halt()
		w.clean()
	})
}

// So does a guest that is restored after its host has ended in good order. Where that has
// died, the term is awaited.
func TestARestoredGuestWaitsForNobodyWhoHasGivenItBack(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.term = 5 * time.Second
		a := w.boot("a", true, nil)
		a.is(Alone)
		var file bytes.Buffer
		if err := a.job.Save(t.Context(), &file); err != nil {
			t.Fatal(err)
		}
		<-a.done
		a.leave()
		begun := time.Now()
		a = w.boot("a", false, restored(t, file.Bytes()))
		a.is(Alone)
		if took := time.Since(begun); took > time.Second {
			t.Errorf("a restored guest runs after %v, in terms of %v", took, w.term)
		}
		// Its host dies, and another has the guest of that generation, from wherever.
		a.kill(false)
		begun = time.Now()
		b := w.boot("b", false, func(c *Config) {
			restored(t, file.Bytes())(c)
			c.Held = 2
		})
		b.is(Alone)
		if took := time.Since(begun); took < w.term-100*time.Millisecond {
			t.Errorf("the guest of a host that has died runs after %v, in terms of %v", took, w.term)
		}
		a.bury()
		b.halt()
		w.forget() // of one state two guests have run on: the client may have heard both
	})
}

// A release that comes while the term is awaited is as good as one before.
func TestAReleaseEndsTheWaitForATerm(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.term = 5 * time.Second
		other := failover.NewStoreArbiter(w.store)
		g, err := other.Acquire(t.Context(), failover.Claim{Holder: "b", Token: "t", Term: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		a := w.boot("a", true, func(c *Config) { c.Held = g.Generation })
		time.Sleep(time.Second)
		if s := a.job.State(); s != Created {
			t.Errorf("a host is %v while another holds the guest", s)
		}
		if err := other.Release(t.Context(), g, ""); err != nil {
			t.Fatal(err)
		}
		a.is(Alone)
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("it goes on %v after it began, though the guest was given back after 1s", took)
		}
		a.halt()
	})
}

func TestOnlyTheReleaseOfThatGenerationCounts(t *testing.T) {
	for name, c := range map[string]struct {
		r    failover.Record
		want bool
	}{
		"released":             {failover.Record{Generation: 3}, true},
		"held":                 {failover.Record{Generation: 3, Holder: "a", Token: "t"}, false},
		"of the one before":    {failover.Record{Generation: 2}, false},
		"of the one after":     {failover.Record{Generation: 4}, false},
		"of a guest never had": {failover.Record{}, false},
	} {
		if got := gaveBack(c.r, 3); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if gaveBack(failover.Record{}, 0) {
		t.Error("no generation was given back")
	}
}
