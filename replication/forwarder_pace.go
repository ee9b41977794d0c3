package replication

import (
	"context"
	"time"
)

// How fast writes are let in where they are not sent at once: between Mark and Loaded, and
// while what was held then is more than the window. Memory would take them far faster than the
// link gives them away, and the guest's writes would then wait for all of that at once.

// pace has the speed of a Forwarder's link, as far as the answers have shown it, and the
// time at which the next write is let in. The zero value knows no speed, and lets every
// write in. The Forwarder's mu guards it.
type pace struct {
	rate     float64       // bytes a second that the other side answers while it has enough to answer; 0: it never had
	since    time.Time     // when the sample of the rate was begun; zero: none is taken
	sampled  int64         // bytes that were answered since
	last     time.Time     // of the latest answer; zero: nothing is on its way. Kept until there is a rate
	total    int64         // bytes that were answered while others were on their way, until there is a rate
	busy     time.Duration // how long that took
	hold     time.Duration // how long writes are held from a Mark to its Loaded, at most, as it seems; set at Loaded
	next     time.Time     // when the next write is let in; set at Mark and Loaded, moved on by each turn
	perSec   float64       // how fast next moves on; set with it, 0: every write is let in
	draining bool          // since Loaded, until what was held leaves room in the window
	phase    uint64        // counts Marks and Loadeds: a turn is void after the next of them
}

// leastSample is the shortest time over which answers are counted for the rate. A shorter sample says
// little, since several answers may come as one.
const leastSample = 20 * time.Millisecond

// answered notes that n bytes were answered, and bytes of a window are on their way still.
func (p *pace) answered(n, bytes, window int64) {
	enough := max(window/4, 1)
	if p.rate == 0 {
		p.count(n, bytes)
	}
	if p.since.IsZero() {
		if bytes >= enough { // so the link is busy for as many
			p.since, p.sampled = time.Now(), 0
		}
		return
	}
	p.sampled += n
	if p.sampled < enough {
		return
	}
	took := time.Since(p.since)
	if took < leastSample {
		return // several answers may have come as one
	}
	r := float64(p.sampled) / took.Seconds()
	switch {
	case p.rate == 0:
		p.rate = r
	case r > p.rate: // a link that was slow for a moment is soon taken for as fast as before
		p.rate += (r - p.rate) / 2
	default:
		p.rate += (r - p.rate) / 4
	}
	p.since = time.Time{}
}

// count counts the answers that come before there is a rate, since a guest may have too little on
// its way for a rate before its first Mark.
func (p *pace) count(n, bytes int64) {
	now := time.Now()
	if !p.last.IsZero() {
		p.total += n
		p.busy += now.Sub(p.last)
	}
	if p.last = now; bytes == 0 {
		p.last = time.Time{}
	}
}

// speed returns the rate. If there is none yet it returns how fast the guest's writes were
// answered, which is the least that the link can do; 0: too few were.
func (p *pace) speed() float64 {
	if p.rate == 0 && p.busy >= leastSample {
		return float64(p.total) / p.busy.Seconds()
	}
	return p.rate
}

// held is called at a Mark: window is what the window has room for, and bytes of it are on
// their way. Until Loaded writes are let in as if the link went on as it does, and not so
// fast that bound bytes are there before Loaded.
func (p *pace) held(now time.Time, bytes, window, bound int64) {
	p.phase++
	p.draining = false
	if p.perSec = p.speed(); p.perSec == 0 {
		return
	}
	if p.hold > 0 {
		p.perSec = min(p.perSec, float64(bound-bound/8)/p.hold.Seconds())
	}
	p.next = now.Add(-p.takes(max(window-bytes, 0)))
}

// loaded is called at Loaded. If full, what was held has no room in the window: until it
// has, writes are let in at half the link's rate.
func (p *pace) loaded(now time.Time, hold time.Duration, full bool) {
	p.phase++
	p.hold = max(hold, p.hold+(hold-p.hold)/4) // the next one may be as long
	p.next, p.perSec = now, p.speed()/2
	p.draining = full && p.perSec > 0
}

// takes returns how long after a write of n bytes the next one is let in.
func (p *pace) takes(n int64) time.Duration {
	return time.Duration(float64(n) / p.perSec * float64(time.Second))
}

// turn returns when a write of n bytes may be let in. Turns are in the order of the calls.
func (p *pace) turn(n int64) time.Time {
	if p.perSec == 0 {
		return time.Time{}
	}
	t := p.next
	p.next = t.Add(p.takes(n))
	return t
}

// waitRoom waits until there is room for n more bytes. Writers are let in in the order in which
// they came. The caller holds mu, and does not release it before it has used the room.
func (f *Forwarder) waitRoom(n int64) error {
	if err := f.failed(); err != nil {
		return err // it may be started later
	}
	mine := f.came
	f.came++
	var turn time.Time
	var phase uint64
	for {
		if err := f.failed(); err != nil {
			return err // for good: nobody enters any more
		}
		var wait time.Duration
		var room bool
		switch {
		case !f.held && !f.pace.draining:
			room = f.fits(n)
		default:
			if phase != f.pace.phase {
				turn, phase = f.pace.turn(n), f.pace.phase
			}
			wait = time.Until(turn)
			if f.held {
				room = f.holding == 0 || f.holding+n <= f.cfg.HoldBytes
			} else {
				room = f.bytes+n <= f.cfg.WindowBytes+f.cfg.HoldBytes
			}
		}
		if f.entered == mine && room && wait <= 0 {
			if f.entered++; f.entered < f.came {
				f.broadcast() // the next one may have room as well
			}
			return nil
		}
		f.waitTurn(wait)
	}
}

// fits reports whether the window has room for n more bytes.
func (f *Forwarder) fits(n int64) bool {
	return f.bytes == 0 || f.bytes+n <= f.cfg.WindowBytes && len(f.inflight)+len(f.queue) < f.cfg.WindowRequests
}

// waitTurn waits until something may have changed, for at most d if that is more than zero. It
// sends what is queued, and handles answers, only where Run does not: a send may take until the
// link has room, and this is the writer whose turn is next. The caller holds mu, which is released
// meanwhile.
func (f *Forwarder) waitTurn(d time.Duration) {
	if !f.running {
		if d <= 0 {
			f.waitChange(context.Background())
			return
		}
		if f.pumpSome(1) > 0 {
			return
		}
		if !f.driving && len(f.inflight)+f.flushes > 0 {
			ctx, cancel := context.WithTimeout(context.Background(), d)
			defer cancel()
			f.drive(ctx)
			return
		}
	}
	if f.wake == nil {
		f.wake = make(chan struct{})
	}
	wake := f.wake
	f.mu.Unlock()
	defer f.mu.Lock()
	if d <= 0 {
		<-wake
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-wake:
	case <-t.C:
	}
}

// noteAnswer notes the answer to a write of n bytes. The caller holds mu.
func (f *Forwarder) noteAnswer(n int64) {
	f.pace.answered(n, f.bytes, f.cfg.WindowBytes)
	if f.pace.draining && f.fits(0) {
		f.pace.draining = false
	}
}
