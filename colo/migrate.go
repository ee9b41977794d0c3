package colo

import (
	"context"
	"errors"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate"
)

// synchronise is the primary's side of the initial migration: memory while the
// guest runs, the rest while it stands still, then the wait until the secondary
// runs too. QEMU's order, so the guest stands still until checkpoint-ready.
func (p *Primary) synchronise(ctx context.Context) error {
	p.epoch = 0
	p.begun = time.Now()
	p.events.Publish(event.Migration{Status: "setup"})
	p.events.Publish(event.CheckpointStart{Mode: p.mode, Cause: event.CauseInitial})
	p.cp = event.CheckpointCommit{Mode: p.mode, Cause: event.CauseInitial}
	return p.do(ctx,
		step{"send header", p.sendHeader},
		step{"send ram while running", p.iterate},
		step{"pause", p.stop},
		step{"mark", p.mark},
		step{"save devices", func(context.Context) error { return p.saveDevices() }},
		step{"send state", p.sendState},
		step{"expect checkpoint-ready", p.expectReady},
		step{"start disks", p.startDisks},
		step{"resume", p.resume},
		step{"protected", p.protected},
	)
}

func (p *Primary) sendHeader(context.Context) error {
	p.state.NewSession()
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

// iterate sends memory, pass after pass, until what is left would be sent
// within MaxDowntime.
func (p *Primary) iterate(ctx context.Context) error {
	for {
		p.events.Publish(p.nextPass())
		for done := false; !done; {
			var err error
			if done, err = p.state.SaveIterate(p.link.W); err != nil {
				return err
			}
			if err := p.interrupted(ctx); err != nil {
				return err
			}
		}
		if err := p.link.Flush(); err != nil {
			return err
		}
		left, _ := p.state.Pending(true)
		budget := p.link.W.Rate() * p.cfg.MaxDowntime.Seconds()
		if float64(left) <= budget || p.pass >= p.cfg.MaxPasses {
			return nil
		}
	}
}

// sendState sends what is left of memory, the devices and the description. A
// failure before the devices are sent leaves the guest with this side alone;
// after that the secondary may run it (a QEMU does not mind a description that
// is cut off).
func (p *Primary) sendState(context.Context) error {
	w := p.link.W
	if err := p.state.SaveComplete(w); err != nil {
		return err
	}
	p.handedOver = true
	if _, err := w.Write(p.blob.b); err != nil {
		return err
	}
	p.state.PutVMDesc(w)
	return p.link.Flush()
}

func (p *Primary) expectReady(context.Context) error {
	if err := p.expectCommit(CheckpointReady, p.link.W.Transferred()); err != nil {
		return err
	}
	p.received = time.Now()
	p.cp.TransferNS = int64(p.received.Sub(p.begun))
	if p.cfg.Net == nil {
		return nil
	}
	if err := p.cfg.Net.Received(0); err != nil {
		return err
	}
	return p.cfg.Net.Loaded(0)
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

func (p *Primary) protected(context.Context) error {
	p.trigger = time.Now()
	p.cp.PauseNS = int64(p.trigger.Sub(p.stopped))
	p.cp.CommitNS = int64(p.trigger.Sub(p.received))
	p.cp.Bytes, p.cp.Pages = uint64(p.link.W.Transferred()), p.pages()
	p.record(p.cp)
	p.events.Publish(event.Migration{Status: "colo"})
	p.events.Publish(p.cp)
	return nil
}

// unprotected ends a session whose secondary never had a guest: this one goes
// on as if nothing had been tried.
func (p *Primary) unprotected(ctx context.Context, cause error) error {
	p.link.Close()
	p.mu.Lock()
	p.info.Mode, p.info.Reason = event.ModeNone, event.ExitError
	p.mu.Unlock()
	ctx = context.WithoutCancel(ctx)
	if p.cfg.Net != nil {
		if err := p.cfg.Net.Failover(); err != nil {
			cause = errors.Join(cause, err)
		}
	}
	if err := p.resume(ctx); err != nil {
		cause = errors.Join(cause, err)
	}
	p.events.Publish(event.Migration{Status: "failed"})
	return cause
}

func (p *Primary) nextPass() event.MigrationPass {
	p.pass++
	return event.MigrationPass{Pass: p.pass}
}
