package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/cli"
)

// guardian stays with a guest: protect -stay. guard decides what it does; the guardian
// watches the QEMU and carries the decisions out. All of it but the fields under mu
// belongs to the goroutine in run.
type guardian struct {
	*protectOptions
	p     *printer
	guard *standby.Guard
	told  chan news     // inputs for guard, to run
	over  chan struct{} // closed when run returns
	all   sync.WaitGroup

	arb   failover.Arbiter // nil: none
	token string
	creds *certificates // of the control channel

	keeper *failover.Keeper // of a guest that a standby follows; nil: there is no deadline
	drop   context.CancelFunc

	releasing sync.Mutex // held while the copies of the disks are given up
	parting   sync.Mutex // held while the QEMU is told to go on without its standby

	command fencer // runs -fence

	resuming sync.Mutex // held while the guest is told to run again after a moment
	halted   bool       // the guard has stopped the guest since the call of begins; under resuming

	mu         sync.Mutex
	m          *qmp.Client // nil: not connected
	generation uint64
	link       *standby.Control
	word       standby.ControlMessage // what a standby that comes back is told
	protects   bool                   // the standby may answer for the guest
	got        time.Time              // when it last received more of a checkpoint, see received
	dead       bool                   // the guest's QEMU has ended, and answers nothing that it still owes
	copied     time.Time              // when the standby last said that it has a copy of this generation; zero: it does not answer
	fenced     bool                   // by -fence
	fencing    chan struct{}          // closed when the -fence that is under way has ended; nil: none is
	stopping   bool                   // the guest is being stopped for the standby, which has not been told yet
	exited     bool                   // COLO_EXIT since the last migrate
	hangs      string                 // how the QEMU has taken no order for a while, see takesOrders
	ran        bool                   // the guest has been seen to run since it was last seen stopped
	still      bool                   // an operator wants the guest to stand, and has it
	settling   int                    // what stops it, and runs it again, by itself: see expectStop
	settled    time.Time              // when that was over
	delivered  uint64                 // the sequence number of the last beat that was answered
	sent       uint64                 // and of the last that was sent
	beats      [64]time.Time          // when they were, by number
	cycle      once                   // what was told of a protection since there was something else to tell
	status     guardianStatus
}

// news is an input for guard, and the reason of it.
type news struct {
	in  standby.GuardInput
	why string
	at  time.Time // when the guest was seen so; zero: it is not about that
}

// tick is how often the guardian looks at the guest.
const tick = 50 * time.Millisecond

// stayed does what protect -stay does. It returns when the guest has ended, or runs on another
// host.
func (o *protectOptions) stayed(ctx context.Context, p *printer) (int, error) {
	g := &guardian{protectOptions: o, p: p, told: make(chan news, 64), over: make(chan struct{}), generation: 1, token: tokenOf(o.qmp)}
	o.minded = new(once)
	o.exited = func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.exited }
	o.expectStop, o.begins, o.permit, o.current = g.expectStop, g.begins, g.permit, g.monitor
	arb, end, err := openArbiter(o.arbiter, p)
	if err != nil {
		return exitFailed, err
	}
	defer end()
	g.arb = arb
	if o.controlTLS != "" {
		if g.creds, err = newCertificates("-control-tls", o.controlTLS, clientCreds(hostOf(o.control)), p); err != nil {
			return exitFailed, err
		}
	}
	if err := g.connect(ctx); err != nil {
		return exitFailed, err
	}
	defer func() { g.monitor().Close() }()
	defer p.tellSilence("the QEMU at "+o.qmp, g.owing, o.slowness())()
	state, err := g.found(ctx)
	if err != nil {
		return exitFailed, mute(o.qmp, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer g.all.Wait()
	defer cancel()
	if o.state != "" {
		if err := os.MkdirAll(o.state, 0o700); err != nil {
			return exitFailed, cli.Opening("-state", "", err)
		}
		l, err := listenForOrders(o.state, "guardian")
		if errors.Is(err, syscall.EADDRINUSE) {
			return exitFailed, inUse(o.state, "guardian")
		}
		if err != nil {
			return exitFailed, fmt.Errorf("-state: %w", err)
		}
		g.all.Go(func() { takeOrders(ctx, l, nil, g.report) })
	}
	if o.http != "" {
		if err := (&page{role: "guardian", status: g.report, metrics: g.metrics}).begin(ctx, &g.all, o.http, p); err != nil {
			return exitFailed, err
		}
	}
	g.guard = standby.NewGuard(standby.GuardConfig{Stall: o.stall, Silence: o.silence}, state, time.Now())
	g.all.Go(func() { g.watch(ctx) })
	if o.control != "" {
		g.all.Go(func() { g.talk(ctx) })
		g.all.Go(func() { g.dues(ctx) })
	}
	notify("READY=1")
	return g.run(ctx)
}

// connect dials the monitor.
func (g *guardian) connect(ctx context.Context) error {
	m, _, err := dialMonitor(ctx, g.qmp, 2*g.slowness(), true)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.m = m
	return nil
}

func (g *guardian) monitor() *qmp.Client {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.m
}

// owing returns the monitor if its QEMU may still answer what it owes an answer to; nil otherwise.
func (g *guardian) owing() *qmp.Client {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead {
		return nil
	}
	return g.m
}

// tell waits until run has room for the news.
func (g *guardian) tell(in standby.GuardInput, why string) {
	g.tellWhile(context.Background(), in, why)
}

// tellSeen does what tell does, of a guest that was seen running, or stopped, at a time.
func (g *guardian) tellSeen(in standby.GuardInput, at time.Time) {
	select {
	case g.told <- news{in: in, at: at}:
	case <-g.over:
	}
}

// outdated reports whether n tells how the guest was seen before this program ran it again, which may say
// the contrary of how it is: what was told before waits for run.
func (g *guardian) outdated(n news) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !n.at.IsZero() && n.at.Before(g.settled)
}

// tellWhile does what tell does, until ctx ends: for a goroutine for which run itself waits
// after it has ended ctx.
func (g *guardian) tellWhile(ctx context.Context, in standby.GuardInput, why string) {
	select {
	case g.told <- news{in: in, why: why}:
	case <-g.over:
	case <-ctx.Done():
	}
}

// run takes news, and has step act on them, until the guardian leaves the guest.
func (g *guardian) run(ctx context.Context) (int, error) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	defer g.free()
	defer close(g.over) // nobody waits to tell something any more
	held := true
	for {
		in := news{in: standby.Tick}
		select {
		case in = <-g.told:
		case <-ticker.C:
			if g.control == "" {
				g.step(ctx, news{in: standby.StandbyThere})
			}
			notify("WATCHDOG=1")
		case <-ctx.Done():
			if !g.lastWord() {
				return exitInterrupted, g.leave()
			}
			var cancel context.CancelFunc // the arbiter can be told, the standby no more
			ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), fenceGrace)
			defer cancel()
			in = g.fencedDeath()
		}
		if now := g.holds(); now != held {
			held = now
			if held {
				g.step(ctx, news{in: standby.HoldBack})
			} else {
				g.step(ctx, news{in: standby.HoldOver})
			}
		}
		g.step(ctx, in)
		switch g.guard.State() {
		case standby.Ended:
			return g.ended(ctx, in)
		case standby.StoodDown:
			if in.in == standby.Died || in.in == standby.PlannedEnd {
				g.endedStopping(ctx, in)
				return exitUnfenced, errors.New("the guest's QEMU, which was stopped, has ended; the guest is the standby's")
			}
		}
	}
}

// step gives the guard an input and does what it says.
func (g *guardian) step(ctx context.Context, n news) {
	if g.outdated(n) {
		return
	}
	was := g.guard.State()
	do, why := g.guard.Step(time.Now(), n.in)
	if n.why != "" && why != "" {
		why += ": " + n.why
	}
	state := g.guard.State()
	if state != was || why != "" {
		g.says(state, why)
		// A standby that is not there, say, is found so again and again.
		again := state == standby.Protecting || state == standby.Unprotected
		if text := fmt.Sprintf("%-11s %s", state, why); !again || g.cycle.first(text) {
			g.p.say("%s", text)
		}
		if !again {
			g.cycle.again()
		}
		g.p.object(map[string]any{"guardian": map[string]any{"state": state.String(), "was": was.String(), "why": why}})
		notify("STATUS=" + state.String() + ": " + why)
	}
	for i, a := range do {
		err := g.act(ctx, a, why)
		if err != nil && a == standby.StopGuest && i+1 < len(do) && do[i+1] == standby.TellStopped {
			// Nobody is told that the guest has stopped before it has.
			g.set(func() { g.stopping = true })
			g.all.Go(func() { g.stopThenTell(ctx, why) })
			return
		}
		if err != nil && ctx.Err() == nil {
			g.p.warn("%v: %v", a, err)
			g.p.object(map[string]any{"guardian": map[string]any{"action": a.String(), "error": err.Error()}})
		}
	}
}

// act carries out one action. It waits for the monitor, a second or two, and for nothing
// else.
func (g *guardian) act(ctx context.Context, a standby.GuardAction, why string) error {
	switch a {
	case standby.Protect:
		g.all.Go(func() { g.protectAgain(ctx) })
	case standby.AskGrant:
		g.all.Go(func() { g.answered(ctx, why) })
	case standby.LostHeartbeat:
		return g.rescue(ctx)
	case standby.StopGuest:
		return g.halt(ctx)
	case standby.ContinueGuest:
		seen := g.expectStop() // what was seen of the guest before it ran is not an operator's doing
		err := g.unhalt(ctx)
		if answered(err) {
			seen()
			return err
		}
		g.all.Go(func() { // nothing else makes the guest run
			defer seen()
			g.resume(ctx, g.monitor())
		})
		return err
	case standby.HoldStill:
		g.set(func() { g.still = true; g.settling++ })
		g.all.Go(func() { g.holdStill(ctx) })
	case standby.TellAlone:
		g.send(standby.SaidAlone, why)
	case standby.TellStopped:
		g.stopped(why)
	case standby.TellPlanned:
		g.send(standby.SaidPlanned, why)
	case standby.TellDead:
		g.send(standby.SaidDead, why)
	}
	return nil
}

func (g *guardian) set(fn func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	fn()
}

// order gives the QEMU a command and does not wait for long.
func (g *guardian) order(ctx context.Context, command string, args any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return g.monitor().Do(ctx, command, args, nil)
}
