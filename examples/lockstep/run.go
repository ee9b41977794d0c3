package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event"
)

// patience is how long the parent waits for anything that should happen
// within a fraction of a second, or within one checkpoint interval.
const patience = 20 * time.Second

// generation of the pair. A survivor that is protected again begins the next.
const generation = 1

// A run is one pair of processes, from their start to the verdict.
type run struct {
	o       options
	backend string
	seed    uint64
	rng     *rand.Rand
	out     *printer

	inbox   chan message
	client  *client
	witness *witness
	sides   map[string]*process
	gone    map[string]bool // the process has ended

	target uint64 // checkpoints before the kill
	result
}

// result is what a run has shown so far; it is complete when drive returns.
type result struct {
	started     time.Time
	protected   time.Time // the initial synchronisation was over
	checkpoints []checkpoint
	under       uint64 // the checkpoint that the primary is in, 0 between two
	throttled   []throttled

	victim   string // or ""
	killed   time.Time
	killedAt string        // in words
	woken    time.Time     // with SIGCONT; zero: it was killed
	late     int           // frames that the victim has let go since
	lateFor  time.Duration // until the last of them
	resumed  time.Time     // first frame of the survivor after it took over
	frames   map[string][]arrival

	survivor string
	epoch    uint64         // that the survivor went on from
	exit     event.COLOExit // the survivor's
	verdict

	images  map[string]string // of the sides' disks
	traffic traffic           // of the primary's guest, as last told

	listening *addresses
	stopped   *stopped
	ends      map[string]*ended
	histories []history
	missed    []string // pages that a dirty log lacked
}

// throttled is how much the primary's guest was slowed down from then on.
type throttled struct {
	at      time.Time
	percent int
}

// failover is the time from SIGKILL to the survivor's first frame.
func (r *result) failover() time.Duration {
	if r.killed.IsZero() || r.resumed.IsZero() {
		return 0
	}
	return r.resumed.Sub(r.killed)
}

func newRun(o options, backend string, seed uint64, out *printer) *run {
	r := &run{
		o: o, backend: backend, seed: seed, out: out,
		rng:   rand.New(rand.NewPCG(seed, 0)),
		inbox: make(chan message, 64),
		sides: make(map[string]*process), gone: make(map[string]bool),
		witness: &witness{generation: generation, log: out.claim},
		result:  result{ends: make(map[string]*ended)},
	}
	r.target = 1 + r.rng.Uint64N(repeatCheckpoints) // drawn in any case, so that a seed means the same
	if o.checkpoints > 0 {
		r.target = uint64(o.checkpoints)
	}
	if o.kill != killNone {
		r.victim = o.kill
	}
	return r
}

// do carries the run out and leaves nothing of it behind. The error is why
// there is no verdict.
func (r *run) do(ctx context.Context) (err error) {
	oracle, err := newOracle(r.o.guest(r.seed))
	if err != nil {
		return err
	}
	r.client = newClient(oracle)
	r.client.vlan = vlan(r.o.vlan)
	if r.o.disk > 0 {
		remove, err := r.createDisks()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, remove()) }()
	}
	var servers, readers sync.WaitGroup
	listen := func(serve func(net.Listener)) (l net.Listener, err error) {
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err == nil {
			servers.Go(func() { serve(l) })
		}
		return l, err
	}
	output, err := listen(r.client.serve)
	if err != nil {
		return err
	}
	defer servers.Wait()
	defer output.Close()
	claims, err := listen(r.witness.serve)
	if err != nil {
		return err
	}
	defer claims.Close()
	defer func() { // whatever happened, no process and no reader stays
		for _, p := range r.sides {
			p.in.Close() // which it takes as an order to end
		}
		kill := func() {
			for _, p := range r.sides {
				p.kill()
			}
		}
		if err == nil || ctx.Err() != nil {
			kill()
		} else {
			// A side may be about to say what the other only suffers from.
			defer time.AfterFunc(lastWords, kill).Stop()
		}
		go func() { readers.Wait(); close(r.inbox) }()
		for range r.inbox {
		}
		err = r.explain(err)
	}()

	r.started = time.Now()
	for _, side := range []string{secondary, primary} {
		p, err := start(r.config(side, output.Addr().String(), claims.Addr().String()), r.inbox, &readers)
		if err != nil {
			return err
		}
		r.sides[side] = p
	}
	return r.drive(ctx)
}

// talkOn is how many inputs each vCPU must have taken after the takeover.
const talkOn = 5

// lastWords is how long a side may take to end when a run has failed.
const lastWords = time.Second

// explain adds to the error of a run what the sides have said.
func (r *run) explain(err error) error {
	for side, p := range r.sides {
		said := p.stderr.String()
		if err != nil && said != "" && said != errOrphan.Error() && !strings.Contains(err.Error(), said) {
			err = fmt.Errorf("%w\nthe %s said: %s", err, side, said)
		}
	}
	return err
}

// createDisks makes the images of both sides, empty, and says how to remove them.
func (r *run) createDisks() (remove func() error, err error) {
	remove = func() error { return nil }
	dir := r.o.diskDir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "lockstep-"); err != nil {
			return nil, err
		}
		remove = func() error { return os.RemoveAll(dir) }
	}
	r.images = make(map[string]string)
	for _, side := range []string{primary, secondary} {
		name := filepath.Join(dir, "lockstep-"+side+".img")
		r.images[side] = name
		f, err := os.Create(name)
		if err == nil {
			err = errors.Join(f.Truncate(int64(r.o.disk)), f.Close())
		}
		if err != nil {
			return nil, errors.Join(err, remove())
		}
	}
	return remove, nil
}

func (r *run) config(side, client, witness string) sideConfig {
	cfg := sideConfig{
		Side: side, Backend: r.backend, Guest: r.o.guest(r.seed), Memory: r.o.mem,
		Disk: r.images[side], Client: client, Witness: witness, Generation: generation,
		Mode: r.o.mode, VLAN: vlan(r.o.vlan), Interval: r.o.interval, Lost: r.o.lost, EarlyResume: r.o.earlyResume, Throttle: r.o.throttle / 100, Seed: r.seed,
		VerifyDirty: r.o.verifyDirty,
	}
	cfg.QMP, _ = monitorOf(r.o.qmp, side) // the options were checked
	if side == r.victim && r.o.killAt != atAny {
		cfg.StopAt, cfg.StopEpoch = r.o.killAt, r.target+1
	}
	return cfg
}

// drive is the run's plot.
func (r *run) drive(ctx context.Context) error {
	if err := r.await(ctx, "the secondary to listen", func() bool { return r.listening != nil }); err != nil {
		return err
	}
	r.sides[primary].tell(command{Connect: r.listening})
	if err := r.await(ctx, "the initial synchronisation", func() bool { return !r.protected.IsZero() }); err != nil {
		return err
	}
	what := fmt.Sprintf("%v of memory", size(r.o.mem))
	if r.o.disk > 0 {
		what += fmt.Sprintf(" and %v of disk", size(r.o.disk))
	}
	holds := "from now on output leaves when both guests have said it, or a checkpoint covers it"
	if r.o.mode == modeContinuous {
		holds = "from now on output is held"
	}
	r.out.phase("protected", "primary %d, secondary %d: %s synchronised in %s; %s",
		r.sides[primary].pid(), r.sides[secondary].pid(), what, round3(r.protected.Sub(r.started)), holds)
	if err := r.await(ctx, "the checkpoints", func() bool {
		return r.epochs() >= r.target || r.stopped != nil
	}); err != nil {
		return err
	}
	frontier := r.client.now().last
	if err := r.part(ctx); err != nil {
		return err
	}
	r.survivor = primary
	if r.victim == primary {
		r.survivor = secondary
	}
	if err := r.await(ctx, "the "+r.survivor+" to take over", func() bool { return r.ends[r.survivor] != nil }); err != nil {
		return err
	}
	if end := r.ends[r.survivor]; !end.TookOver {
		return fmt.Errorf("the %s did not take over: %s", r.survivor, end.Error)
	}
	r.epoch = r.ends[r.survivor].Epoch
	if err := r.await(ctx, "the "+r.survivor+"'s output", func() bool { return !r.client.firstAlone(r.survivor).IsZero() }); err != nil {
		return err
	}
	r.resumed = r.client.firstAlone(r.survivor)
	r.out.takeover(r.survivor, r.epoch, r.resumed)
	if r.victim == "" {
		r.out.phase("handed over", "the primary goes on alone from checkpoint %d, as ordered; the secondary is refused by the witness", r.epoch)
	} else {
		r.out.phase("taken over", "the %s goes on from checkpoint %d; its first frame came %s after the kill", r.survivor, r.epoch, round3(r.failover()))
	}

	// Far enough to have met whatever a wrong takeover would have left behind.
	at := r.client.now()
	for v := range frontier {
		frontier[v] = max(frontier[v], at.last[v]) + r.o.rounds()
	}
	if err := r.await(ctx, "the "+r.survivor+"'s progress", func() bool {
		now := r.client.now()
		for v := range frontier {
			if now.last[v] < frontier[v] || now.answered[v] < at.answered[v]+talkOn {
				return false
			}
		}
		return true
	}); err != nil {
		return err
	}
	if err := r.wakeVictim(ctx); err != nil {
		return err
	}
	return r.judge(ctx)
}

// wakeVictim lets a victim go on that was stopped, and waits until it has found
// that the guest is not its any more.
func (r *run) wakeVictim(ctx context.Context) error {
	if r.victim == "" || r.o.signal != signalStop {
		return nil
	}
	if err := r.wake(); err != nil {
		return err
	}
	if err := r.await(ctx, "the "+r.victim+" to give up", func() bool { return r.ends[r.victim] != nil }); err != nil {
		return err
	}
	if r.ends[r.victim].TookOver {
		return fmt.Errorf("the %s goes on too", r.victim)
	}
	r.out.phase("woken", "the %s, which was stopped for %s, is refused by the witness", r.victim, round3(r.woken.Sub(r.killed)))
	return nil
}

// wake sends SIGCONT.
func (r *run) wake() error {
	p := r.sides[r.victim]
	r.woken = time.Now()
	if err := p.resume(); err != nil {
		return err
	}
	if r.stopped != nil {
		p.tell(command{Proceed: true})
	}
	return nil
}

// doze stops the victim for a moment that ends nothing, and then parts the pair in
// good order.
func (r *run) doze(ctx context.Context) error {
	at := r.epochs()
	if err := r.sleep(ctx, r.o.stopFor); err != nil {
		return err
	}
	if err := r.wake(); err != nil {
		return err
	}
	if err := r.await(ctx, "the checkpoints after the stop", func() bool { return r.epochs() >= at+3 }); err != nil {
		return err
	}
	r.out.phase("woken", "the %s was stopped for %s, and the pair goes on", r.victim, round3(r.woken.Sub(r.killed)))
	r.victim = ""
	return r.part(ctx)
}

// part ends the pair: with SIGKILL, or in good order.
func (r *run) part(ctx context.Context) error {
	if r.victim == "" {
		// The decision is the operator's, so the witness must know it first:
		// the secondary will ask.
		if a := r.witness.decide(claim{generation, primary, r.epochs(), "ordered"}); !a.Granted {
			return fmt.Errorf("the witness refused the order: %s", a.Reason)
		}
		r.sides[primary].tell(command{Failover: true})
		return nil
	}
	if r.o.killAt == atAny {
		if err := r.randomInstant(ctx); err != nil {
			return err
		}
	} else if err := r.await(ctx, "the "+r.victim+" to get to the place of its death", func() bool { return r.stopped != nil }); err != nil {
		return err
	}
	p := r.sides[r.victim]
	r.killed = time.Now()
	signal, name := p.kill, "killed"
	if r.o.signal == signalStop {
		signal, name = p.pause, "stopped"
	}
	if err := signal(); err != nil {
		return err
	}
	switch {
	case r.stopped != nil:
		r.killedAt = fmt.Sprintf("in checkpoint %d, %s", r.stopped.Epoch, r.stopped.Detail)
	case r.under > 0:
		r.killedAt = fmt.Sprintf("in checkpoint %d", r.under)
	default:
		r.killedAt = fmt.Sprintf("between checkpoints %d and %d", r.epochs(), r.epochs()+1)
	}
	r.out.phase(name, "%s (pid %d) with SIG%s %s", r.victim, p.pid(), strings.ToUpper(r.o.signal), r.killedAt)
	r.out.kill(r.victim, p.pid(), r.killedAt, r.killed)
	if r.o.stopFor > 0 {
		return r.doze(ctx)
	}
	return nil
}

// randomInstant waits for the instant of a kill: half of the time anywhere in
// a checkpoint interval, half of the time within a checkpoint, which is much
// shorter.
func (r *run) randomInstant(ctx context.Context) error {
	if r.rng.IntN(2) == 0 {
		return r.sleep(ctx, time.Duration(r.rng.Int64N(int64(r.o.interval))))
	}
	last := r.checkpoints[len(r.checkpoints)-1]
	length := time.Duration(last.TransferUS+last.CommitUS) * time.Microsecond
	at := time.Duration(r.rng.Int64N(int64(length)*5/4 + 1))
	if err := r.await(ctx, "a checkpoint to begin", func() bool { return r.under > 0 }); err != nil {
		return err
	}
	return r.sleep(ctx, at)
}

// sleep waits, and goes on listening.
func (r *run) sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case m := <-r.inbox:
			if err := r.handle(m); err != nil {
				return err
			}
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// judge stops the survivor and compares what has left with its memory.
func (r *run) judge(ctx context.Context) error {
	r.sides[r.survivor].tell(command{Stop: true})
	if err := r.await(ctx, "the end of all output", func() bool {
		return r.gone[primary] && r.gone[secondary] && r.histories != nil &&
			r.client.hasEnded(primary) && r.client.hasEnded(secondary)
	}); err != nil {
		return err
	}
	if err := r.verified(); err != nil {
		return err
	}
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	if r.client.err != nil {
		return r.client.err
	}
	r.client.oracle.finish(r.histories)
	if r.o.disk > 0 {
		image, err := os.Open(r.images[r.survivor])
		if err != nil {
			return err
		}
		defer image.Close()
		if err := r.client.oracle.finishDisk(r.histories, image); err != nil {
			return err
		}
	}
	r.verdict = r.client.oracle.verdict
	r.frames = r.client.frames
	for _, f := range r.frames[r.o.kill] {
		if r.victim != "" && !r.woken.IsZero() && f.at.After(r.woken) {
			r.late++
			r.lateFor = f.at.Sub(r.woken)
		}
	}
	return nil
}

// verified returns an error that names what the dirty logs have lacked.
func (r *run) verified() error {
	n := len(r.missed)
	if n == 0 {
		return nil
	}
	return fmt.Errorf("written, and in no dirty log, %d times: %s", n, strings.Join(r.missed[:min(n, 10)], ", "))
}

// await handles what comes until done. What does not come in time is an error.
func (r *run) await(ctx context.Context, what string, done func() bool) error {
	limit := time.NewTimer(patience + 2*r.o.interval)
	defer limit.Stop()
	// Frames do not go through the inbox, so done is also asked now and then.
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	have := len(r.checkpoints)
	for !done() {
		select {
		case m := <-r.inbox:
			if err := r.handle(m); err != nil {
				return err
			}
			if len(r.checkpoints) != have { // each checkpoint is progress
				have = len(r.checkpoints)
				limit.Reset(patience + 2*r.o.interval)
			}
		case <-look.C:
			r.out.status(r)
		case <-limit.C:
			return fmt.Errorf("waited in vain for %s", what)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// matters reports whether an event, as it came, is of a kind that handle looks at.
func matters(e json.RawMessage) bool {
	for _, kind := range []event.Event{event.CheckpointStart{}, event.CheckpointCommit{}, event.COLOExit{}} {
		if bytes.Contains(e, []byte(`"`+kind.Name()+`"`)) {
			return true
		}
	}
	return false
}

// handle takes one message of a process.
func (r *run) handle(m message) error {
	rep := m.report
	switch {
	case m.ended:
		r.gone[m.side] = true
		expected := m.side == r.victim && !r.killed.IsZero() || m.err == nil && r.ends[m.side] != nil
		if !expected {
			return r.sides[m.side].failure(m.err)
		}
	case rep.Listening != nil:
		r.listening = rep.Listening
	case m.event != nil:
		r.out.event(m.side, m.event)
		if !matters(m.event) {
			break
		}
		var rec event.Record
		if err := json.Unmarshal(m.event, &rec); err != nil {
			return fmt.Errorf("an event of the %s: %w", m.side, err)
		}
		switch e := rec.Event.(type) {
		case event.CheckpointStart:
			if m.side == primary {
				r.under = e.Epoch
			}
		case event.CheckpointCommit:
			if m.side == primary {
				r.under = 0
			}
		case event.Throttled:
			r.throttled = append(r.throttled, throttled{rep.Event.Time, e.Percent})
		case event.COLOExit:
			if m.side != r.victim && !(r.victim == "" && m.side == secondary) {
				r.exit = e
			}
		}
	case rep.Checkpoint != nil:
		c := *rep.Checkpoint
		if c.Epoch == 0 {
			r.protected = time.Now()
		}
		r.checkpoints = append(r.checkpoints, c)
		r.traffic = *c.Traffic
		r.out.checkpoint(c)
	case rep.Missed != nil:
		r.missed = append(r.missed, fmt.Sprintf("the %s's %s at %#x", m.side, rep.Missed.Block, rep.Missed.Offset))
	case rep.Stopped != nil:
		r.stopped = rep.Stopped
	case rep.Ended != nil:
		r.ends[m.side] = rep.Ended
		if !rep.Ended.TookOver && !rep.Ended.Refused {
			return fmt.Errorf("the %s: %s", m.side, rep.Ended.Error)
		}
		if r.victim != "" && r.killed.IsZero() {
			return errors.New("the sides parted before the kill")
		}
	case rep.Histories != nil:
		r.histories = rep.Histories
		if rep.Traffic != nil {
			r.traffic = *rep.Traffic
		}
	}
	return nil
}

// epochs is how many checkpoints both sides have, the initial synchronisation
// not counted.
func (r *result) epochs() uint64 {
	if len(r.checkpoints) == 0 {
		return 0
	}
	return r.checkpoints[len(r.checkpoints)-1].Epoch
}
