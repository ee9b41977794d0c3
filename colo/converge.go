package colo

import (
	"context"
	"math"
	"time"

	"github.com/gocolo/lockstep/event"
)

// Before a guest is handed over it stands still from the pause of its last checkpoint until the
// other side runs it, so as little as possible is left to that pause. As in a live migration,
// what the guest has written is sent while it runs, then what it has written meanwhile, and so
// on, as long as each round leaves less than half of what the one before had left. Pages that
// the guest usually writes before each checkpoint are sent as well (RoundSender), since a round
// is shorter than the interval between two checkpoints.

const (
	// littleLeft is how many bytes of memory are not worth another round: a round costs about
	// as much as a pause that finds them.
	littleLeft = 64 << 10
	// mostRounds bounds the rounds. Each takes less than half the time of the one before, so
	// all of them take less than twice the time of the first.
	mostRounds = 8
	// longestDigest bounds the wait for the secondary to take in a round, however slow the link
	// seems to be.
	longestDigest = 50 * time.Millisecond
)

// convergence is a checkpoint that Converge has asked for, with the function
// that Run calls right before the pause.
type convergence struct{ ready func() }

// Converge asks for a checkpoint, as RequestCheckpoint does, in which the guest stands still
// for as short a time as possible: what it has written is sent while it runs, in rounds, until
// little is left or a round leaves more than half of what the one before did. A round ends when
// the secondary has had the time to take it in, as far as the speed of the link is known. The guest's
// output waits longer for it than for an ordinary checkpoint, by at most twice the time that an
// ordinary one takes to be sent. Packets that have diverged end the rounds after the first. Info.Sync
// tells how far the rounds are. MinInterval does not delay it, so a host can ask for an ordinary
// checkpoint right before it, which leaves the secondary little to commit while the guest stands
// still.
//
// ready, if it is not nil, is called on the goroutine in Run right before the guest is paused
// for that checkpoint, and must not wait. Until a checkpoint has answered a call of Converge,
// a later call replaces it. Converge never blocks. Safe from any goroutine.
func (p *Primary) Converge(ready func()) {
	if ready == nil {
		ready = func() {}
	}
	p.mu.Lock()
	p.info.Sync = Progress{}
	p.mu.Unlock()
	p.converging.Store(&convergence{ready})
	p.RequestCheckpoint(event.CauseRequest)
}

// approach returns the step that sends memory while the guest still runs, before a checkpoint
// with that cause. It returns nil where the guest should be paused at once.
func (p *Primary) approach(cause event.Cause) func(context.Context) error {
	if c := p.converging.Swap(nil); c != nil {
		p.diverged() // the request is met, if the timer has come before it
		return func(ctx context.Context) error {
			if err := p.converge(ctx); err != nil {
				return err
			}
			c.ready()
			return nil
		}
	}
	return p.ahead(cause)
}

// converge sends memory in rounds while the guest runs.
func (p *Primary) converge(ctx context.Context) error {
	if err := p.sendVMStateSend(ctx); err != nil {
		return err
	}
	before, began := p.sent(), time.Now()
	all, ok := p.picky.(RoundSender)
	if ok {
		all.BeginRounds()
	}
	for round, last := 1, uint64(math.MaxUint64); round <= mostRounds; round++ {
		left, _ := p.state.Pending(true)
		p.converged(round, left, p.sent()-before, time.Since(began))
		if asked := round > 1 && p.diverged(); asked || left <= littleLeft || left > last/2 {
			break
		}
		last = left
		sent, begins := p.sent(), time.Now()
		if !ok {
			p.beginAhead()
		}
		if err := p.sendWhileRunning(ctx, nil); err != nil {
			return err
		}
		if err := p.link.Flush(); err != nil {
			return err
		}
		if err := p.digested(ctx, p.sent()-sent, begins); err != nil {
			return err
		}
	}
	p.sentAhead = uint64(p.sent() - before)
	return p.link.Flush()
}

// digested waits until the secondary has taken in a round of so many bytes, which began at the time
// began: it waits about as long as the link needs for these bytes. What has left this host may
// still be on its way, in the buffers of both kernels, and a guest that is paused now would stand
// still until the secondary has all of it. A guest that runs meanwhile writes pages, and the next
// round sends those. A checkpoint that is requested meanwhile, for packets that wait, ends the
// wait.
func (p *Primary) digested(ctx context.Context, bytes int64, began time.Time) error {
	wait := time.Duration(float64(bytes) / max(p.syncRate, p.early.link.mostBytes()) * float64(time.Second))
	wait = min(wait, longestDigest) - time.Since(began)
	if !p.due.IsZero() {
		wait = min(wait, time.Until(p.due)/4)
	}
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-p.request:
			select {
			case p.request <- struct{}{}: // for diverged
			default:
			}
		case <-p.quit:
		case <-p.lost:
		case <-p.wish:
		case <-ctx.Done():
		}
	}
	return p.interrupted(ctx)
}

// converged records for Info how far the rounds are.
func (p *Primary) converged(round int, left uint64, sent int64, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	in := &p.info.Sync
	in.Passes, in.Done, in.Remaining, in.Left = round, uint64(sent), left, left
	if in.Total == 0 {
		in.Total = left
	}
	if sent > 0 && took > 0 {
		in.Rate = float64(sent) / took.Seconds()
	}
	if in.ExpectedDowntime = 0; in.Rate > 0 {
		in.ExpectedDowntime = time.Duration(float64(left) / in.Rate * float64(time.Second))
	}
}
