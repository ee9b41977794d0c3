package colo

import (
	"context"

	"github.com/gocolo/lockstep/event"
)

// aheadPause is for how many timer checkpoints sending ahead is left off after
// it did not pay.
const aheadPause = 8

// AheadSender is a PrimaryConfig.RAM that keeps count of what it sends ahead (ram.Saver).
// BeginAhead is called before the first page of a checkpoint is sent while the guest runs, and
// after Pending(true) of the registry. It may leave out pages that are not worth it. Ahead
// says, after the checkpoint, how many pages went ahead and how many of those went again.
type AheadSender interface {
	BeginAhead()
	Ahead() (pages, again uint64)
}

// RoundSender is an AheadSender that can leave nothing out: what it knows of pages that are
// written again before the next checkpoint says little of the moment that the last round of
// Primary.Converge takes (ram.Saver). BeginRounds is called before the first Pending(true) of
// the registry for the first round; until the checkpoint is sent SaveIterate is to send all
// that is dirty.
type RoundSender interface {
	AheadSender
	BeginRounds()
}

// ahead returns the step that sends memory while the guest still runs, or nil
// where a checkpoint should pause at once: packets wait for any checkpoint that
// the timer has not asked for. The secondary takes the PART sections as it takes END
// ones.
func (p *Primary) ahead(cause event.Cause) func(context.Context) error {
	if cause != event.CauseTimer || p.cfg.AheadThreshold < 0 || p.last <= uint64(p.cfg.AheadThreshold) {
		return nil
	}
	if p.aheadRest > 0 {
		p.aheadRest--
		return nil
	}
	return func(ctx context.Context) error {
		if err := p.sendVMStateSend(ctx); err != nil {
			return err
		}
		before := p.sent()
		p.state.Pending(true) // what the guest has dirtied since the last checkpoint
		p.beginAhead()
		if err := p.sendWhileRunning(ctx, p.diverged); err != nil { // packets wait: the rest is sent after the pause
			return err
		}
		p.sentAhead = uint64(p.sent() - before)
		return p.link.Flush() // not while the guest stands still
	}
}

func (p *Primary) beginAhead() {
	if p.picky != nil {
		p.picky.BeginAhead()
	}
}

// sendWhileRunning sends what is pending, unless enough, which may be nil, reports after a
// piece that the rest is to go with the checkpoint.
func (p *Primary) sendWhileRunning(ctx context.Context, enough func() bool) error {
	for done := false; !done; {
		var err error
		if done, err = p.state.SaveIterate(p.link.W); err != nil {
			return err
		}
		if err := p.interrupted(ctx); err != nil {
			return err
		}
		if enough != nil && enough() {
			break
		}
	}
	return nil
}

// diverged takes a request that has come while memory is sent ahead: the pause
// that follows is what it asks for.
func (p *Primary) diverged() bool {
	select {
	case <-p.request:
	default:
		return false
	}
	c := p.why.Swap(nil)
	if c == nil {
		return false
	}
	p.cp.Cause = *c
	return true
}

// backOff notices when the guest had dirtied again most of what was sent ahead.
func (p *Primary) backOff() {
	if p.sentAhead == 0 {
		return
	}
	most := p.cp.Bytes-p.sentAhead > p.sentAhead/2
	if p.picky != nil {
		// What was left out went with the checkpoint, and only there.
		pages, again := p.picky.Ahead()
		most = again > pages/2
	}
	if most {
		p.aheadRest = aheadPause
	}
}
