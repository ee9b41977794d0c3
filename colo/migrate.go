package colo

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate"
)

// synchronise is the primary's side of the initial migration: memory while the
// guest runs, the rest captured while it stands still and sent while it runs on, as in
// every checkpoint, and the wait until the secondary runs too. Where the rest cannot be
// captured the guest stands still until checkpoint-ready, as a QEMU's does.
func (p *Primary) synchronise(ctx context.Context) error {
	p.epoch = 0
	p.since = time.Now()
	p.began = p.since
	p.events.Publish(event.Migration{Status: "setup"})
	p.events.Publish(event.CheckpointStart{Mode: p.mode, Cause: event.CauseInitial})
	p.cp = event.CheckpointCommit{Mode: p.mode, Cause: event.CauseInitial}
	return p.do(ctx,
		step{"send header", p.sendHeader},
		step{"send ram while running", p.iterate},
		step{"pause", p.stopLast},
		step{"mark", p.mark},
		step{"save devices", p.saveDescribed},
		step{"capture", p.captureMemory},
		step{"early resume", p.resumeEarly},
		step{"send state", p.sendState},
		step{"expect checkpoint-ready", p.expectReady},
		step{"start disks", p.startDisks},
		step{"resume", p.resume},
		step{"protected", p.protected},
	)
}

func (p *Primary) sendHeader(context.Context) error {
	p.state.NewSession()
	blocked := p.state.NonMigratable()
	p.mu.Lock()
	p.info.BlockedReasons = blocked
	p.mu.Unlock()
	if err := p.state.Blocked(); err != nil {
		return err
	}
	w := p.link.W
	vmstate.PutFileHeader(w)
	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: p.cfg.Machine})
	vmstate.PutCommand(w, vmstate.EnableCOLO())
	if err := p.state.SaveSetup(w); err != nil {
		return err
	}
	p.events.Publish(event.Migration{Status: "active"})
	return p.link.Flush()
}

// smallRest is how many bytes of memory are not worth another pass.
const smallRest = 256 << 10

// iterate sends memory, pass after pass, until what is left would be sent within
// MaxDowntime. Where the rest is captured in the pause, and sent later, iterate makes
// further passes as long as they make the rest much smaller: the guest stands still while
// it is captured.
func (p *Primary) iterate(ctx context.Context) error {
	var left uint64
	last := uint64(math.MaxUint64) // what was left of the pass before
	w := p.link.W
	for {
		p.events.Publish(p.nextPass())
		p.progress(left)
		sent := w.Transferred()
		for done := false; !done; {
			var err error
			if done, err = p.state.SaveIterate(p.link.W); err != nil {
				return err
			}
			if err := p.interrupted(ctx); err != nil {
				return err
			}
			p.progress(left)
		}
		if err := p.link.Flush(); err != nil {
			return err
		}
		left, _ = p.state.Pending(true)
		p.progress(left)
		inTime := float64(left) <= w.Rate()*p.cfg.MaxDowntime.Seconds()
		shrinks := !p.cfg.LateResume && left > smallRest && left < last/2
		last = left
		switch {
		case p.pass >= p.cfg.MaxPasses, inTime && !shrinks:
			if took := time.Since(p.began); took > 0 {
				p.syncRate = float64(p.sent()) / took.Seconds()
			}
			return nil
		case !inTime:
			p.throttle.pass(uint64(w.Transferred()-sent), left)
			p.slow()
		}
	}
}

// stopLast pauses the guest at the end of the initial synchronisation. Its output is held
// from here on.
func (p *Primary) stopLast(ctx context.Context) error {
	p.since = time.Now()
	p.mustEnd(4 * time.Duration(p.link.W.Transferred()))
	return p.stop(ctx)
}

// saveDescribed saves the devices, and describes what they have saved before they change.
func (p *Primary) saveDescribed(context.Context) (err error) {
	if err = p.saveDevices(); err == nil {
		p.description, err = p.state.VMDesc()
	}
	return err
}

// sendState sends what is left of memory, the devices and the description. A
// failure before the devices are sent leaves the guest with this side alone;
// after that the secondary may run it (a QEMU does not mind a description that
// is cut off).
func (p *Primary) sendState(ctx context.Context) error {
	w := p.link.W
	if err := p.state.SaveComplete(w); err != nil {
		return err
	}
	text := p.description
	if !p.cfg.QEMUWire {
		a := announcement{Version: announcementVersion, CheckpointTimeout: int64(max(0, p.cfg.CheckpointTimeout))}
		o := offer{announcement: a, Resend: p.resender != nil}
		if p.beside != nil {
			o.Channels, o.Compression = p.beside.count, p.cfg.Channels.Method.String()
		}
		if p.early.ram != nil {
			o.Early, o.Differences = true, p.early.ram.Differences()
		}
		text = o.announce(text)
	}
	if !p.deferEnd(ctx) {
		return p.wishedFor(ctx)
	}
	p.handedOver = true
	if _, err := w.Write(p.blob.b); err != nil {
		return err
	}
	vmstate.PutDescription(w, text)
	return p.link.Flush()
}

func (p *Primary) expectReady(context.Context) error {
	if err := p.expectHello(); err != nil {
		return err
	}
	p.received = time.Now()
	p.marked = p.ends
	p.cp.TransferNS = int64(p.received.Sub(p.began))
	if p.cfg.Net == nil {
		return nil
	}
	if err := p.cfg.Net.Received(0); err != nil {
		return err
	}
	return p.cfg.Net.Loaded(0)
}

// expectHello waits for checkpoint-ready, in front of which a secondary of this package
// says hello.
func (p *Primary) expectHello() error {
	d := p.patient
	switch {
	case !p.due.IsZero():
		d = 0
	case d > 0:
		d += 4 * time.Duration(p.link.W.Transferred()) // 4 ns for each byte, as in expectWork
	}
	p.link.patience(d)
	defer p.link.patience(p.patient)
	got, at, err := p.link.next()
	if err != nil || got != Hello || p.cfg.QEMUWire {
		if err == nil {
			err = p.link.is(got, CheckpointReady, at)
		}
		p.beside.agree(false)
		return err
	}
	idle, err := p.link.value(Hello)
	if err != nil {
		return err
	}
	p.ours = true
	if idle > 0 {
		// The primary says Alive three times within what the secondary waits, but not
		// more than once a millisecond.
		p.peerIdle = max(time.Duration(min(idle, uint64(longest)))/3, time.Millisecond)
	}
	return p.expectChannels()
}

// expectChannels waits for checkpoint-ready, in front of which a secondary that takes
// memory over channels, or between checkpoints, says so.
func (p *Primary) expectChannels() error {
	got, at, err := p.link.next()
	use := err == nil && got == UseChannels && p.beside != nil
	if use {
		n, err := p.link.value(UseChannels)
		if err != nil {
			return err
		}
		if n != uint64(p.beside.count) {
			return fmt.Errorf("%w: %d channels of %d at offset %d", ErrSize, n, p.beside.count, at)
		}
		got, at, err = p.link.next()
		if err != nil {
			return err
		}
	}
	if err == nil && got == TakeEarly && p.early.ram != nil {
		if p.early.takes, err = p.link.value(TakeEarly); err != nil {
			return err
		}
		got, at, err = p.link.next()
	}
	if err == nil {
		err = p.link.is(got, CheckpointReady, at)
	}
	if err == nil {
		p.agreeOnChannels(use)
	}
	return err
}

func (p *Primary) startDisks(ctx context.Context) error {
	ctx, cancel := p.bounded(ctx)
	defer cancel()
	if err := p.disks.Start(ctx); err != nil {
		return p.late(ctx, "disks", err)
	}
	p.disksUp = true
	return p.late(ctx, "disks", p.disks.Loaded(ctx, 0))
}

func (p *Primary) protected(ctx context.Context) error {
	if err := p.unthrottle(ctx); err != nil {
		return err
	}
	p.trigger = time.Now()
	p.due = time.Time{}
	p.link.until(p.due)
	if !p.cp.EarlyResume {
		p.cp.PauseNS = int64(p.trigger.Sub(p.stopped))
	}
	p.cp.CommitNS = int64(p.trigger.Sub(p.received))
	p.cp.Bytes, p.cp.Pages = uint64(p.link.W.Transferred()), p.pages()
	p.keeps(p.cfg.RAM)
	p.record(p.cp)
	p.events.Publish(event.Migration{Status: "colo"})
	p.events.Publish(p.cp)
	return nil
}

// unprotected ends a session whose secondary has no guest yet: the primary's guest runs
// on as if there had been no session.
func (p *Primary) unprotected(ctx context.Context, cause error) error {
	p.cut()
	p.due, p.patient = time.Time{}, p.patience()
	p.heed()
	expected := p.expected()
	left := ctx.Err() != nil && errors.Is(cause, ctx.Err())
	words := ""
	if why := context.Cause(ctx); left && why != ctx.Err() {
		words = why.Error()
	}
	p.mu.Lock()
	if p.info.Mode, p.info.Reason = event.ModeNone, event.ExitError; expected != nil || left || errors.Is(cause, errEnd) {
		p.info.Reason = event.ExitRequest
	}
	p.mu.Unlock()
	ctx = context.WithoutCancel(ctx)
	if err := p.release(ctx, true); err != nil {
		cause = errors.Join(cause, err)
	}
	if err := p.resumeAtLast(ctx); err != nil {
		cause = errors.Join(cause, err)
	}
	p.setWhere(StateAlone)
	p.events.Publish(event.Migration{Status: "failed"})
	if errors.Is(cause, errEnd) {
		p.events.Publish(event.ProtectionEnded{Mode: p.mode, By: p.mode})
		return nil
	}
	if left && expected == nil { // whoever has ended the context has ordered it
		p.events.Publish(event.ProtectionEnded{Mode: p.mode, By: p.mode, Reason: words})
		return cause
	}
	if expected != nil {
		by, reason := p.mode, expected
		if errors.Is(expected, ErrEndedByPeer) {
			by = event.ModeSecondary
		}
		if p.purpose() != nil { // its words may say more; those of a connection say less
			reason = cause
		}
		p.events.Publish(event.ProtectionEnded{Mode: p.mode, By: by, Reason: reason.Error()})
		return cause
	}
	p.events.Publish(event.ProtectionRefused{Mode: p.mode, Error: cause.Error()})
	return cause
}

// progress records for Info how far the synchronisation is; left is how many bytes were
// to be sent when the pass began.
func (p *Primary) progress(left uint64) {
	w := p.link.W
	p.mu.Lock()
	defer p.mu.Unlock()
	in := &p.info.Sync
	in.Passes, in.Done, in.Remaining, in.Rate = p.pass, uint64(w.Transferred()), left, w.Rate()
	if in.Left, _ = p.state.Pending(false); in.Total == 0 {
		in.Total = in.Left
	}
	if in.ExpectedDowntime = 0; in.Rate > 0 {
		in.ExpectedDowntime = time.Duration(float64(left) / in.Rate * float64(time.Second))
	}
}

func (p *Primary) nextPass() event.MigrationPass {
	p.pass++
	return event.MigrationPass{Pass: p.pass}
}
