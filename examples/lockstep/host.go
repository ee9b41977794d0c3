package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/colo/protect/control"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover/sharedfile"
	"github.com/gocolo/lockstep/internal/killpoint"
	"github.com/gocolo/lockstep/internal/trial"
)

// machineType is the machine type that both hosts name.
const machineType = "lockstep-flat"

// A host is one process of a pair that protect a guest, by package protect: the job knows
// whether it is primary or secondary at the moment.
type host struct {
	cfg     trial.SideConfig
	reports *trial.Reporter
	create  func(trial.SideConfig, sender, writer) (machine, error) // makes the guest

	machine machine
	sent    sent // by the guest here
	nic     *network
	disk    *protect.Disk // nil: none
	job     *protect.Job
	events  event.Bus
	last    atomic.Pointer[trial.Report] // what is to be said once the job has ended by order
	leads   atomic.Bool                  // the guest runs here
	point   *killpoint.Point
	proceed chan struct{} // closed when it is to go on from there

	// Of the goroutine of the session:
	started time.Time // when the checkpoint under way began
	pausing time.Time // when its pause did
}

// sideMain is the whole life of a host: configuration and commands come from
// in, reports go to out. It returns when the host has nothing more to do.
func sideMain(in io.Reader, out io.Writer) error {
	return trial.Serve(in, out, func(ctx context.Context, fail context.CancelCauseFunc, p *trial.Parent) error {
		return newHost(p.Config, p.Reports).run(ctx, fail, p.Commands)
	})
}

func newHost(cfg trial.SideConfig, reports *trial.Reporter) *host {
	return &host{cfg: cfg, reports: reports, create: newMachine, proceed: make(chan struct{})}
}

// run protects the guest until it is told to stop, and tells then what the guest
// remembers, if it has it. A guest that fails is the end of its host, and the other one goes
// on. Whatever it starts has ended when it returns.
func (h *host) run(ctx context.Context, fail context.CancelCauseFunc, commands <-chan trial.Command) (err error) {
	cable, err := dialCable(h.cfg)
	if err != nil {
		return err
	}
	defer cable.Close()
	image, err := h.openDisk()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	if err := h.build(ctx, cable); err != nil {
		return err
	}
	defer h.machine.Close()
	guest, err := newGuest(h.cfg, h.machine, h.nic.standing)
	if err != nil {
		return err
	}
	defer guest.Close()
	if err := h.protect(guest); err != nil {
		return err
	}

	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group.Go(func() {
		if err := h.machine.Run(ctx); ctx.Err() == nil {
			fail(fmt.Errorf("guest: %w", err))
		}
	})
	stopped := make(chan trial.Report, 1) // the last report, once the job has ended by order
	group.Go(func() { h.obey(ctx, commands, stopped, cancel, fail) })
	err = serve(ctx, h.cfg, h.reports, h.job, control.Config{Events: &h.events, Guest: h.machine})
	if last := h.last.Load(); last != nil && err == nil { // the order that has ended the job may not have returned yet
		h.reports.Send(*last)
		return nil
	}
	select {
	case last := <-stopped: // everything has left: the job has closed the way to the client
		h.reports.Send(last)
		return nil
	default:
		return err
	}
}

// build makes the guest and its network.
func (h *host) build(ctx context.Context, cable *cable) (err error) {
	if h.cfg.VerifyDirty {
		h.cfg.Missed = func(block string, offset uint64) {
			h.reports.Send(trial.Report{Missed: &trial.MissedPage{Block: block, Offset: offset}})
		}
	}
	deliver := func(packet []byte) error {
		packet, err := h.cfg.VLAN.Untag(packet)
		if err != nil {
			return nil // not for this guest
		}
		return h.machine.Deliver(packet)
	}
	continuous := h.cfg.Mode == trial.ModeContinuous
	h.nic = &network{out: cable.out}
	if h.nic.Proxy, err = protect.NewProxy(protect.ProxyConfig{
		Uplink: cable, Deliver: deliver, Limit: outputLimit, Compare: compare.Config{MaxQueue: maxApart}, Events: watched(h.cfg, &h.events),
		Continuous: continuous, CompareAlways: h.cfg.Mode == trial.ModeCompare,
	}); err != nil {
		return err
	}
	var write writer
	if h.disk != nil {
		write = func(p []byte, off int64, flush bool) error { return writeTo(h.disk, p, off, flush) }
	}
	send := func(packet []byte) error {
		err := h.nic.WritePacket(h.cfg.VLAN.Tag(packet))
		if err == nil {
			h.sent.note(packet)
		}
		return err
	}
	if h.machine, err = h.create(h.cfg, send, write); err != nil {
		return err
	}
	if continuous {
		h.nic.standing = &standing{vm: h.machine, alone: true}
	}
	if h.cfg.StopAt != "" {
		h.point = h.newPoint(ctx)
	}
	return nil
}

// protect makes the job that protects the guest.
func (h *host) protect(guest protect.Guest) error {
	arbiter, err := sharedfile.New(h.cfg.Arbiter)
	if err != nil {
		return err
	}
	h.events.SubscribeAll(h.observe)
	cfg := protect.Config{
		Name: machineType, Host: h.cfg.Side, Machine: machineType,
		Guest: guest, Network: []protect.Network{h.nic},
		Peer:    protect.Peer{Listen: h.cfg.Listen, Dial: h.cfg.Dial, PortConfig: protect.PortConfig{Insecure: true}},
		Arbiter: trial.Heard(arbiter, func(c trial.Claimed) { h.reports.Send(trial.Report{Claimed: &c}) }),
		Start:   h.cfg.Start, Events: &h.events,
		CheckpointDelay: h.cfg.Interval, Beat: h.cfg.Beat, Lost: h.cfg.Lost, Term: h.cfg.Term,
		// A host that may be silent for so long, for want of a CPU, may be as late with a checkpoint.
		CheckpointTimeout: max(colo.DefaultCheckpointTimeout, h.cfg.Lost),
		LateResume:        !h.cfg.EarlyResume,
		Session:           protect.SessionConfig{ThrottleShare: h.cfg.Throttle, KeepAfter: h.cfg.Keep, Step: h.step, Trace: h.point.Trace, Conn: h.point.Conn},
	}
	if h.disk != nil {
		cfg.Disks = []*protect.Disk{h.disk}
	}
	h.job, err = protect.New(cfg)
	return err
}

// newPoint makes the point of a checkpoint at which the host stops to be killed.
func (h *host) newPoint(ctx context.Context) *killpoint.Point {
	return &killpoint.Point{
		Place: h.cfg.StopAt,
		Epoch: h.cfg.StopEpoch,
		Rand:  rand.New(rand.NewPCG(h.cfg.Seed, 1)),
		Stop: func(detail string) {
			h.reports.SendNow(trial.Report{Stopped: &trial.Stopped{Epoch: h.cfg.StopEpoch, Detail: detail}})
			select { // until SIGKILL comes
			case <-h.proceed:
			case <-ctx.Done():
			}
		},
	}
}

// step notes when the pause of a checkpoint begins, on the way to the kill point.
func (h *host) step(side event.Mode, op string, epoch uint64) {
	if op == "pause" {
		h.pausing = time.Now()
	}
	h.point.Step(side, op, epoch)
}

// obey carries out the parent's commands until it says stop.
func (h *host) obey(ctx context.Context, commands <-chan trial.Command, stopped chan<- trial.Report, cancel func(), fail context.CancelCauseFunc) {
	for {
		select {
		case c := <-commands:
			if c.Proceed {
				close(h.proceed)
			}
			if c.Cancel {
				if err := h.job.Cancel(ctx); err != nil {
					fail(err)
					return
				}
			}
			if c.Switchover {
				done := trial.Switched{}
				if err := h.job.Switchover(ctx); err != nil {
					done.Error = err.Error()
				}
				done.DowntimeUS = h.job.Query().Stats.Downtime.Microseconds()
				h.reports.Send(trial.Report{Switched: &done})
			}
			if c.Stop {
				last, err := h.finish(ctx)
				if err != nil {
					fail(err)
					return
				}
				stopped <- last
				cancel() // of no effect where the guest has ended
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// finish ends the guest, if it is here: it stops it, lets everything leave that it has sent,
// and says what its memory remembers. A host that follows has nothing to say.
func (h *host) finish(ctx context.Context) (trial.Report, error) {
	if h.job.Query().Role != event.ModePrimary {
		return trial.Report{}, nil
	}
	histories, err := h.sent.pauseSettled(ctx, h.machine, h.cfg.Guest.VCPUs)
	if err != nil {
		return trial.Report{}, err
	}
	for h.nic.waiting() > 0 { // checkpoints go on and let it leave
		select {
		case <-ctx.Done():
			return trial.Report{}, context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
	if h.disk != nil {
		if err := h.disk.Sync(); err != nil {
			return trial.Report{}, err
		}
	}
	last := trial.Report{Histories: histories, Traffic: h.nic.traffic()}
	h.last.Store(&last)
	return last, h.job.Complete(ctx)
}

// observe passes events on to the parent, and adds up each checkpoint that is made here.
func (h *host) observe(r event.Record) {
	h.reports.Send(trial.Report{Event: &r})
	switch e := r.Event.(type) {
	case event.JobStatusChange:
		switch e.State {
		case protect.Synchronising.String(), protect.Protected.String(), protect.SwitchingOver.String():
			h.leads.Store(true)
		default:
			h.leads.Store(false)
		}
	case event.CheckpointStart:
		h.started = r.Time
	case event.CheckpointCommit:
		h.point.Committed(e.Bytes)
		if !h.leads.Load() {
			return
		}
		h.reports.Send(trial.Report{Checkpoint: &trial.Checkpoint{
			Epoch:       e.Epoch,
			Cause:       e.Cause,
			Start:       h.started,
			PauseAtUS:   h.pausing.Sub(h.started).Microseconds(),
			PauseUS:     e.PauseNS / 1000,
			StoppedUS:   e.StoppedNS / 1000,
			StoppedIn:   e.StoppedEpoch,
			TransferUS:  e.TransferNS / 1000,
			CommitUS:    e.CommitNS / 1000,
			DirtyPages:  e.Pages,
			Bytes:       e.Bytes,
			EarlyResume: e.EarlyResume,
			Held:        h.nic.held,
			Traffic:     h.nic.traffic(),
		}})
	}
}
