package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// A standby that leaves a silent primary to its operator ends, with the copy in a file: nobody is left to be
// told to promote it.
func TestAStandbyThatEndsUndecidedNamesNoOrderForItself(t *testing.T) {
	for takeover, want := range map[string]int{"always": 0, "ask": 1} {
		var out printed
		p := &printer{terminal: terminal{out: &out, err: &out}}
		s := &standbyRun{p: p, heard: newHeard(p)}
		s.takeover = takeover
		asked := make(chan error, 1)
		go func() { asked <- s.arbitrate(t.Context(), colo.Claim{}) }()
		eventually(t, "nothing is decided", func() bool { return out.count("undecided   the primary is silent") > 0 })
		if takeover == "ask" {
			eventually(t, "no order is named", func() bool { return out.count("promote") > 0 })
			s.heard.update(func() { s.heard.promoted = true })
			if err := <-asked; err != nil {
				t.Error(err)
			}
		} else if err := <-asked; !errors.Is(err, colo.ErrRefused) {
			t.Error(err)
		}
		if n := out.count("promote -standby"); n != want {
			t.Errorf("-takeover %s: promote is named %d times, want %d", takeover, n, want)
		}
	}
}

// An arbiter grants the guest of a guardian that hangs to the standby, and the QEMU beside that guardian runs it on.
func TestAStandbyThatIsPromotedBesideAGuardianThatHangsWaitsUntilTheGuestSurelyDoesNotRun(t *testing.T) {
	for _, c := range []struct {
		name, fence, said string
		stopped           bool // the operator has to say so
	}{
		{"no fence", "", "undecided   an operator has promoted this side, but the guardian does not answer", true},
		{"a fence that fails", "exit 1", "undecided   the fence has failed", true},
		{"a fence", "exit 0", "fencing     exit 0", false},
	} {
		if c.fence != "" && testing.Short() {
			continue // a fence is a program
		}
		var out printed
		p := &printer{terminal: terminal{out: &out, err: &out}}
		s := &standbyRun{p: p, heard: newHeard(p)}
		s.fence, s.takeover = c.fence, "always"
		s.heard.begin(func() (epoch, bytes uint64) { return 0, 0 })
		s.heard.update(func() { s.heard.promoted, s.heard.presence = true, standby.GuardianGone })
		asked := make(chan error, 1)
		go func() { asked <- s.arbitrate(t.Context(), colo.Claim{Ordered: true}) }()
		eventually(t, c.name, func() bool { return out.count(c.said) > 0 })
		if c.stopped {
			eventually(t, c.name, func() bool { return out.count("lockstep-qemu promote -standby  -stopped") > 0 })
			s.heard.update(func() { s.heard.assured = true })
		}
		if err := <-asked; err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestAnOrderToPromoteIsRefusedWhereNobodyWouldStopTheGuest(t *testing.T) {
	for _, c := range []struct {
		name     string
		guardian standby.Presence
		word     standby.Word
		lost     bool // the session had ended by itself
		refused  bool
	}{
		{"a guardian that hangs", standby.GuardianGone, standby.NoWord, false, true},
		{"one that answers", standby.GuardianHere, standby.NoWord, false, false},
		{"none", standby.NoGuardian, standby.NoWord, false, false},
		{"one that has said that the guest is dead", standby.GuardianGone, standby.Dead, false, false},
		{"one that is lost as the primary is", standby.GuardianGone, standby.NoWord, true, false},
	} {
		h := newHeard(&printer{})
		h.begin(func() (epoch, bytes uint64) { return 0, 0 })
		h.update(func() { h.presence, h.word, h.running = c.guardian, c.word, !c.lost })
		s := &standbyRun{heard: h}
		if err := h.unstopped(); (err != nil) != c.refused {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.refused {
			if err := s.promoted(order{Do: "promote"}, nil); err == nil || !strings.Contains(err.Error(), "-stopped") || h.promoted {
				t.Errorf("%s: the order is answered by %v, and taken: %v", c.name, err, h.promoted)
			}
		}
	}
}

// A guardian that is ended has its guest held for good. Where the QEMU dies after that, nobody is left to give it back.
func TestAGuestWhoseGuardianWasEndedIsGoneOnWithWhenAnOperatorSaysThatItDoesNotRun(t *testing.T) {
	arb := failover.NewStoreArbiter(new(failovertest.Store))
	held, err := arb.Acquire(t.Context(), failover.Claim{Holder: "there", Token: "other", Note: "without a guardian"})
	if err != nil {
		t.Fatal(err)
	}
	for _, ordered := range []bool{false, true} { // the second one after an order without it
		var out printed
		p := &printer{terminal: terminal{out: &out, err: &out}}
		s := &standbyRun{p: p, heard: newHeard(p), arbiterOf: arb, token: "here"}
		s.guest, s.tries = standby.New(standby.Config{}), &rehearsals{s: s}
		s.arbiter, s.holder = "store:x", "here"
		s.heard.begin(func() (epoch, bytes uint64) { return 0, 0 })
		s.heard.update(func() { s.heard.generation, s.heard.promoted = held.Generation, ordered })
		asked := make(chan error, 1)
		go func() { asked <- s.arbitrate(t.Context(), colo.Claim{}) }()
		eventually(t, "nobody says who has the guest", func() bool { return out.count("there has the guest there without a deadline (without a guardian)") > 0 })
		if words := s.standing().Decision; !strings.HasPrefix(words, "ask the arbiter") {
			t.Errorf("the status says %q", words)
		}
		if s.granted.Generation > 0 {
			t.Fatal("it goes on beside a guest that may run")
		}
		s.heard.update(func() { s.heard.promoted, s.heard.assured = true, true })
		if err := <-asked; err != nil || s.granted.Generation != held.Generation+1 {
			t.Fatalf("granted %d after %d: %v", s.granted.Generation, held.Generation, err)
		}
		if err := arb.Release(t.Context(), s.granted, "the next"); err != nil {
			t.Fatal(err)
		}
		if held, err = arb.Acquire(t.Context(), failover.Claim{Holder: "there", Token: "other", After: s.granted.Generation, Note: "without a guardian"}); err != nil {
			t.Fatal(err)
		}
	}
}
