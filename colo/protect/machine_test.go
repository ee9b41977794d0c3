package protect

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Every input in every state, and every sequence of them: the states are few, so
// a walk over (state, input) from all states is the walk over all sequences.
func TestEveryInputInEveryStateKeepsTheInvariants(t *testing.T) {
	count := 0
	for s := range Concluded + 1 {
		for in := range inputs {
			count++
			m := machine{state: s, reason: "before"}
			err := m.do(in, "why")
			var se *StateError
			switch {
			case err != nil && (!errors.As(err, &se) || m.state != s || m.reason != "before"):
				t.Errorf("%v in %v: %v, and it moved to %v", in, s, err, m.state)
			case err == nil && m.reason != "why":
				t.Errorf("%v in %v: the reason was not kept", in, s)
			case err == nil && s == Concluded:
				t.Errorf("%v leads out of concluded", in)
			case s != Concluded && (in == stopped || in == failed) && m.state != Concluded:
				t.Errorf("%v in %v does not conclude", in, s)
			case m.state.runs() && !s.runs() && in != granted && in != tookOver && in != left && in != calledOff:
				t.Errorf("%v in %v lets the guest run without a grant", in, s)
			case in == calledOff && err == nil && s != SwitchingOver: // where no grant was given back yet
				t.Errorf("%v in %v leads to %v", in, s, m.state)
			case in == torn && err == nil && m.state != Concluded:
				t.Errorf("a torn guest in %v goes on to %v", s, m.state)
			case in == deposed && err == nil && m.state.runs():
				t.Errorf("deposed in %v, and the guest runs in %v", s, m.state)
			case in == refused && err == nil && m.state != Waiting:
				t.Errorf("refused in %v leads to %v", s, m.state)
			case (in == doFailover || in == doFenced) && err == nil && m.state.runs():
				t.Errorf("%v in %v: the guest runs at once in %v", in, s, m.state)
			}
		}
	}
	t.Logf("%d moves", count)
}

// Whoever is refused learns where the verb is possible, but where it is nowhere any more.
func TestAStateErrorSaysInWhichStatesTheVerbIsAllowed(t *testing.T) {
	for _, c := range []struct {
		verb  input
		state State
		want  string
	}{
		{doSwitchover, Following, "protect: switchover is not possible while following, only while protected"},
		{doFenced, Alone, "protect: fenced is not possible while alone, only while protected, following or asking"},
		{doPause, Concluded, "protect: pause is not possible while concluded"},
		{doPause, Alone, "protect: pause is not possible while alone"}, // the state has changed meanwhile
	} {
		if got := (&StateError{Verb: c.verb.String(), State: c.state}).Error(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	if got, want := (&StateError{Verb: "dance"}).Error(), "protect: dance is not possible while created"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// reach returns the states that can be come to from one, without some inputs.
func reach(from State, without ...input) []State {
	met := []State{from}
	for i := 0; i < len(met); i++ {
		for in := range inputs {
			m := machine{state: met[i]}
			if !slices.Contains(without, in) && m.do(in, "") == nil && !slices.Contains(met, m.state) {
				met = append(met, m.state)
			}
		}
	}
	slices.Sort(met)
	return met
}

func TestEveryStateIsReachedAndEveryStateEnds(t *testing.T) {
	if got := reach(Created); len(got) != int(Concluded)+1 {
		t.Errorf("from created: %v", got)
	}
	for s := range Concluded {
		if !slices.Contains(reach(s), Concluded) {
			t.Errorf("%v never ends", s)
		}
		if s == Created {
			continue
		}
		// Protected again, any number of times, in either role.
		for _, goal := range []State{Protected, Following} {
			if !slices.Contains(reach(s), goal) {
				t.Errorf("%v never comes to %v", s, goal)
			}
		}
	}
}

// A secondary gets to run the guest by way of the arbiter's yes, an operator's word that the
// other side is dead, or, where there is no arbiter, the primary's word that it hands the guest
// over. There is no other way, and a host that gives up what it was entrusted with has none.
func TestSecondaryRunsOnlyWithAGrantOrAWord(t *testing.T) {
	for _, s := range reach(Following, granted, doFenced, entrusted) {
		if s.runs() || s == TakingOver {
			t.Errorf("%v is reached without any", s)
		}
	}
	m := machine{state: Following}
	if m.do(entrusted, "") != nil || m.state != TakingOver || m.do(gaveUp, "") != nil || m.state != Waiting {
		t.Errorf("a host that gives up what it was entrusted with is %v", m.state)
	}
}

func TestVerbsAreAllowedWhereTheTableOfThePackageCommentSays(t *testing.T) {
	var b strings.Builder
	verbs := []input{doPause, doResume, doComplete, doCheckpoint, doFailover, doFenced, doSwitchover, doMigrate, doCancel, doSave, doSetDelay, doGrow}
	for _, v := range verbs {
		var in []string
		for s := range Concluded {
			if (&machine{state: s}).allows(v) {
				in = append(in, s.String())
			}
		}
		fmt.Fprintf(&b, "//\t%-11s %s\n", v, strings.Join(in, ", "))
	}
	doc := packageComment(t)
	if !strings.Contains(doc, b.String()) {
		t.Errorf("the package comment's table should be:\n%s", b.String())
	}
	for s := range Concluded + 1 {
		if line := fmt.Sprintf("//\t%-15s %s", s, s.JobStatus()); !strings.Contains(doc, line) {
			t.Errorf("the package comment does not say %q", line)
		}
	}
}
