package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/colo/protect/control"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/trial"
)

// serve runs a job with the handles that the command line asks for, and tells the parent
// where they are.
func serve(ctx context.Context, cfg trial.SideConfig, reports *trial.Reporter, job control.Runner, c control.Config) error {
	c.CheckpointDelay = cfg.Interval
	c.Listening = func(name, address string) {
		reports.Send(trial.Report{Handle: &trial.Handle{Name: name, Address: address}})
	}
	handles := control.Handles{QMP: cfg.QMP, HTTP: cfg.HTTP, HTTPControl: cfg.HTTPControl}
	return handles.Run(ctx, job, c)
}

// watched returns the bus for a network to say on which flows differ: nil where nobody
// watches.
func watched(cfg trial.SideConfig, bus *event.Bus) *event.Bus {
	if cfg.HTTP == "" && cfg.QMP == "" {
		return nil
	}
	return bus
}

// handles serves what a side of one session is steered and watched by, for as long as run
// runs.
func (s *side) handles(ctx context.Context, run func(context.Context) error) error {
	return serve(ctx, s.cfg, s.reports, &single{side: s, run: run}, control.Config{
		Events: &s.events, Guest: s.machine,
		Register: func(c *qmp.Commands) {
			qmp.Register(c, "query-session", func(context.Context, qmp.None) (colo.Info, error) { return s.session.Info(), nil })
		},
	})
}

// single is one session, which has nothing before it and nothing after it, as its monitor
// and its page see it: in the words of a job that protects a guest, as far as they fit.
// Verbs that only such a job has are refused.
type single struct {
	side *side
	run  func(context.Context) error

	mu    sync.Mutex
	state protect.State // when Query was called last
	since time.Time     // that it is so, as far as Query was called
}

var errSingle = errors.New("a single session has no such step: it ends with the first failover; -failovers and -switchover have hosts that have")

// Run implements control.Runner.
func (j *single) Run(ctx context.Context) error { return j.run(ctx) }

// Query implements control.Job.
func (j *single) Query() protect.Info {
	s, session := j.side, j.side.session.Info()
	in := protect.Info{
		Guest: machineType, Host: s.cfg.Side, State: stateOf(session.State, s.cfg.Side), Role: session.Mode,
		Generation: s.cfg.Generation, Session: &session, Stats: protect.Stats{Checkpoints: session.Checkpoints},
	}
	switch in.State {
	case protect.Cancelled:
		in.Role = event.ModePrimary
	case protect.Concluded:
		in.Role = event.ModeNone
	default:
		in.Peer = trial.Secondary
		if s.cfg.Side == trial.Secondary {
			in.Peer = trial.Primary
		}
	}
	if in.Open = in.Role == event.ModePrimary && in.State != protect.Asking; in.Open {
		in.Until = time.Now().AddDate(100, 0, 0) // no arbiter takes it back
	}
	if session.TookOver {
		in.Stats.Takeovers = 1
	}
	if session.Reason != event.ExitNone {
		in.Reason = string(session.Reason)
	}
	if in.State == protect.Synchronising {
		total := uint64(len(s.machine.Memory()))
		in.Progress = &protect.Progress{Total: total, Sent: session.Sync.Done, Remaining: total - min(total, session.Sync.Done)}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if in.State != j.state || j.since.IsZero() {
		j.state, j.since = in.State, time.Now()
	}
	in.Since = j.since
	return in
}

// stateOf is the state of a session of a side as that of a job. Where the guest goes on
// alone nobody seeks another host.
func stateOf(s colo.State, side string) protect.State {
	switch s {
	case colo.StateAsking:
		return protect.Asking
	case colo.StateTakingOver:
		return protect.TakingOver
	case colo.StateAlone:
		return protect.Cancelled
	case colo.StateStopped:
		return protect.Concluded
	}
	switch {
	case side == trial.Secondary:
		return protect.Following
	case s == colo.StateProtected:
		return protect.Protected
	}
	return protect.Synchronising // also before: the guest runs
}

// OutputLatency says how long packets were kept.
func (j *single) OutputLatency() (event.Latency, bool) { return j.side.net.OutputLatency(), true }

// Checkpoint implements control.Job.
func (j *single) Checkpoint() error {
	p, ok := j.side.session.(*colo.Primary)
	if !ok {
		return errors.New("checkpoints are the primary's to make")
	}
	p.RequestCheckpoint(event.CauseRequest)
	return nil
}

// Failover implements control.Job: the witness is asked who goes on.
func (j *single) Failover() error {
	j.side.session.Lost(errors.New("an operator says that the other side is lost"))
	return nil
}

// Pause implements control.Job.
func (*single) Pause(context.Context, string) error { return errSingle }

// Resume implements control.Job.
func (*single) Resume() error { return errSingle }

// Complete implements control.Job.
func (*single) Complete(context.Context) error { return errSingle }

// Fenced implements control.Job.
func (*single) Fenced() error { return errSingle }

// Switchover implements control.Job.
func (*single) Switchover(context.Context) error { return errSingle }
