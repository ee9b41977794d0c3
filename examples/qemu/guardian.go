package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/failover"
)

// guardian stays with a guest: protect -stay. What it does is decided by guard;
// this is its eyes and hands. All of it but the fields under mu belongs to the
// goroutine in run.
type guardian struct {
	*protectOptions
	p     *printer
	guard *standby.Guard
	told  chan news     // what has happened
	over  chan struct{} // closed when run returns
	all   sync.WaitGroup

	arb   failover.Arbiter // nil: none
	token string
	creds *tls.Config // of the control channel

	keeper *failover.Keeper // of a guest that a standby follows; nil: there is no deadline
	drop   context.CancelFunc

	releasing sync.Mutex // held while the copies of the disks are given up

	resuming sync.Mutex // held while the guest is told to run again after a moment
	halted   bool       // the guard has stopped it since begins; under resuming

	mu         sync.Mutex
	m          *qmp.Client // nil: not connected
	generation uint64
	link       *standby.Control
	word       standby.ControlMessage // what a standby that comes back is told
	protects   bool                   // the standby may answer for the guest
	exited     bool                   // COLO_EXIT since the last migrate
	still      bool                   // an operator wants the guest to stand, and has it
	settling   int                    // what stops it, and runs it again, by itself: see ours
	settled    time.Time              // when that was over
	delivered  uint64                 // the sequence number of the last beat that was answered
	sent       uint64                 // and of the last that was sent
	beats      [64]time.Time          // when they were, by number
	status     guardianStatus
}

type news struct {
	in  standby.GuardInput
	why string
}

type guardianStatus struct {
	State      string `json:"state"`
	Why        string `json:"why"`
	Generation uint64 `json:"generation"`
	Standby    bool   `json:"standby"`    // answers
	Checkpoint uint64 `json:"checkpoint"` // the standby's last
	Paused     bool   `json:"paused"`     // by an operator, and held so
	Rescued    int    `json:"rescued"`    // how often the guest was told to run on
}

// tick is how often the guardian looks at the guest.
const tick = 50 * time.Millisecond

// stayed is protect -stay: it returns when the guest has ended, or is elsewhere.
func (o *protectOptions) stayed(ctx context.Context, p *printer) (int, error) {
	g := &guardian{protectOptions: o, p: p, told: make(chan news, 64), over: make(chan struct{}), generation: 1, token: tokenOf(o.qmp)}
	o.exited = func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.exited }
	o.ours, o.begins, o.permit, o.current = g.ours, g.begins, g.permit, g.monitor
	var err error
	if g.arb, err = openArbiter(o.arbiter); err != nil {
		return exitFailed, err
	}
	if o.controlTLS != "" {
		if g.creds, err = clientCreds(o.controlTLS, hostOf(o.control)); err != nil {
			return exitFailed, err
		}
	}
	if err := g.connect(ctx); err != nil {
		return exitFailed, err
	}
	defer func() { g.monitor().Close() }()
	state, err := g.found(ctx)
	if err != nil {
		return exitFailed, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer g.all.Wait()
	defer cancel()
	if o.state != "" {
		if err := os.MkdirAll(o.state, 0o700); err != nil {
			return exitFailed, err
		}
		l, _, err := listen(socketIn(o.state, "guardian"))
		if err != nil {
			return exitFailed, err
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
	}
	notify("READY=1")
	return g.run(ctx)
}

// connect dials the monitor.
func (g *guardian) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	network, address := qmp.Split(g.qmp)
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	m, err := qmp.NewClientOOB(ctx, conn)
	if err != nil {
		return fmt.Errorf("qmp %s: %w", g.qmp, err)
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

// found asks how it stands: a guest that is in COLO was protected by an earlier
// guardian. It becomes this host's at the arbiter.
func (g *guardian) found(ctx context.Context) (standby.GuardState, error) {
	var now progress
	if err := g.monitor().Do(ctx, "query-migrate", nil, &now); err != nil {
		return 0, err
	}
	state := standby.Unprotected
	if now.Status == "colo" {
		state = standby.Protected
		g.say("found       the guest is in COLO already", map[string]any{"found": "colo"})
	}
	if g.arb == nil {
		if state == standby.Protected {
			g.generation = 0 // the standby knows
		}
		g.says(state, "")
		return state, nil
	}
	ask, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := g.arb.Record(ask)
	if err != nil {
		return 0, fmt.Errorf("the arbiter: %w", err)
	}
	if r.Held() && r.Token != g.token {
		if state == standby.Protected {
			err = g.monitor().Do(ctx, "stop", nil, nil)
		}
		return 0, errors.Join(err, fmt.Errorf("the arbiter says that %s has the guest, generation %d", r.Holder, r.Generation))
	}
	after := r.Generation
	if r.Held() {
		after--
	}
	if state == standby.Protected {
		return state, g.hold(ask, after)
	}
	grant, err := g.arb.Acquire(ask, failover.Claim{Holder: g.holder, Token: g.token, After: after, Note: "unprotected"})
	if err != nil {
		return 0, fmt.Errorf("the arbiter: %w", err)
	}
	g.generation = grant.Generation
	g.says(state, "")
	return state, nil
}

// hold asks for a generation with a deadline: a standby is about to follow it, or
// does.
func (g *guardian) hold(ctx context.Context, after uint64) error {
	g.free()
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	k, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: g.arb, Holder: g.holder, Token: g.token, Term: g.term,
		Lost:   func(_ uint64, err error) { g.tellWhile(run, standby.Refused, err.Error()) },
		Failed: func(err error) { g.p.warn("arbiter: %v", err) },
	})
	if err != nil {
		cancel()
		return err
	}
	generation, err := k.Acquire(ctx, after)
	if err != nil {
		cancel()
		return fmt.Errorf("the arbiter: %w", err)
	}
	done := make(chan struct{})
	go func() { defer close(done); k.Run(run) }()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.keeper, g.generation = k, generation
	g.drop = func() { cancel(); <-done }
	return nil
}

// free ends the renewals: what is held has no deadline from now on, or is over.
func (g *guardian) free() {
	g.mu.Lock()
	drop := g.drop
	g.keeper, g.drop = nil, nil
	g.mu.Unlock()
	if drop != nil {
		drop()
	}
}

// next asks for the guest's next generation, for good: the copy that a standby has
// is old from then on. It asks until there is an answer.
func (g *guardian) next(ctx context.Context, note string) error {
	g.mu.Lock()
	after := g.generation
	g.mu.Unlock()
	if g.arb == nil {
		g.mu.Lock()
		g.generation = after + 1
		g.mu.Unlock()
		return nil
	}
	k, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: g.arb, Holder: g.holder, Token: g.token, Term: -1})
	if err == nil {
		err = k.SetNote(note)
	}
	if err != nil {
		return err
	}
	generation, err := k.Acquire(ctx, after)
	if err != nil {
		return err
	}
	g.free()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.generation = generation
	return nil
}

// tell waits until run has room for the news.
func (g *guardian) tell(in standby.GuardInput, why string) {
	g.tellWhile(context.Background(), in, why)
}

// tellWhile is tell for a goroutine that run itself may wait for, having ended ctx.
func (g *guardian) tellWhile(ctx context.Context, in standby.GuardInput, why string) {
	select {
	case g.told <- news{in, why}:
	case <-g.over:
	case <-ctx.Done():
	}
}

// run is the loop.
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
			return exitInterrupted, g.leave()
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
				return exitUnfenced, errors.New("the guest's QEMU, which was stopped, has ended; the guest is the standby's")
			}
		}
	}
}

// holds reports whether this host may have the guest run.
func (g *guardian) holds() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.keeper == nil || time.Now().Add(3*tick).Before(g.keeper.Until())
}

// step gives the guard an input and does what it says.
func (g *guardian) step(ctx context.Context, n news) {
	was := g.guard.State()
	do, why := g.guard.Step(time.Now(), n.in)
	if n.why != "" && why != "" {
		why += ": " + n.why
	}
	state := g.guard.State()
	if state != was || why != "" {
		g.says(state, why)
		g.say(fmt.Sprintf("%-11s %s", state, why), map[string]any{"guardian": map[string]any{"state": state.String(), "was": was.String(), "why": why}})
		notify("STATUS=" + state.String() + ": " + why)
	}
	for i, a := range do {
		err := g.act(ctx, a, why)
		if err != nil && a == standby.StopGuest && i+1 < len(do) && do[i+1] == standby.TellStopped {
			// Nobody is told that the guest has stopped before it has.
			g.all.Go(func() { g.stopThenTell(ctx, why) })
			return
		}
		if err != nil && ctx.Err() == nil {
			g.p.warn("%v: %v", a, err)
			g.p.object(map[string]any{"guardian": map[string]any{"action": a.String(), "error": err.Error()}})
		}
	}
}

// short is an error as an arbiter's note.
func short(err error) string {
	text := oneLine(err)
	return text[:min(len(text), 500)]
}

// act does one thing. It waits for the monitor, a second or two, and for nobody
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
		return g.halt(ctx, true, "stop")
	case standby.ContinueGuest:
		return g.halt(ctx, false, "cont")
	case standby.HoldStill:
		g.set(func() { g.still = true; g.settling++ })
		g.all.Go(func() { g.holdStill(ctx) })
	case standby.TellAlone:
		g.send(standby.SaidAlone, why)
	case standby.TellStopped:
		g.send(standby.SaidStopped, why)
	case standby.TellPlanned:
		g.send(standby.SaidPlanned, why)
	case standby.TellDead:
		g.send(standby.SaidDead, why)
	}
	return nil
}

// stopThenTell stops the guest, however long that takes, and then says so.
func (g *guardian) stopThenTell(ctx context.Context, why string) {
	for ctx.Err() == nil {
		if g.halt(ctx, true, "stop") == nil {
			g.send(standby.SaidStopped, why)
			return
		}
		select {
		case <-time.After(tick):
		case <-ctx.Done():
		}
	}
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

// answered asks for the next generation until there is an answer, and tells it: the
// guest may be standing until then.
func (g *guardian) answered(ctx context.Context, note string) {
	for {
		err := g.next(ctx, note)
		switch {
		case err == nil:
			g.tell(standby.Granted, "")
			return
		case errors.Is(err, failover.ErrRefused):
			g.tell(standby.Refused, err.Error())
			return
		case ctx.Err() != nil:
			return
		}
		g.p.warn("arbiter: %v", err)
		note = "" // it may be what was wrong
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
	}
}

// rescue lets the guest run on without its standby.
func (g *guardian) rescue(ctx context.Context) error {
	g.mu.Lock()
	g.protects = false
	g.status.Rescued++
	still := g.still
	if still {
		g.settling++
	}
	g.mu.Unlock()
	stand := func() {
		if still { // for an operator, who wants it to stand: see holdStill
			g.stopAgain(ctx)
		}
	}
	for _, d := range g.disks {
		// A write that waits for the standby's copy is one that the guest waits for.
		g.yank(ctx, map[string]string{"type": "block-node", "node-name": d.node()})
	}
	if len(g.disks) > 0 && g.releasing.TryLock() { // otherwise they are being given up already
		defer g.all.Go(func() { defer g.releasing.Unlock(); g.unmirrored(ctx, stand) })
	} else {
		defer g.all.Go(stand)
	}
	if err := g.lostHeartbeat(ctx); err != nil {
		g.all.Go(func() { // until it has been taken: nothing else has the guest run
			for ctx.Err() == nil && g.lostHeartbeat(ctx) != nil {
				select {
				case <-time.After(tick):
				case <-ctx.Done():
				}
			}
		})
		return err
	}
	return nil
}

// lostHeartbeat has the QEMU leave COLO, if it is in it.
func (g *guardian) lostHeartbeat(ctx context.Context) error {
	err := g.order(ctx, "x-colo-lost-heartbeat", nil)
	if errors.Is(err, context.DeadlineExceeded) {
		// The monitor waits for a migration that waits for the standby.
		g.yank(ctx, map[string]string{"type": "migration"})
		err = g.order(ctx, "x-colo-lost-heartbeat", nil)
	}
	var refused *qmp.Error
	if errors.As(err, &refused) { // it has left COLO already
		err = nil
	}
	return err
}

// yank shuts a connection of the QEMU, out of band: its monitor may be waiting for
// it.
func (g *guardian) yank(ctx context.Context, instance map[string]string) {
	m := g.monitor()
	if !m.OOB {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var refused *qmp.Error
	err := m.DoOOB(ctx, "yank", map[string]any{"instances": []map[string]string{instance}}, nil)
	if err != nil && !errors.As(err, &refused) && ctx.Err() == nil {
		g.p.warn("%v", err)
	}
}

// unmirrored gives the copies of the disks up, once QEMU has left COLO and whatever
// stops the guest has been done: see mirror.
func (g *guardian) unmirrored(ctx context.Context, stand func()) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	g.hasLeft(ctx, g.monitor())
	stand()
	if err := g.unmirror(ctx, g.monitor()); err != nil && ctx.Err() == nil {
		g.p.warn("disks: %v", err)
	}
}

// released returns when nothing is left of the disks' last copies.
func (g *guardian) released() {
	g.releasing.Lock()
	defer g.releasing.Unlock()
}

// protectAgain copies the guest to the standby and tells what came of it.
func (g *guardian) protectAgain(ctx context.Context) {
	g.released()
	g.mu.Lock()
	after := g.generation - 1
	g.exited, g.protects = false, false
	g.mu.Unlock()
	if g.arb != nil {
		ask, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := g.hold(ask, after)
		cancel()
		if err != nil {
			g.free()
			if errors.Is(err, failover.ErrRefused) {
				g.tell(standby.Refused, err.Error())
			} else if ctx.Err() == nil {
				g.tell(standby.Failed, err.Error())
			}
			return
		}
	}
	g.set(func() { g.word = standby.ControlMessage{Say: standby.SaidProtect, Generation: g.generation} })
	g.repeat()
	o := *g.protectOptions
	var asked, refused bool
	// What has been begun is given up only when the standby's copy cannot be gone
	// on with.
	o.giveUp = func(err error) error {
		ask := ctx
		if ctx.Err() != nil { // an interrupt must not leave the guest standing
			var cancel context.CancelFunc
			ask, cancel = context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
		}
		e := g.next(ask, short(err))
		asked, refused = true, errors.Is(e, failover.ErrRefused)
		return e
	}
	err := o.protectBy(ctx, g.monitor(), g.p)
	if err != nil && !asked { // it has not come to a migration, but nobody needs a deadline
		o.giveUp(err)
	}
	switch {
	case err == nil:
		g.set(func() { g.protects = true })
		g.tell(standby.InStep, "")
	case refused:
		g.tell(standby.Refused, err.Error())
	case ctx.Err() == nil:
		g.tell(standby.Failed, oneLine(err))
	}
}

// holdStill keeps a guest standing that an operator has stopped: QEMU has it run
// again at the end of each checkpoint. A new delay makes one at once, and the next
// one is weeks away; the delay is put back when the guest runs again.
func (g *guardian) holdStill(ctx context.Context) {
	if err := g.order(ctx, "migrate-set-parameters", map[string]any{"x-checkpoint-delay": uint32(1<<32 - 1)}); err != nil && ctx.Err() == nil {
		g.p.warn("stop: %v", err)
	}
	g.stopAgain(ctx)
}

// stopAgain stops a guest that a checkpoint, or the end of COLO, has run again, and
// returns when it has stood for a while. What the monitor says of it meanwhile is
// not the operator's doing.
func (g *guardian) stopAgain(ctx context.Context) {
	defer g.set(func() { g.settling, g.settled = g.settling-1, time.Now() }) // as ours does
	quiet := time.Now()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && time.Since(quiet) < 10*tick; {
		var st struct{ Status string }
		ask, cancel := context.WithTimeout(ctx, time.Second)
		err := g.monitor().Do(ask, "query-status", nil, &st)
		if err == nil && st.Status == "running" {
			err = g.monitor().Do(ask, "stop", nil, nil)
		}
		cancel()
		if err != nil || st.Status != "paused" {
			quiet = time.Now()
		}
		select {
		case <-time.After(tick / 2):
		case <-ctx.Done():
			return
		}
	}
}

// runs tells that the guest ran at a time.
func (g *guardian) runs(ctx context.Context, at time.Time) {
	g.mu.Lock()
	ours, still := g.settling > 0 || at.Before(g.settled), g.still
	if !ours {
		g.still = false
	}
	g.mu.Unlock()
	if ours {
		return
	}
	if still { // the operator's cont
		if err := g.order(ctx, "migrate-set-parameters", map[string]any{"x-checkpoint-delay": g.delay.Milliseconds()}); err != nil && ctx.Err() == nil {
			g.p.warn("%v", err)
		}
	}
	g.tell(standby.Runs, "")
}

// watcher tells what a monitor says, until ctx ends or the guest's process does.
type watcher struct {
	*guardian
	planned string // the reason of the SHUTDOWN that was seen
}

func (g *guardian) watch(ctx context.Context) {
	w := &watcher{guardian: g}
	for ctx.Err() == nil {
		m := g.monitor()
		part, cancel := context.WithCancel(ctx)
		var both sync.WaitGroup
		both.Go(func() { defer cancel(); g.poll(part, m) })
		both.Go(func() { defer cancel(); w.events(part, m) })
		both.Wait()
		// What came before the end, and was not looked at.
		rest, cancel := context.WithTimeout(ctx, time.Second)
		w.events(rest, m)
		cancel()
		m.Close()
		if ctx.Err() != nil || w.planned != "" {
			return
		}
		for lost, gone := true, false; lost; {
			err := g.connect(ctx)
			switch {
			case err == nil:
				lost = false
				g.p.warn("the monitor's connection was lost, and is there again")
				continue
			case errors.Is(err, syscall.ECONNREFUSED): // the end of the process has closed its socket
				g.tell(standby.Died, "nobody listens at its monitor any more, and it has told of no shutdown; what QEMU has printed says why")
				return
			case errors.Is(err, fs.ErrNotExist) && !gone:
				// A QEMU that ends in good order removes its socket, but so may whoever
				// cleans up after one that has crashed: which it was cannot be known.
				gone = true
				g.p.warn("the monitor's socket %s is not there any more, and no shutdown was told: nothing is decided. If the guest has crashed, `promote` at the standby brings it back; if its end was meant, end this and the standby", g.qmp)
			}
			select {
			case <-time.After(tick):
			case <-ctx.Done():
				return
			}
		}
	}
}

func (w *watcher) events(ctx context.Context, m *qmp.Client) {
	for {
		r, err := m.Wait(ctx, func(event.Record) bool { return true })
		if err != nil {
			return
		}
		switch e := r.Event.(type) {
		case event.COLOExit:
			w.set(func() { w.exited = true })
			w.tell(standby.Exited, "")
		case event.Resume:
			w.runs(ctx, r.Time)
		case event.Stop: // by a checkpoint, or by an operator, whose it is only until the next one
			w.look(ctx, m)
		case event.Shutdown:
			if e.Reason == event.ShutdownHostError {
				continue
			}
			if w.planned = string(e.Reason); w.planned == "" {
				w.planned = "no reason given"
			}
			w.tell(standby.PlannedEnd, w.planned)
		}
	}
}

// poll asks again and again whether the guest runs.
func (g *guardian) poll(ctx context.Context, m *qmp.Client) {
	for g.look(ctx, m) {
		select {
		case <-time.After(tick):
		case <-ctx.Done():
			return
		}
	}
}

// look asks once. It returns false when there is no sense in asking again.
func (g *guardian) look(ctx context.Context, m *qmp.Client) bool {
	var st struct{ Status string }
	at := time.Now()
	ask, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := m.Do(ask, "query-status", nil, &st)
	switch {
	case ctx.Err() != nil:
		return false
	case err != nil && ask.Err() != nil:
		g.tell(standby.Stands, "its monitor does not answer")
		return true
	case err != nil:
		return false
	}
	switch st.Status {
	case "paused", "prelaunch":
		g.mu.Lock()
		ours := g.settling > 0 || at.Before(g.settled)
		g.mu.Unlock()
		if !ours {
			g.tell(standby.OperatorStop, "")
		}
	case "colo", "finish-migrate", "postmigrate":
		g.tell(standby.Stands, "it is in "+st.Status)
	default: // it runs, or whatever else it has come to by itself
		g.runs(ctx, at)
	}
	return true
}
