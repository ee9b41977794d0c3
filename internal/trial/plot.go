package trial

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/killpoint"
)

// TalkOn is how many inputs each vCPU must have taken after the takeover.
const TalkOn = 5

// drive carries the run out, from the protection to the verdict.
func (r *Run) drive(ctx context.Context) error {
	if err := r.await(ctx, "the initial synchronisation", r.inStep); err != nil {
		return err
	}
	what := fmt.Sprintf("%v of memory", cli.Bytes(r.o.Mem))
	if r.o.Disk > 0 {
		what += fmt.Sprintf(" and %v of disk", cli.Bytes(r.o.Disk))
	}
	holds := "from now on output leaves when both guests have said it, or a checkpoint covers it"
	if r.o.Mode == ModeContinuous {
		holds = "from now on output is held"
	}
	r.out.phase("protected", "primary %d, secondary %d: %s synchronised in %s; %s",
		r.sides[Primary].pid(), r.sides[Secondary].pid(), what, round3(r.protected.Sub(r.started)), holds)
	if err := r.await(ctx, "the checkpoints", func() bool {
		return r.epochs() >= r.target || r.stopped != nil
	}); err != nil {
		return err
	}
	frontier := r.client.now().last
	if err := r.part(ctx); err != nil {
		return err
	}
	if err := r.await(ctx, "the "+r.survivor+" to take over", func() bool { return r.tookOver }); err != nil {
		return err
	}
	r.epoch = r.last[r.survivor]
	if err := r.await(ctx, "the "+r.survivor+"'s output", func() bool { return !r.client.firstAlone(r.survivor).IsZero() }); err != nil {
		return err
	}
	r.resumed = r.client.firstAlone(r.survivor)
	r.out.takeover(r.survivor, r.epoch, r.resumed)
	if r.victim == "" {
		r.out.phase("handed over", "the primary goes on alone from checkpoint %d, as ordered; the secondary does not", r.epoch)
	} else {
		r.out.phase("taken over", "the %s goes on from checkpoint %d; its first frame came %s after the kill", r.survivor, r.epoch, round3(r.failover()))
	}

	// Wait until the guest has used all state that a wrong takeover could have spoilt.
	at := r.client.now()
	for v := range frontier {
		frontier[v] = max(frontier[v], at.last[v]) + r.o.rounds()
	}
	if err := r.await(ctx, "the "+r.survivor+"'s progress", func() bool {
		now := r.client.now()
		for v := range frontier {
			if now.last[v] < frontier[v] || now.answered[v] < at.answered[v]+TalkOn {
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

// inStep reports whether both sides have said that the pair is in step. Each has a pipe of its
// own: the first report of a secondary, that it waits for a primary, may be read after all
// reports of the primary up to its death, and would then be taken for the end of the secondary's
// session.
func (r *Run) inStep() bool { return !r.protected.IsZero() && r.state[Secondary] == stateFollowing }

// wakeVictim lets a victim that was stopped go on, and waits until the victim has found
// out that it no longer has the guest. It waits for a secondary whose primary goes on
// by order in the same way.
func (r *Run) wakeVictim(ctx context.Context) error {
	gaveUp := func() bool { return r.gaveUp != "" }
	if r.victim == "" {
		return r.await(ctx, "the secondary to give up", gaveUp)
	}
	if r.o.Signal != SignalStop {
		return nil
	}
	if err := r.wake(); err != nil {
		return err
	}
	if err := r.await(ctx, "the "+r.victim+" to give up", gaveUp); err != nil {
		return err
	}
	r.out.phase("woken", "the %s, which was stopped for %s, does not go on: %s", r.victim, round3(r.woken.Sub(r.killed)), r.gaveUp)
	return nil
}

// wake sends SIGCONT.
func (r *Run) wake() error {
	p := r.sides[r.victim]
	r.woken = time.Now()
	if err := p.resume(); err != nil {
		return err
	}
	if r.stopped != nil {
		p.tell(Command{Proceed: true})
	}
	return nil
}

// where says where in a checkpoint the victim is now, as far as its reports tell: where they
// gather, the last of them are on their way, or gone with it.
func (r *Run) where() string {
	gathers := SideConfig{Interval: r.o.Interval}
	switch {
	case r.stopped != nil:
		return fmt.Sprintf("in checkpoint %d, %s", r.stopped.Epoch, r.stopped.Detail)
	case gathers.gather() > 0:
		return fmt.Sprintf("soon after checkpoint %d", r.epochs())
	case r.under > 0:
		return fmt.Sprintf("in checkpoint %d", r.under)
	}
	return fmt.Sprintf("between checkpoints %d and %d", r.epochs(), r.epochs()+1)
}

// doze stops the victim for a moment that ends nothing, and then parts the pair in
// good order.
func (r *Run) doze(ctx context.Context) error {
	at := r.epochs()
	if err := r.sleep(ctx, r.o.StopFor); err != nil {
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
func (r *Run) part(ctx context.Context) error {
	r.survivor = Primary
	if r.victim == Primary {
		r.survivor = Secondary
	}
	if r.victim == "" {
		r.parted = true
		r.sides[Primary].tell(Command{Cancel: true})
		return nil
	}
	if r.o.KillAt == killpoint.AtAny {
		if err := r.randomInstant(ctx); err != nil {
			return err
		}
	} else if err := r.await(ctx, "the "+r.victim+" to get to the place of its death", func() bool { return r.stopped != nil }); err != nil {
		return err
	}
	p := r.sides[r.victim]
	r.killed, r.parted = time.Now(), r.o.StopFor == 0
	signal, name := p.kill, "killed"
	if r.o.Signal == SignalStop {
		signal, name = p.pause, "stopped"
	}
	if err := signal(); err != nil {
		return err
	}
	r.killedAt = r.where()
	r.out.phase(name, "%s (pid %d) with SIG%s %s", r.victim, p.pid(), strings.ToUpper(r.o.Signal), r.killedAt)
	r.out.kill(r.victim, p.pid(), r.killedAt, r.killed)
	if r.o.StopFor > 0 {
		return r.doze(ctx)
	}
	return nil
}

// randomInstant waits for the instant of a kill: half of the time anywhere in
// a checkpoint interval, half of the time within a checkpoint, which is much
// shorter.
func (r *Run) randomInstant(ctx context.Context) error {
	if r.rng.IntN(2) == 0 {
		return r.sleep(ctx, time.Duration(r.rng.Int64N(int64(r.o.Interval))))
	}
	last := r.checkpoints[len(r.checkpoints)-1]
	length := time.Duration(last.TransferUS+last.CommitUS) * time.Microsecond
	at := time.Duration(r.rng.Int64N(int64(length)*5/4 + 1))
	if err := r.await(ctx, "a checkpoint to begin", func() bool { return r.under > 0 }); err != nil {
		return err
	}
	return r.sleep(ctx, at)
}

// judge stops the survivor and compares what has left with its memory.
func (r *Run) judge(ctx context.Context) error {
	r.closing = true
	for _, host := range []string{r.survivor, r.other(r.survivor)} {
		r.sides[host].tell(Command{Stop: true}) // no effect on one that was killed
		if err := r.await(ctx, "the end of all output of the "+host, func() bool {
			return r.gone[host] && r.histories != nil && r.client.hasEnded(host)
		}); err != nil {
			return err
		}
	}
	if err := r.verified(); err != nil {
		return err
	}
	if err := r.verify(r.client, r.survivor); err != nil {
		return err
	}
	for _, f := range r.frames[r.o.Kill] {
		if r.victim != "" && !r.woken.IsZero() && f.at.After(r.woken) {
			r.late++
			r.lateFor = f.at.Sub(r.woken)
		}
	}
	return nil
}

// verify compares what has left with the memory and the disk of the side that has the guest,
// which stands still and has said all.
func (r *Result) verify(c *client, survivor string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.oracle.Finish(r.histories)
	if r.o.Disk > 0 {
		image, err := os.Open(r.images[survivor])
		if err != nil {
			return err
		}
		defer image.Close()
		if err := c.oracle.FinishDisk(r.histories, image); err != nil {
			return err
		}
	}
	r.Verdict = c.oracle.Verdict
	r.frames = c.frames
	return nil
}
