package main

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/standby"
)

// A fence of a standby that does not end says nothing of the primary. It counts as one that has failed, and the operator
// decides; the standby heard nobody for as long as it ran.
func TestAFenceOfAStandbyThatDoesNotEndHasFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out printed
		p := &printer{terminal: terminal{out: &out, err: &out}}
		s := &standbyRun{p: p, heard: newHeard(p)}
		s.fence, s.takeover = "a switch of power that does not answer", "ask"
		s.command = func(ctx context.Context, _ string, _ ...string) error {
			<-ctx.Done()
			return fmt.Errorf("-fence: it has not ended by itself: %w", context.Cause(ctx))
		}
		s.heard.begin(func() (epoch, bytes uint64) { return 0, 0 })
		s.heard.update(func() { s.heard.promoted, s.heard.presence = true, standby.GuardianGone })
		asked := make(chan error, 1)
		go func() { asked <- s.arbitrate(t.Context(), colo.Claim{Ordered: true}) }()
		time.Sleep(fenceLimit + time.Second)
		synctest.Wait()
		if out.count("undecided   the fence has failed") == 0 || out.count("it was given 1m0s") == 0 {
			t.Errorf("after %v it has printed %q", fenceLimit, out.b.String())
		}
		s.heard.update(func() { s.heard.assured = true }) // by promote -stopped
		if err := <-asked; err != nil {
			t.Error(err)
		}
	})
}
