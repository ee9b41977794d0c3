package main

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// A QEMU whose main loop is kept by something answers what is asked out of band only. It cannot be told to
// run its guest on without a standby, and the copy of the standby must be as good as before for as long as that
// lasts: it is killed next.
func TestTheCopyOfAGuestWhoseQEMUAnswersOutOfBandOnlyStaysTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			name string
			oob  bool // it answers that
			ends func(q *fakeQEMU, cancel context.CancelFunc)
			want standby.GuardInput // 0: nothing is decided
			says string
		}{
			{"it is killed", true, func(_ *fakeQEMU, cancel context.CancelFunc) { cancel() }, 0, takesNoneIn},
			{"it answers after a minute", true, func(q *fakeQEMU, _ context.CancelFunc) { q.goesOn() }, standby.Granted, takesNoneIn},
			{"it was stopped", false, func(q *fakeQEMU, _ context.CancelFunc) { q.goesOn() }, standby.Granted, takesNone},
			{"it was stopped, and is killed", false, func(_ *fakeQEMU, cancel context.CancelFunc) { cancel() }, 0, takesNone},
		} {
			near, far := net.Pipe()
			q := &fakeQEMU{hangsAt: 2, hung: make(chan struct{}), oob: c.oob, status: "colo"} // once it has greeted and agreed
			served := make(chan struct{})
			go func() { defer close(served); q.serve(far) }()
			arb := failover.NewStoreArbiter(new(failovertest.Store))
			g := alone(arb)
			var said printed
			g.p.terminal = terminal{out: &said, err: &said}
			var err error
			if g.m, err = qmp.NewClientOOB(t.Context(), near); err != nil {
				t.Fatal(err)
			}
			g.disks = []mirrored{{"ide0", "disk0"}}
			if err := g.hold(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			g.says(standby.Asking, "")
			ctx, cancel := context.WithCancel(t.Context())
			asked := make(chan struct{})
			go func() { defer close(asked); g.answered(ctx, "the guest has stood for a while") }()
			time.Sleep(time.Minute)
			synctest.Wait()
			if r, err := arb.Record(t.Context()); err != nil || r.Generation != 1 || g.generation != 1 {
				t.Errorf("%s: the arbiter has generation %d, the guardian %d, %v", c.name, r.Generation, g.generation, err)
			}
			if n := said.count(c.says + " (): nothing is decided until it does. If it hangs, kill it"); n != 1 {
				t.Errorf("%s: it was said %d times that it hangs", c.name, n)
			}
			g.mu.Lock()
			if waits := g.waits(); waits != c.says+"; if it hangs, kill it, and the guest goes on here" {
				t.Errorf("%s: the standby is told %q", c.name, waits)
			}
			g.mu.Unlock()
			if yanked := slices.Contains(q.heard(), "yank"); yanked != c.oob {
				t.Errorf("%s: its connections to the standby were ended: %t", c.name, yanked)
			}
			ended := make(chan struct{})
			go func() { defer close(ended); c.ends(q, cancel) }() // of several answers nobody may wait for the last
			select {
			case n := <-g.told:
				if c.want == 0 || n.in != c.want {
					t.Errorf("%s: %v", c.name, n.in)
				}
			case <-asked:
				if c.want != 0 {
					t.Errorf("%s: nothing is decided", c.name)
				}
			case <-time.After(time.Minute):
				t.Errorf("%s: nothing has come of it", c.name)
			}
			cancel()
			<-asked
			g.free()
			near.Close()
			<-served
			<-ended
		}
	})
}

// What the main loop waits for is ended first: a QEMU whose standby keeps it is none that hangs.
func TestAQEMUThatItsStandbyKeepsWaitingIsAskedAgainWhenItsConnectionsAreEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		q := &fakeQEMU{hangsAt: 2, hung: make(chan struct{}), oob: true, status: "colo", kept: true}
		served := make(chan struct{})
		go func() { defer close(served); q.serve(far) }()
		g := alone(nil)
		var said printed
		g.p.terminal = terminal{out: &said, err: &said}
		var err error
		if g.m, err = qmp.NewClientOOB(t.Context(), near); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if !g.takesOrders(t.Context()) {
			t.Error("it takes no orders")
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("that has taken %v", took)
		}
		if n := said.count("hangs"); n != 0 {
			t.Errorf("it was taken for one that hangs:\n%s", said.b.String())
		}
		near.Close()
		<-served
	})
}

// A connection that ends while its QEMU is asked is none of the answers.
func TestAQEMUWhoseMonitorIsClosedHasNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		q := &fakeQEMU{hangsAt: 2, hung: make(chan struct{}), oob: true}
		served := make(chan struct{})
		go func() { defer close(served); q.serve(far) }()
		g := alone(nil)
		var err error
		if g.m, err = qmp.NewClientOOB(t.Context(), near); err != nil {
			t.Fatal(err)
		}
		go func() { <-q.hung; near.Close() }()
		if err := g.heeds(t.Context(), g.m, make(map[string]bool), new(silence)); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("it has answered: %v", err)
		}
		<-served
	})
}
