package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/socket"
)

// fenced is a guardian that asks a QEMU for a sign of life, which hangs once it has greeted and agreed.
type fenced struct {
	*guardian
	q    *fakeQEMU
	said printed
	runs []time.Duration // when its -fence was run, since it was told of the hang
}

// fencing has f wait for the QEMU, with a -fence that does what fence does each time.
func fencing(t *testing.T, oob bool, fence func(f *fenced) error) *fenced {
	t.Helper()
	near, far := net.Pipe()
	f := &fenced{guardian: alone(failover.NewStoreArbiter(new(failovertest.Store))),
		q: &fakeQEMU{hangsAt: 2, hung: make(chan struct{}), oob: oob, status: "colo"}}
	served := make(chan struct{})
	go func() { defer close(served); f.q.serve(far) }()
	f.p.terminal = terminal{out: &f.said, err: &f.said}
	var err error
	if f.m, err = qmp.NewClientOOB(t.Context(), near); err != nil {
		t.Fatal(err)
	}
	if err := f.hold(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	f.qmp = filepath.Join("nobody", "listens") // and so it has ended
	began := time.Now()
	f.fence, f.fenceAfter = "end it", 30*time.Second
	f.command = func(_ context.Context, command string, _ ...string) error {
		if command != f.fence {
			t.Errorf("%q was run", command)
		}
		f.runs = append(f.runs, time.Since(began))
		return fence(f)
	}
	f.silence, f.sent = time.Hour, 1
	f.answeredBeat(standby.ControlMessage{Say: standby.SaidBeat, Seq: 1, Generation: 1, Epoch: 7})
	f.says(standby.Asking, "")
	t.Cleanup(func() { f.free(); near.Close(); <-served })
	return f
}

// A QEMU that hangs is ended by the operator's command, and the standby may go on then; nobody has asked for the
// guest's next generation before, which would make the copy of the standby old.
func TestAQEMUThatHangsIsEndedByTheFence(t *testing.T) {
	for name, oob := range map[string]bool{"it answers out of band": true, "it answers nothing": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := fencing(t, oob, func(*fenced) error { return nil })
				asked := make(chan struct{})
				go func() { defer close(asked); f.answered(t.Context(), "the guest has stood for a while") }()
				n := <-f.told
				<-asked
				if n.in != standby.Died || len(f.runs) != 1 || f.runs[0] < f.fenceAfter || f.runs[0] > f.fenceAfter+5*time.Second {
					t.Errorf("%v, the fence was run after %v", n.in, f.runs)
				}
				if r, err := f.arb.Record(t.Context()); err != nil || r.Generation != 1 {
					t.Errorf("the arbiter has generation %d, %v", r.Generation, err)
				}
				if f.owing() != nil {
					t.Error("it is waited for")
				}
			})
		})
	}
}

// The end of a QEMU whose guest nobody else has is the guest's: a standby that has lost its copy, has one of
// before, has none yet or is silent takes nothing over.
func TestAQEMUThatHangsIsNotEndedByTheFenceWhereTheStandbyHasNoCopy(t *testing.T) {
	for name, m := range map[string]standby.ControlMessage{
		"it waits for a guest":       {Seq: 1, Generation: 1, Epoch: 7, Ready: true},
		"it has an older one":        {Seq: 1, Generation: 0, Epoch: 7},
		"it has no checkpoint yet":   {Seq: 1, Generation: 1},
		"it has answered long ago":   {Seq: 1, Generation: 1, Epoch: 7},
		"its connection has ended":   {},
		"it is there after a minute": {Seq: 1, Generation: 1, Epoch: 7},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := fencing(t, true, func(*fenced) error { return nil })
				f.copied = time.Time{}
				comes := name == "it is there after a minute"
				if !comes {
					f.answeredBeat(m)
				}
				if name == "it has answered long ago" {
					f.silence = 5 * time.Second
				}
				ctx, cancel := context.WithCancel(t.Context())
				asked := make(chan struct{})
				go func() { defer close(asked); f.answered(ctx, "the guest has stood for a while") }()
				time.Sleep(time.Minute)
				synctest.Wait()
				if len(f.runs) != 0 || f.said.count("-fence is not run: the standby does not answer") != 1 {
					t.Errorf("it was run after %v:\n%s", f.runs, f.said.b.String())
				}
				if comes {
					f.answeredBeat(m)
					if n := <-f.told; n.in != standby.Died {
						t.Errorf("%v", n.in)
					}
				}
				cancel()
				<-asked
			})
		})
	}
}

// A fence that fails decides nothing, nor does one that was not needed.
func TestAQEMUThatTheFenceDoesNotEndMayStillAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fencing(t, true, func(f *fenced) error {
			if len(f.runs) == 2 {
				f.q.goesOn()
			}
			return errors.New("-fence: it is still there")
		})
		go f.answered(t.Context(), "the guest has stood for a while")
		if n := <-f.told; n.in != standby.Granted {
			t.Errorf("%v", n.in)
		}
		if len(f.runs) != 2 || f.runs[1]-f.runs[0] < f.fenceAfter {
			t.Errorf("it was run after %v", f.runs)
		}
		if n := f.said.count("-fence: it is still there. Nothing is decided; it is run again"); n != 2 {
			t.Errorf("that was said %d times:\n%s", n, f.said.b.String())
		}
	})
}

// A command that says that the QEMU has ended, while its process is there, is not believed: two guests would run.
func TestAFenceThatLeavesTheQEMUListeningIsNotBelieved(t *testing.T) {
	t.Parallel()
	at := filepath.Join(socket.Dir(t), "qmp")
	l, err := net.Listen("unix", at) // nobody accepts, as where it was stopped
	if err != nil {
		t.Fatal(err)
	}
	g := alone(nil)
	g.qmp = "unix:" + at
	if !g.listens(t.Context()) {
		t.Error("it has ended")
	}
	l.Close()
	if g.listens(t.Context()) {
		t.Error("it has not ended")
	}
	synctest.Test(t, func(t *testing.T) {
		l, err := net.Listen("unix", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		g := alone(nil)
		g.qmp, g.fence = "unix:"+at, "do nothing"
		g.command = func(context.Context, string, ...string) error { return nil }
		if err := g.runFence(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "somebody still listens at "+g.qmp) {
			t.Errorf("%v", err)
		}
	})
}

// A guest that is to be stopped for the standby is ended by the fence as well, and the standby is told that it was
// stopped, since it waits for that word.
func TestAQEMUThatHangsWhileItIsStoppedForTheStandbyIsEndedByTheFence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fencing(t, false, func(*fenced) error { return nil })
		f.guard = standby.NewGuard(standby.GuardConfig{Stall: time.Hour, Silence: time.Hour}, standby.Protected, time.Now())
		ended := make(chan error, 1)
		go func() {
			status, err := f.run(t.Context())
			if status != exitUnfenced {
				err = fmt.Errorf("exit status %d: %w", status, err)
			}
			ended <- err
		}()
		f.tell(standby.StandbyWants, "")
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "the guest is the standby's") {
			t.Error(err)
		}
		f.all.Wait()
		if f.word.Say != standby.SaidStopped || len(f.runs) != 1 {
			t.Errorf("the standby is told %q, the fence was run after %v", f.word.Say, f.runs)
		}
		if r, err := f.arb.Record(t.Context()); err != nil || r.Held() {
			t.Errorf("the arbiter has %+v, %v", r, err)
		}
	})
}

// A QEMU that dies while it is being stopped for a standby does not run its guest any more: a standby that is not
// told so waits for the word of a guardian that has ended.
func TestAStandbyIsToldOfAGuestWhoseQEMUDiesWhileItIsBeingStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fencing(t, false, func(*fenced) error { return errors.New("it is not run") })
		f.guard = standby.NewGuard(standby.GuardConfig{Stall: time.Hour, Silence: time.Hour}, standby.Protected, time.Now())
		ended := make(chan int, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { status, _ := f.run(ctx); ended <- status }()
		f.tell(standby.StandbyWants, "")
		time.Sleep(5 * time.Second)
		f.tell(standby.Died, "it was killed")
		if status := <-ended; status != exitUnfenced {
			t.Errorf("exit status %d", status)
		}
		cancel()
		f.all.Wait()
		if f.word.Say != standby.SaidStopped || len(f.runs) != 0 {
			t.Errorf("the standby is told %q, the fence was run after %v", f.word.Say, f.runs)
		}
		if r, err := f.arb.Record(t.Context()); err != nil || r.Held() {
			t.Errorf("the arbiter has %+v, %v", r, err)
		}
	})
}

// A guardian that is told to end while its fence is under way waits for it: the guest that it ends would run nowhere,
// since a guardian that leaves has nobody take its guest.
func TestAGuardianThatIsEndedWhileItsFenceIsUnderWayGivesTheGuestToTheStandby(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := fencing(t, false, func(*fenced) error {
			cancel()
			time.Sleep(time.Second)
			return nil
		})
		f.guard = standby.NewGuard(standby.GuardConfig{Stall: time.Second, Silence: time.Hour}, standby.Protected, time.Now())
		if status, err := f.run(ctx); status != exitGuest {
			t.Errorf("exit status %d, %v", status, err)
		}
		f.all.Wait()
		if r, err := f.arb.Record(t.Context()); err != nil || r.Held() {
			t.Errorf("the arbiter has %+v, %v", r, err)
		}
	})
}

func TestAFenceOfAGuardianThatCouldTellNobodyIsRefused(t *testing.T) {
	for _, c := range []struct{ wrong, args string }{
		{"are for -stay", "-fence true"},
		{"-fence wants -control", "-stay -fence true"},
		{"-fence-after is a second or more", "-stay -insecure -control there:1 -fence true -fence-after 10ms"},
	} {
		p := start(t, append([]string{"protect", "-qmp", "none", "-to", "tcp:there:1"}, strings.Fields(c.args)...)...)
		p.ends(exitUsage)
		if said := p.errors(); !strings.Contains(said, c.wrong) {
			t.Errorf("%s: %s", c.args, said)
		}
	}
}

// The QEMU of a guest hangs for good: it is stopped here. Its operator's fence kills it, and the guest goes on at the
// standby.
func TestAQEMUThatHangsIsKilledByTheFenceAndTheGuestGoesOn(t *testing.T) {
	t.Parallel()
	pid := filepath.Join(qemutest.Dir(t), "pid")
	g := guard(t, nil, []string{"-stall", "5s", "-fence", "kill -9 $(cat " + pid + ")", "-fence-after", "2s"}, "-pidfile", pid)
	seen := qemutest.Serial(g.vm.Dir)
	g.standby.further(3) // which are of after that
	stop(g.vm)
	g.guardian.ends(exitGuest)
	if said := g.guardian.errors(); strings.Contains(said, "Nothing is decided; ") {
		t.Error(said)
	}
	g.guardian.object("fenced", 0)
	g.runsThere(seen[len(seen)-1])
}
