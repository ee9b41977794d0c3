package failover_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// A world is a holder, an arbiter's record, and a follower that wants the guest,
// with everything that can be under way between them. Its times are counted in
// ticks of the arbiter; the holder's clock is as slow as the margin allows for,
// and the follower's is right. It is small enough to be walked whole.
type world struct {
	now        int // in ticks
	generation uint64
	holder     string // of the record: "a", "b", or "" after a release
	written    int    // when b saw the record written

	// Under way, at most one of each: when a renewal of a was sent (-1: none) and
	// whether the record was written for it.
	sent, wrote int
	// A promise that b gave: when a asked, and when b promised (-1: none).
	asked, promised int
	pledge          int // b must not ask before this tick
}

const (
	ticks     = 4 // in a term
	tickLen   = 250 * time.Millisecond
	promiseOf = 2 // ticks of a promise
)

// holderTime returns the time of a holder's clock that runs slower by the whole margin, without
// the millisecond.
func holderTime(tick int) time.Time {
	return time.Unix(1000, 0).Add(time.Duration(tick) * tickLen * 98 / 100)
}

// An action changes a world. ok is false where it cannot happen.
type action struct {
	name string
	do   func(w *world, h *failover.Holder) (ok bool)
}

var actions = []action{
	{"time passes", func(w *world, h *failover.Holder) bool { w.now++; return true }},
	{"a sends a renewal", func(w *world, h *failover.Holder) bool {
		if w.sent >= 0 || h.Generation() == 0 {
			return false
		}
		w.sent, w.wrote = w.now, -1
		return true
	}},
	{"the arbiter takes it", func(w *world, h *failover.Holder) bool {
		if w.sent < 0 || w.wrote >= 0 || w.holder != "a" {
			return false
		}
		w.wrote, w.written = w.now, w.now
		return true
	}},
	{"a hears of it", func(w *world, h *failover.Holder) bool {
		if w.wrote < 0 {
			return false
		}
		h.Granted(failover.Grant{Generation: 1, Token: "a", Term: ticks * tickLen, Sent: holderTime(w.sent)})
		w.sent, w.wrote = -1, -1
		return true
	}},
	{"the renewal is lost", func(w *world, h *failover.Holder) bool {
		if w.sent < 0 {
			return false
		}
		w.sent, w.wrote = -1, -1
		return true
	}},
	{"a hears a refusal", func(w *world, h *failover.Holder) bool {
		if w.holder == "a" || h.Generation() == 0 {
			return false
		}
		h.Over(1)
		return true
	}},
	{"a releases", func(w *world, h *failover.Holder) bool {
		if w.holder != "a" || h.Generation() == 0 {
			return false
		}
		h.Over(1)
		w.holder = ""
		return true
	}},
	{"a asks for a promise", func(w *world, h *failover.Holder) bool {
		if w.asked >= 0 || h.Generation() == 0 {
			return false
		}
		w.asked, w.promised = w.now, -1
		return true
	}},
	{"b promises", func(w *world, h *failover.Holder) bool {
		if w.asked < 0 || w.promised >= 0 || w.generation > 1 {
			return false
		}
		w.promised = w.now
		w.pledge = w.now + promiseOf
		return true
	}},
	{"a hears the promise", func(w *world, h *failover.Holder) bool {
		if w.promised < 0 {
			return false
		}
		h.Promised(1, holderTime(w.asked), promiseOf*tickLen)
		w.asked, w.promised = -1, -1
		return true
	}},
	{"b gets the guest", func(w *world, h *failover.Holder) bool {
		free := w.holder == "" || w.holder == "a" && w.now >= w.written+ticks
		if !free || w.generation > 1 || w.now < w.pledge {
			return false
		}
		w.holder, w.generation = "b", 2
		return true
	}},
}

// Whatever happens between two hosts and an arbiter, in any order and with any
// delay, no two may act as holder at one time.
func TestNoSequenceOfEventsLetsTwoHostsActAsHolder(t *testing.T) {
	length := 12
	if testing.Short() {
		length = 10
	}
	type state struct {
		w world
		h failover.Holder
	}
	start := state{w: world{generation: 1, holder: "a", sent: -1, wrote: -1, asked: -1, promised: -1}}
	start.h.Granted(failover.Grant{Generation: 1, Token: "a", Term: ticks * tickLen, Sent: holderTime(0)})
	type path struct {
		state
		names []string
	}
	level := []path{{start, nil}}
	met := map[state]bool{start: true}
	both, took := 0, 0
	for range length {
		var next []path
		for _, from := range level {
			for _, a := range actions {
				to := from.state
				if !a.do(&to.w, &to.h) || met[to] {
					continue
				}
				met[to] = true
				names := append(slices.Clip(from.names), a.name)
				mayA := holderTime(to.w.now).Before(to.h.Until())
				if to.w.generation == 2 {
					took++
					if mayA {
						t.Fatalf("two holders: %s", strings.Join(names, "; "))
					}
				} else if mayA {
					both++
				}
				next = append(next, path{to, names})
			}
		}
		level = next
	}
	if took == 0 || both == 0 {
		t.Fatal("the walk never got to a takeover")
	}
	t.Logf("%d states, %d after a takeover", len(met), took)
}

func TestHolderStopsBeforeItsTermCountedFromTheRequest(t *testing.T) {
	at := time.Now()
	var h failover.Holder
	if !h.Until().IsZero() || h.Generation() != 0 {
		t.Error("the zero Holder holds something")
	}
	h.Granted(failover.Grant{Generation: 5, Term: time.Second, Sent: at})
	if want := at.Add(time.Second - failover.Margin(time.Second)); !h.Until().Equal(want) {
		t.Errorf("until %v, want %v", h.Until(), want)
	}
	if next, ok := h.Renewal(); !ok || !next.Equal(at.Add(time.Second/3)) {
		t.Errorf("renewal at %v, %v", next, ok)
	}
}

func TestAnswersInAnyOrderAndOfOtherGenerationsAreHarmless(t *testing.T) {
	at := time.Now()
	grant := func(generation uint64, after time.Duration) failover.Grant {
		return failover.Grant{Generation: generation, Term: time.Second, Sent: at.Add(after)}
	}
	var h failover.Holder
	h.Granted(grant(5, time.Second))
	until := h.Until()
	h.Granted(grant(5, 0)) // an earlier renewal, heard later
	h.Granted(grant(4, time.Minute))
	h.Promised(4, at.Add(time.Minute), time.Second)
	h.Over(3)
	if !h.Until().Equal(until) || h.Generation() != 5 {
		t.Errorf("until %v of generation %d, want %v of 5", h.Until(), h.Generation(), until)
	}
	h.Over(5)
	h.Over(3) // an answer to an earlier claim, heard later
	h.Granted(grant(4, time.Minute))
	h.Granted(grant(5, time.Minute))
	h.Promised(5, at.Add(time.Minute), time.Second)
	if !h.Until().IsZero() || h.Generation() != 0 {
		t.Error("a generation that is over began again")
	}
	if _, ok := h.Renewal(); ok {
		t.Error("nothing is held, and yet to be renewed")
	}
	h.Granted(grant(6, 2*time.Second))
	if h.Generation() != 6 || h.Until().IsZero() {
		t.Error("a later generation was not taken")
	}
}

func TestPromiseCountsLikeAGrant(t *testing.T) {
	at := time.Now()
	var h failover.Holder
	h.Promised(0, at, time.Hour)
	if !h.Until().IsZero() {
		t.Error("a promise without a grant opened something")
	}
	h.Granted(failover.Grant{Generation: 1, Term: time.Second, Sent: at})
	h.Promised(1, at.Add(time.Second), time.Second)
	if want := at.Add(2*time.Second - failover.Margin(time.Second)); !h.Until().Equal(want) {
		t.Errorf("until %v, want %v", h.Until(), want)
	}
	until := h.Until()
	for _, other := range []uint64{0, 2} {
		if h.Promised(other, at.Add(time.Hour), time.Second); !h.Until().Equal(until) {
			t.Errorf("a promise for generation %d counts for generation 1", other)
		}
	}
	if next, _ := h.Renewal(); !next.Equal(at.Add(time.Second / 3)) {
		t.Errorf("a promise is no renewal, but it is due at %v", next)
	}
}

func TestGrantWithoutATermLasts(t *testing.T) {
	var h failover.Holder
	h.Granted(failover.Grant{Generation: 1, Sent: time.Now()})
	if year := time.Now().AddDate(100, 0, 0); !h.Until().After(year) || !failover.Endless(h.Until()) {
		t.Error(fmt.Sprint("ends ", h.Until()))
	}
	if _, ok := h.Renewal(); ok {
		t.Error("it has to be renewed")
	}
	h.Over(1)
	if !h.Until().IsZero() || failover.Endless(h.Until()) {
		t.Error("it did not end")
	}
	h.Granted(failover.Grant{Generation: 2, Sent: time.Now(), Term: 100 * 365 * 24 * time.Hour})
	if failover.Endless(h.Until()) {
		t.Error("a grant with a term is taken for one without")
	}
}

func TestOperatorsWordHoldsUntilAGrantTakesItsPlace(t *testing.T) {
	at := time.Now()
	var h failover.Holder
	h.Granted(failover.Grant{Generation: 3, Term: time.Second, Sent: at})
	h.Fenced(3)
	if h.Until().After(at.Add(time.Second)) {
		t.Error("a word for a generation that is held already prolonged it")
	}
	h.Fenced(4)
	if h.Generation() != 4 || !h.Until().After(at.AddDate(1, 0, 0)) {
		t.Errorf("generation %d until %v", h.Generation(), h.Until())
	}
	h.Granted(failover.Grant{Generation: 3, Term: time.Second, Sent: at.Add(time.Hour)})
	if h.Generation() != 4 {
		t.Error("an older grant took its place")
	}
	h.Granted(failover.Grant{Generation: 4, Term: time.Second, Sent: at})
	if want := at.Add(time.Second - failover.Margin(time.Second)); !h.Until().Equal(want) {
		t.Errorf("the grant lasts until %v, want %v", h.Until(), want)
	}
	h.Over(4)
	h.Fenced(4)
	if h.Generation() != 0 {
		t.Error("a word brought back what is over")
	}
}

// An operator's word that no other host can act as the holder is true until there is one
// that has a copy, and promises how long it will not.
func TestAnOperatorsWordIsOverWithTheFirstPromise(t *testing.T) {
	var h failover.Holder
	begin := time.Now()
	h.Fenced(2)
	h.Promised(1, begin, time.Second)
	if !h.Until().After(begin.Add(time.Hour)) {
		t.Errorf("the word was over by a promise for another generation, at %v", h.Until())
	}
	h.Promised(2, begin, time.Second)
	if want := begin.Add(time.Second - failover.Margin(time.Second)); !h.Until().Equal(want) {
		t.Errorf("until %v, want %v", h.Until(), want)
	}
	if at, ok := h.Renewal(); ok {
		t.Errorf("there is something to renew at %v, though the arbiter has granted nothing", at)
	}
}

// Answers may come in another order than the requests: the next renewal follows the request that was
// sent last.
func TestAnEarlierAnswerThatComesLateHastensNoRenewal(t *testing.T) {
	var h failover.Holder
	begun := time.Now()
	g := failover.Grant{Generation: 1, Term: 3 * time.Second, Sent: begun.Add(time.Second)}
	h.Granted(g)
	g.Sent = begun
	h.Granted(g)
	if at, ok := h.Renewal(); !ok || !at.Equal(begun.Add(2*time.Second)) {
		t.Errorf("the next one is due after %v", at.Sub(begun))
	}
}
