package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// away is an arbiter that can be put out of reach.
type away struct {
	failover.Arbiter
	gone atomic.Bool
}

func (a *away) Renew(ctx context.Context, g failover.Grant, note string) (failover.Grant, error) {
	if a.gone.Load() {
		return failover.Grant{}, errors.New("no route to host")
	}
	return a.Arbiter.Renew(ctx, g, note)
}

// printed keeps what a guardian prints.
type printed struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (p *printed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.b.Write(b)
}

func (p *printed) count(words string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Count(p.b.String(), words)
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// What the guardian sees of a guest that it has stopped itself is no operator's doing, also
// where it sees that when it has just let the guest go on.
func TestAGuestThatStoodForTheArbiterGoesOnWhenThatIsBack(t *testing.T) {
	t.Parallel()
	m := newFakeMonitor(t)
	g := guarding(t, m)
	out := new(printed)
	arb := &away{Arbiter: failover.NewStoreArbiter(new(failovertest.Store))}
	g.p = &printer{terminal: terminal{out: out, err: out}}
	g.arb, g.told, g.term = arb, make(chan news, 64), 600*time.Millisecond
	if err := g.hold(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	g.guard = standby.NewGuard(standby.GuardConfig{Stall: time.Hour, Silence: time.Hour}, standby.Protected, time.Now())
	ctx, stop := context.WithCancel(t.Context())
	defer g.all.Wait()
	defer stop()
	g.all.Go(func() { g.watch(ctx) })
	g.all.Go(func() { g.run(ctx) })
	times := 2
	if testing.Short() {
		times = 1
	}
	for i := range times {
		arb.gone.Store(true)
		eventually(t, "the guest runs on without a grant", func() bool { return !m.runs() })
		seen := m.asked()
		eventually(t, "nobody looks at it", func() bool { return m.asked() > seen+3 })
		arb.gone.Store(false)
		eventually(t, "the guest stands though the arbiter is back", m.runs)
		seen = m.asked()
		eventually(t, "nobody looks at it", func() bool { return m.asked() > seen+3 })
		if out.count("an operator has stopped") > 0 {
			t.Fatalf("time %d: the guardian's own stop was taken for an operator's:\n%s", i, out.b.String())
		}
	}
}

// A guardian that was stopped for longer than its term finds that when it goes on, and at once that the arbiter can be asked. What was
// seen of the guest before, and between its own stop and cont, waits to be heard then.
func TestWhatWasSeenOfAGuestBeforeItWasRunAgainIsNoOperatorsDoing(t *testing.T) {
	t.Parallel()
	m := newFakeMonitor(t)
	g := guarding(t, m)
	out := new(printed)
	g.p = &printer{terminal: terminal{out: out, err: out}}
	g.guard = standby.NewGuard(standby.GuardConfig{Stall: time.Hour, Silence: time.Hour}, standby.Protected, time.Now())
	ctx, stop := context.WithCancel(t.Context())
	defer g.all.Wait()
	defer stop()
	first := time.Now()
	g.step(ctx, news{in: standby.HoldOver})
	if m.runs() {
		t.Fatal("it runs without a grant")
	}
	between := time.Now()
	g.step(ctx, news{in: standby.HoldBack})
	g.step(ctx, news{in: standby.Runs, at: first})
	g.step(ctx, news{in: standby.OperatorStop, at: between})
	if !m.runs() || out.count("an operator has stopped") > 0 {
		t.Fatalf("it runs: %v\n%s", m.runs(), out.b.String())
	}
	g.step(ctx, news{in: standby.Runs, at: time.Now()})
	g.step(ctx, news{in: standby.OperatorStop, at: time.Now()})
	if out.count("an operator has stopped") != 1 {
		t.Error("an operator's stop is not noticed any more")
	}
}

func TestAGuestIsNotLookedAtForAnOperatorUntilItsContIsAnswered(t *testing.T) {
	t.Parallel()
	m := newFakeMonitor(t)
	g := guarding(t, m)
	if err := g.act(t.Context(), standby.StopGuest, ""); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	during := 0
	m.mu.Lock()
	m.continues = func() { g.set(func() { during = g.settling }) }
	m.mu.Unlock()
	if err := g.act(t.Context(), standby.ContinueGuest, ""); err != nil || !m.runs() {
		t.Fatalf("it runs: %t, %v", m.runs(), err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if during != 1 || g.settling != 0 || !before.Before(g.settled) {
		t.Errorf("expected %d times meanwhile and %d times afterwards, settled after that: %t", during, g.settling, before.Before(g.settled))
	}
}

// A QEMU 7.2 that is told to continue in the midst of a checkpoint deadlocks.
func TestAGuestInCOLOIsRunAgainByACheckpoint(t *testing.T) {
	t.Parallel()
	for _, leaves := range []bool{false, true} {
		m := newFakeMonitor(t)
		m.colo, m.leaves = true, leaves
		g := guarding(t, m)
		if err := g.act(t.Context(), standby.StopGuest, ""); err != nil || m.runs() {
			t.Fatalf("it runs: %t, %v", m.runs(), err)
		}
		if err := g.act(t.Context(), standby.ContinueGuest, ""); err != nil {
			t.Fatal(err)
		}
		g.all.Wait()
		m.mu.Lock()
		if !m.running || m.deadly > 0 {
			t.Errorf("it leaves COLO: %t; it runs: %t, and was told to in COLO %d times", leaves, m.running, m.deadly)
		}
		m.mu.Unlock()
	}
}

// A guest that is reset while a checkpoint holds it is in prelaunch until QEMU runs it at the end of that. One that is
// reset when it was stopped, or has never run, is in prelaunch until somebody runs it.
func TestAGuestThatIsResetWithinACheckpointIsNoOperatorsDoing(t *testing.T) {
	t.Parallel()
	m := newFakeMonitor(t)
	g := guarding(t, m)
	g.told, g.over = make(chan news, 1), make(chan struct{})
	for i, c := range []struct {
		state string
		want  standby.GuardInput
	}{
		{"prelaunch", standby.OperatorStop},
		{"running", standby.Runs},
		{"prelaunch", standby.Stands},
		{"prelaunch", standby.Stands},
		{"colo", standby.Stands},
		{"prelaunch", standby.Stands},
		{"running", standby.Runs},
		{"paused", standby.OperatorStop},
		{"prelaunch", standby.OperatorStop},
		{"colo", standby.Stands},
		{"running", standby.Runs},
		{"prelaunch", standby.Stands},
	} {
		m.mu.Lock()
		m.state = c.state
		m.mu.Unlock()
		if !g.look(t.Context(), g.monitor()) {
			t.Fatalf("look %d: it is not to be asked again", i)
		}
		if n := <-g.told; n.in != c.want {
			t.Errorf("look %d, in %s: %v, want %v", i, c.state, n.in, c.want)
		}
	}
}
