package colo

import (
	"context"

	"github.com/gocolo/lockstep/event"
)

// aheadPause is the number of timer checkpoints before which nothing is sent ahead, after
// sending ahead did not pay.
const aheadPause = 8

// AheadSender is a PrimaryConfig.RAM that counts the pages that it sends ahead (ram.Saver).
// BeginAhead is called before the first page of a checkpoint is sent while the guest runs, and
// after Pending(true) of the registry. From then on the RAM may leave out pages that will
// probably be written again. Ahead is called after the checkpoint and returns how many pages
// went ahead, and how many of those had to be sent again.
type AheadSender interface {
	BeginAhead()
	Ahead() (pages, again uint64)
}

// RoundSender is an AheadSender that can also send every dirty page (ram.Saver). The rounds of
// Primary.Converge need that: a page that is usually written again before the next checkpoint
// may well not be written in the short last round. BeginRounds is called before the first
// Pending(true) of the registry for the first round; until the checkpoint is sent SaveIterate
// is to send all that is dirty.
type RoundSender interface {
	AheadSender
	BeginRounds()
}

// ahead returns the step that sends memory while the guest still runs, or nil
// where the guest should be paused at once, as for every checkpoint that the timer has not
// asked for: packets wait for those. The secondary stages PART sections as it does END
// sections.
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

// diverged reports whether a checkpoint was requested while memory is sent ahead, and takes
// the request: the checkpoint under way answers it.
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

// backOff stops sending ahead for a while if the guest has written again most of what was
// sent.
func (p *Primary) backOff() {
	if p.sentAhead == 0 {
		return
	}
	most := p.cp.Bytes-p.sentAhead > p.sentAhead/2
	if p.picky != nil {
		// Pages that the RAM left out count as neither: they went with the checkpoint alone.
		pages, again := p.picky.Ahead()
		most = again > pages/2
	}
	if most {
		p.aheadRest = aheadPause
	}
}
