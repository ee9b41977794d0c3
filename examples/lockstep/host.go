package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/colo/protect/control"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover/sharedfile"
	"github.com/gocolo/lockstep/internal/oracle"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/replication"
)

// A host is one process of a pair that take the guest from each other, by package protect:
// what it is at the moment, primary or secondary, is the job's to know.
type host struct {
	cfg     trial.SideConfig
	reports *trial.Reporter

	machine machine
	nic     *protect.Proxy
	disk    *protect.Disk // nil: none
	job     *protect.Job
	events  event.Bus
	leads   atomic.Bool // the guest runs here
	started time.Time   // when the checkpoint under way began; of the goroutine of the session
}

// run protects the guest until it is told to stop, and tells then what the guest
// remembers, if it has it. Whatever it starts has ended when it returns.
func (h *host) run(ctx context.Context, fail context.CancelCauseFunc, commands <-chan trial.Command) error {
	cable, err := dialCable(h.cfg)
	if err != nil {
		return err
	}
	defer cable.Close()
	if h.cfg.Disk != "" {
		image, err := replication.OpenFile(h.cfg.Disk)
		if err != nil {
			return err
		}
		defer image.Close()
		if h.disk, err = protect.NewDisk(protect.DiskConfig{Name: diskExport, Image: image}); err != nil {
			return err
		}
	}
	if err := h.build(cable); err != nil {
		return err
	}
	defer h.machine.Close()

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
	select {
	case last := <-stopped: // everything has left: the job has closed the way to the client
		h.reports.Send(last)
		return nil
	default:
		return err
	}
}

// build makes the guest, its network and the job that protects it.
func (h *host) build(cable *cable) (err error) {
	deliver := func(packet []byte) error {
		packet, err := h.cfg.VLAN.Untag(packet)
		if err != nil {
			return nil // not for this guest
		}
		return h.machine.Deliver(packet)
	}
	if h.nic, err = protect.NewProxy(protect.ProxyConfig{
		Uplink: cable, Deliver: deliver, Limit: outputLimit, Compare: compare.Config{MaxQueue: maxApart}, Events: watched(h.cfg, &h.events),
		Continuous: h.cfg.Mode == trial.ModeContinuous, CompareAlways: h.cfg.Mode == trial.ModeCompare,
	}); err != nil {
		return err
	}
	var write writer
	if h.disk != nil {
		write = func(p []byte, off int64, flush bool) error { return writeTo(h.disk, p, off, flush) }
	}
	send := func(packet []byte) error { return h.nic.WritePacket(h.cfg.VLAN.Tag(packet)) }
	c := h.cfg.Host
	if h.machine, err = newMachine(h.cfg, c.Start, send, write); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.machine.Close())
		}
	}()
	arbiter, err := sharedfile.New(c.Arbiter)
	if err != nil {
		return err
	}
	h.events.SubscribeAll(h.observe)
	cfg := protect.Config{
		Name: machineType, Host: h.cfg.Side, Machine: machineType,
		Guest: h.machine, Network: []protect.Network{h.nic},
		Peer:    protect.Peer{Listen: c.Listen, Dial: c.Dial, PortConfig: protect.PortConfig{Insecure: true}},
		Arbiter: arbiter, Start: c.Start, Events: &h.events,
		CheckpointDelay: h.cfg.Interval, Beat: c.Beat, Lost: h.cfg.Lost, Term: c.Term,
	}
	if h.disk != nil {
		cfg.Disks = []*protect.Disk{h.disk}
	}
	h.job, err = protect.New(cfg)
	return err
}

// obey carries out the parent's commands until it says stop.
func (h *host) obey(ctx context.Context, commands <-chan trial.Command, stopped chan<- trial.Report, cancel func(), fail context.CancelCauseFunc) {
	for {
		select {
		case c := <-commands:
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
	if err := h.machine.Pause(ctx); err != nil {
		return trial.Report{}, err
	}
	for h.waiting() > 0 { // checkpoints go on and let it leave
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
	histories, err := oracle.Remembered(h.machine.Memory(), h.cfg.Guest.VCPUs)
	if err != nil {
		return trial.Report{}, err
	}
	last := trial.Report{Histories: histories, Traffic: h.traffic()}
	return last, h.job.Complete(ctx)
}

// waiting returns how many packets of the guest are still to leave.
func (h *host) waiting() uint64 {
	p, s := h.nic.Stats()
	if s != nil {
		return s.Keep.Held + s.Keep.Queued + s.Keep.Inherited
	}
	return p.Held + p.Queued
}

// traffic is what the present side of the network has counted.
func (h *host) traffic() *trial.Traffic {
	p, _ := h.nic.Stats()
	if p == nil {
		return new(trial.Traffic)
	}
	return trafficOf(*p)
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
		if !h.leads.Load() {
			return
		}
		h.reports.Send(trial.Report{Checkpoint: &trial.Checkpoint{
			Epoch: e.Epoch, Cause: e.Cause, Start: h.started, DirtyPages: e.Pages, Bytes: e.Bytes, EarlyResume: e.EarlyResume,
			PauseUS: e.PauseNS / 1000, TransferUS: e.TransferNS / 1000, CommitUS: e.CommitNS / 1000, Traffic: h.traffic(),
		}})
	}
}

// dialCable makes the way to the client of a side.
func dialCable(cfg trial.SideConfig) (*cable, error) {
	output, err := dialClient(cfg, cfg.Side)
	if err != nil {
		return nil, err
	}
	input, err := dialClient(cfg, cfg.Side+trial.InputSuffix)
	if err != nil {
		return nil, errors.Join(err, output.Close())
	}
	return &cable{filter.NewConn(output, filter.ConnConfig{}), filter.NewConn(input, filter.ConnConfig{}), [2]net.Conn{output, input}}, nil
}
