package colo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// Between two checkpoints a primary can send what its guest has written since the last, piece
// by piece, so that whatever asks for the next one finds little left to send. Each piece is an
// [EarlyPages] of its own, whole before anything else happens, so that a request waits for one
// write at most. The secondary stages the piece as it stages the memory of a checkpoint, and
// drops it if no checkpoint follows. The log of the guest's writes is read a few times from
// one checkpoint to the next; what is found written a second time waits for the checkpoint
// (AheadSender).

// EarlySender is an AheadSender that can begin long before the checkpoint (ram.Saver).
type EarlySender interface {
	AheadSender
	// BeginEarly is called after Pending(true) of the registry, several times before one
	// checkpoint. Until the next BeginAhead, or the checkpoint, SaveIterate is to send about
	// most bytes. It returns how many bytes there are to send.
	BeginEarly(most int) uint64
	// Differences reports whether pages may be sent as differences from what the secondary
	// has.
	Differences() bool
}

// How many times the log of the guest's writes is read from one checkpoint to the next, if the
// time between two reads is then neither below earlyOften nor above earlySeldom.
const (
	earlyRounds = 8
	earlyOften  = 10 * time.Millisecond
	earlySeldom = time.Second
)

// early decides when a primary sends pages between two checkpoints, and how many. It belongs to
// the goroutine in Run.
type early struct {
	ram   EarlySender // nil: none are sent
	takes uint64      // bytes of memory that the secondary takes before a checkpoint; 0: none
	share float64     // of the link

	rest  int           // checkpoints before which nothing is sent early
	vain  int           // checkpoints in a row for which it brought little
	every time.Duration // from one look at the guest's writes to the next
	round time.Time     // the last look
	open  bool          // some pages that the last look found are not sent yet
	bytes int64         // sent since the last checkpoint

	link linkRate
}

// openEarly prepares p.early.
func (p *Primary) openEarly() error {
	share := p.cfg.EarlyShare
	switch e, ok := p.cfg.RAM.(EarlySender); {
	case !(share >= 0 && share <= 1):
		return fmt.Errorf("colo: EarlyShare is %v, not 0 to 1", share)
	case share == 0:
	case !ok:
		return errors.New("colo: EarlyShare needs a RAM that is an EarlySender")
	case !p.cfg.QEMUWire:
		p.early.ram, p.early.share = e, share
	}
	return nil
}

// begin is called when the primary begins to wait for a checkpoint. looked is when the log of
// the guest's writes was last read, at the pause of the last checkpoint. It returns a timer
// for the first piece, nil where none is to be sent.
func (e *early) begin(interval time.Duration, looked time.Time) *time.Timer {
	if e.ram == nil || e.takes == 0 {
		return nil
	}
	if e.rest > 0 {
		e.rest--
		return nil
	}
	e.every = min(max(interval/earlyRounds, earlyOften), earlySeldom)
	e.open = false
	return time.NewTimer(time.Until(looked.Add(e.every)))
}

// interval estimates the time from one checkpoint to the next.
func (p *Primary) interval() time.Duration {
	d := time.Duration(p.delay.Load())
	if last := p.since.Sub(p.earlier); p.epoch > 1 && last < d {
		return last
	}
	return d
}

// urgent reports whether a checkpoint is due.
func (p *Primary) urgent() bool {
	since := time.Since(p.trigger)
	return since >= time.Duration(p.delay.Load()) || p.why.Load() != nil && (since >= p.cfg.MinInterval || p.epoch == 0)
}

// sendEarly sends a piece of what the guest has written, and returns how long to wait before
// the next; 0: there is to be none before the checkpoint.
func (p *Primary) sendEarly(ctx context.Context) (wait time.Duration, err error) {
	e := &p.early
	p.op = "send ram early"
	if p.session.step != nil {
		p.session.step(p.op, p.epoch)
	}
	began := time.Now()
	most := e.link.piece()
	if !e.open {
		e.round = began
		p.state.Pending(true)
		if e.ram.BeginEarly(most) == 0 {
			return e.every, nil
		}
	}
	if pages, _ := e.ram.Ahead(); pages*ram.PageSize+uint64(most) > e.takes {
		return 0, nil
	}
	before := p.sent()
	if err := p.link.Send(EarlyPages); err != nil {
		return 0, err
	}
	done, err := p.state.SaveIterate(p.link.W)
	if err != nil {
		return 0, err
	}
	vmstate.PutEOF(p.link.W)
	if err := p.link.Flush(); err != nil {
		return 0, err
	}
	e.open = !done
	n, took := p.sent()-before, time.Since(began)
	e.bytes += n
	e.link.pieceTook(n, took)
	wait = time.Duration(float64(n)/(e.share*e.link.bytes())*float64(time.Second)) - took
	if done {
		wait = max(wait, time.Until(e.round.Add(e.every)))
	}
	return max(wait, time.Microsecond), nil
}

// If sending early brought little before earlyVain checkpoints in a row, it is left off for
// aheadPause checkpoints. One such checkpoint is no reason: the RAM may have learnt there which
// pages are written all the time.
const earlyVain = 2

// committed is called when a checkpoint of that many pages is committed. It decides from what
// was sent early before it whether to go on sending early.
func (e *early) committed(of uint64) {
	if e.bytes == 0 {
		return
	}
	e.bytes = 0
	if pages, again := e.ram.Ahead(); (pages-again)*8 >= of {
		e.vain = 0
	} else if e.vain++; e.vain == earlyVain {
		e.vain, e.rest = 0, aheadPause
	}
}

// linkRate estimates how many bytes a second the link carries: as many as in the last transfers
// at full speed, and less while pieces take longer than that.
type linkRate struct{ most, now float64 }

const (
	unknownRate = 1e9 / 8 // a link of 1 Gbit/s, before a checkpoint has shown it
	largeEnough = 1 << 20 // the least bytes whose time measures the link
	leastPiece  = 16 << 10
	mostPiece   = 1 << 20
)

// carried takes the measure of a transfer at full speed.
func (l *linkRate) carried(bytes int64, took time.Duration) {
	if bytes < largeEnough || took <= 0 {
		return
	}
	if rate := float64(bytes) / took.Seconds(); rate > l.most {
		l.most = rate
	} else {
		l.most += (rate - l.most) / 4
	}
	l.now = l.most
}

// pieceTook takes the measure of one piece: how long its write took.
func (l *linkRate) pieceTook(bytes int64, took time.Duration) {
	now := l.bytes()
	if took >= time.Millisecond && float64(bytes) < now*took.Seconds() {
		l.now = max(float64(bytes)/took.Seconds(), l.mostBytes()/16)
		return
	}
	l.now = min(now*1.05, l.mostBytes())
}

func (l *linkRate) mostBytes() float64 {
	if l.most == 0 {
		return unknownRate
	}
	return l.most
}

// bytes returns the estimate, in bytes per second.
func (l *linkRate) bytes() float64 {
	if l.now == 0 {
		return l.mostBytes()
	}
	return l.now
}

// piece returns how many bytes are sent at a time: what the link carries in a millisecond.
func (l *linkRate) piece() int {
	return int(min(max(l.bytes()/1000, leastPiece), mostPiece))
}
