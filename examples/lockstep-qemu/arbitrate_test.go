package main

import (
	"errors"
	"testing"

	"github.com/gocolo/lockstep/colo"
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
