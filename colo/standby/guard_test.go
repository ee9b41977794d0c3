package standby

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// told is an input some time after the one before, in which the Guard is told often that time
// passes.
type told struct {
	after time.Duration
	in    GuardInput
}

// passes has a Guard see a time pass, and returns what it does meanwhile, and the time after it.
func passes(g *Guard, now time.Time, d time.Duration) (do []GuardAction, then time.Time) {
	const often = 50 * time.Millisecond
	then = now.Add(d)
	for now = now.Add(often); now.Before(then); now = now.Add(often) {
		more, _ := g.Step(now, Tick)
		do = append(do, more...)
	}
	return do, then
}

func act(a ...GuardAction) string {
	var w []string
	for _, x := range a {
		w = append(w, x.String())
	}
	return strings.Join(w, " ")
}

func TestWhatAGuardDoes(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name  string
		from  GuardState
		in    []told
		do    string // of all inputs
		state GuardState
	}{
		{"a standby that is there gets the guest", Unprotected, []told{{0, StandbyThere}, {ms, InStep}}, "protect", Protected},
		{"without a standby it is not tried", Unprotected, []told{{0, Tick}, {time.Hour, Tick}}, "", Unprotected},
		{"after a failure it waits, and tries again", Unprotected,
			[]told{{0, StandbyThere}, {ms, Failed}, {900 * ms, Tick}, {200 * ms, Tick}}, "protect tell-alone protect", Protecting},
		{"and waits twice as long", Unprotected,
			[]told{{0, StandbyThere}, {ms, Failed}, {1100 * ms, Tick}, {ms, Failed}, {1900 * ms, Tick}}, "protect tell-alone protect tell-alone", Unprotected},
		{"COLO_EXIT: the arbiter, then alone", Protected, []told{{0, Exited}, {ms, Granted}}, "ask-grant lost-heartbeat tell-alone", Unprotected},
		{"and protected again when the standby is back", Protected,
			[]told{{0, Exited}, {ms, Granted}, {ms, StandbyLost}, {5000 * ms, StandbyThere}}, "ask-grant lost-heartbeat tell-alone protect", Protecting},
		{"COLO_EXIT, and the arbiter says no", Protected, []told{{0, Exited}, {ms, Refused}}, "ask-grant stop tell-stopped", StoodDown},
		{"a synchronisation that fails, and the arbiter says no", Unprotected, []told{{0, StandbyThere}, {ms, Refused}}, "protect stop tell-stopped", StoodDown},
		{"a guest that stands", Protected, []told{{0, Runs}, {1900 * ms, Stands}, {200 * ms, Stands}}, "ask-grant", Asking},
		{"whose checkpoint gets on", Protected, []told{{0, Runs}, {1900 * ms, Stands}, {0, Advances}, {1900 * ms, Stands}}, "", Protected},
		{"or that ran in between", Protected, []told{{0, Runs}, {1900 * ms, Stands}, {0, Runs}, {1900 * ms, Stands}}, "", Protected},
		{"a standby that is silent while the guest runs", Protected, []told{{4900 * ms, Runs}, {200 * ms, Runs}}, "ask-grant", Asking},
		{"or that has restarted", Protected, []told{{0, StandbyLost}, {6000 * ms, Runs}}, "ask-grant", Asking},
		{"a standby that answers, and receives nothing of the checkpoint that is due", Protected,
			[]told{{1900 * ms, Runs}, {1900 * ms, Runs}, {0, StandbyThere}, {1100 * ms, Runs}, {0, Overdue}, {200 * ms, Overdue}, {ms, Granted}},
			"ask-grant lost-heartbeat tell-alone", Unprotected},
		{"or has received it in between", Protected,
			[]told{{1900 * ms, Runs}, {1900 * ms, Runs}, {0, Advances}, {1300 * ms, Runs}, {0, Overdue}}, "", Protected},
		{"or has until then, and nothing is due", Protected,
			[]told{{1900 * ms, Runs}, {1900 * ms, Runs}, {0, StandbyThere}, {1900 * ms, Runs}, {1900 * ms, Runs}}, "", Protected},
		{"none is due while an operator has stopped the guest, nor at once after that", Protected,
			[]told{{0, OperatorStop}, {4000 * ms, StandbyThere}, {4000 * ms, StandbyThere}, {0, Overdue}, {0, Runs}, {0, Overdue}}, "hold-still", Protected},
		{"nor while this host may not run it, nor at once after that", Protected,
			[]told{{1900 * ms, Runs}, {1900 * ms, Runs}, {0, StandbyThere}, {0, HoldOver}, {1500 * ms, Overdue}, {0, HoldBack}, {0, Overdue}}, "stop cont", Protected},
		{"quit", Protected, []told{{0, PlannedEnd}, {0, Died}}, "tell-planned", Ended},
		{"SIGKILL", Protected, []told{{0, Died}}, "tell-dead", Ended},
		{"SIGKILL while the arbiter is asked", Protected, []told{{0, Exited}, {0, Died}, {ms, Granted}}, "ask-grant tell-dead", Ended},
		{"an operator stops the guest", Protected, []told{{0, OperatorStop}, {time.Second, OperatorStop}, {time.Second, OperatorStop}, {2500 * ms, StandbyThere}}, "hold-still", Protected},
		{"and lets it go on", Protected, []told{{0, OperatorStop}, {time.Second, Runs}, {time.Second, OperatorStop}}, "hold-still hold-still", Protected},
		{"and it stays stopped when the standby is lost", Protected, []told{{0, OperatorStop}, {0, Exited}, {0, Granted}}, "hold-still ask-grant lost-heartbeat tell-alone stop", Unprotected},
		{"the standby is promoted", Protected, []told{{0, StandbyWants}}, "stop tell-stopped", StoodDown},
		{"while the arbiter is asked, which says yes", Protected, []told{{0, Exited}, {0, StandbyWants}, {ms, Granted}}, "ask-grant lost-heartbeat tell-alone", Unprotected},
		{"while the arbiter is asked, which says no", Protected, []told{{0, Exited}, {0, StandbyWants}, {ms, Refused}}, "ask-grant stop tell-stopped", StoodDown},
		{"the arbiter says no by itself", Protected, []told{{0, Refused}, {ms, StandbyWants}}, "stop tell-stopped", StoodDown},
		{"with an old copy", Unprotected, []told{{0, StandbyWants}}, "tell-alone", Unprotected},
		{"the standby has gone on already", Protected, []told{{0, StandbyRuns}, {0, Runs}}, "stop stop", StoodDown},
		{"the arbiter is out of reach", Protected, []told{{0, HoldOver}, {0, Runs}, {0, HoldBack}}, "stop stop cont", Protected},
		{"and the guest is seen standing when it may run again", Protected,
			[]told{{0, HoldOver}, {0, OperatorStop}, {0, HoldBack}, {0, OperatorStop}, {ms, Runs}}, "stop cont", Protected},
		{"or before the answer that lets it", Protected,
			[]told{{0, Exited}, {0, HoldOver}, {0, HoldBack}, {0, OperatorStop}, {0, Granted}}, "ask-grant stop cont lost-heartbeat tell-alone", Unprotected},
		{"or after it", Protected,
			[]told{{0, Exited}, {0, HoldOver}, {0, Granted}, {0, OperatorStop}, {0, HoldBack}}, "ask-grant stop lost-heartbeat tell-alone cont", Unprotected},
		{"and an operator stops it when it has run again", Protected,
			[]told{{0, HoldOver}, {0, HoldBack}, {0, OperatorStop}, {ms, Runs}, {ms, OperatorStop}}, "stop cont hold-still", Protected},
		{"or had stopped it before", Protected,
			[]told{{0, OperatorStop}, {0, HoldOver}, {0, OperatorStop}, {0, HoldBack}, {0, OperatorStop}}, "hold-still stop", Protected},
		{"and it never runs again", Protected,
			[]told{{0, HoldOver}, {1500 * ms, OperatorStop}, {0, HoldBack}, {1900 * ms, OperatorStop}, {200 * ms, OperatorStop}}, "stop cont ask-grant", Asking},
		{"and trouble comes then", Protected, []told{{0, Exited}, {0, HoldOver}, {0, Granted}}, "ask-grant stop lost-heartbeat tell-alone", Unprotected},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := time.Now()
			g := NewGuard(GuardConfig{}, c.from, now)
			var done []GuardAction
			for _, in := range c.in {
				var do []GuardAction
				do, now = passes(g, now, in.after)
				done = append(done, do...)
				was := g.State()
				do, why := g.Step(now, in.in)
				done = append(done, do...)
				if was != g.State() && why == "" {
					t.Errorf("%v: %v becomes %v without a word", in.in, was, g.State())
				}
			}
			if got := act(done...); got != c.do || g.State() != c.state {
				t.Errorf("%s: %q, want %q in %v", g.State(), got, c.do, c.state)
			}
		})
	}
}

// A guardian that was stopped has heard nothing, and says nothing of its guest or its standby by that.
func TestATimeInWhichTheGuardWasStoppedIsNobodysSilence(t *testing.T) {
	now := time.Now()
	g := NewGuard(GuardConfig{}, Protected, now)
	g.Step(now, Runs)
	for _, asleep := range []time.Duration{3 * time.Second, time.Hour} {
		now = now.Add(asleep)
		if do, why := g.Step(now, Tick); len(do) > 0 {
			t.Fatalf("after %v: %s, since %s", asleep, act(do...), why)
		}
		g.Step(now, StandbyThere)
		g.Step(now, Runs)
		if do, why := g.Step(now, Overdue); len(do) > 0 {
			t.Fatalf("after %v: %s, since %s", asleep, act(do...), why)
		}
	}
	// One whose guest does not run when it goes on finds that out, in no more time than always.
	now = now.Add(time.Hour)
	do, _ := g.Step(now, Stands)
	if len(do) > 0 {
		t.Fatal(act(do...))
	}
	if do, _ = passes(g, now, DefaultStall); act(do...) != "ask-grant" {
		t.Errorf("a guest that stands: %q", act(do...))
	}
}

// A caller that is always late finds a guest that stands, if late.
func TestAGuardThatIsSeldomToldOfTheTimeFindsASilentStandby(t *testing.T) {
	now := time.Now()
	g := NewGuard(GuardConfig{}, Protected, now)
	for range 100 {
		now = now.Add(10 * time.Second)
		if do, _ := g.Step(now, Runs); act(do...) == "ask-grant" {
			return
		}
	}
	t.Error("it was silent for 1,000 s")
}

// Whatever happens, the guest is told to go on alone only after a yes that was
// asked for, and never again once the standby has it or its process has ended; and
// while the answer is to come the guest is not stopped for a standby.
func TestAGuestGoesOnAloneOnlyWithAYes(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		now := time.Now()
		g := NewGuard(GuardConfig{}, GuardState(r.IntN(3)), now)
		var log []string
		asked := false
		for range 60 {
			now = now.Add(time.Duration(r.IntN(1500)) * time.Millisecond)
			in := GuardInput(r.IntN(len(guardInputs)))
			was := g.State()
			do, _ := g.Step(now, in)
			log = append(log, fmt.Sprintf("%v: %v (%s)", in, g.State(), act(do...)))
			final := was == StoodDown || was == Ended
			switch {
			case slices.Contains(do, LostHeartbeat) && (in != Granted || !asked),
				was == Asking && in == StandbyWants && (g.State() != Asking || len(do) > 0),
				final && (g.State() != was || slices.ContainsFunc(do, func(a GuardAction) bool { return a != StopGuest })),
				g.State() == StoodDown && was != StoodDown && !slices.Contains(do, StopGuest),
				slices.Contains(do, TellDead) && in != Died,
				slices.Contains(do, ContinueGuest) && in != HoldBack:
				t.Fatalf("seed %d: %s", seed, strings.Join(log, "\n"))
			}
			asked = asked && g.State() == Asking || slices.Contains(do, AskGrant)
		}
	}
}
