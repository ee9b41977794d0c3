package main

import (
	"context"
	"errors"
	"net"
	"sync"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/trial"
)

// monitor serves a side's QMP monitor until ctx ends.
func (s *side) monitor(ctx context.Context, l net.Listener) error {
	m := &monitor{side: s}
	defer m.end()
	var c qmp.Commands
	qmp.RegisterName(&c, s.cfg.Side)
	qmp.RegisterMachine(&c, m)
	qmp.RegisterCOLO(&c, m)
	qmp.Register(&c, "xen-colo-do-checkpoint", func(context.Context, qmp.None) (qmp.None, error) {
		p, ok := s.session.(*colo.Primary)
		if !ok {
			return qmp.None{}, errors.New("checkpoints are the primary's to make")
		}
		p.RequestCheckpoint(event.CauseRequest)
		return qmp.None{}, nil
	})
	qmp.Register(&c, "query-session", func(context.Context, qmp.None) (colo.Info, error) { return s.session.Info(), nil })
	return (&qmp.Server{Commands: &c, Bus: &s.events}).Serve(ctx, l)
}

// monitor is what a monitor steers of a side.
type monitor struct {
	side *side

	mu      sync.Mutex
	stopped bool // one pause of the guest is the operator's
}

// RunState implements qmp.Machine.
func (m *monitor) RunState() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch m.side.session.Info().State {
	case colo.StateAsking, colo.StateTakingOver:
		return "colo"
	case colo.StateStopped:
		return "postmigrate"
	case colo.StateNew, colo.StateSynchronising:
		if m.side.cfg.Side == trial.Secondary {
			return "inmigrate"
		}
	}
	if m.stopped {
		return "paused"
	}
	return "running"
}

// Stop implements qmp.Machine: a pause beside those of the session.
func (m *monitor) Stop(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return nil
	}
	err := m.side.machine.Pause(ctx)
	m.stopped = err == nil
	return err
}

// Cont implements qmp.Machine.
func (m *monitor) Cont(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.stopped {
		return errors.New("the guest stands still for its session")
	}
	err := m.side.machine.Resume(ctx)
	m.stopped = err != nil
	return err
}

// end lets a guest run that was stopped.
func (m *monitor) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		m.side.machine.Resume(context.Background())
	}
}

// COLOStatus implements qmp.COLO.
func (m *monitor) COLOStatus() (mode, last event.Mode, reason event.ExitReason) {
	in := m.side.session.Info()
	return in.Mode, in.LastMode, in.Reason
}

// LostHeartbeat implements qmp.COLO: the witness is asked who goes on.
func (m *monitor) LostHeartbeat(context.Context) error {
	m.side.session.Lost(errors.New("the monitor says that the other side is lost"))
	return nil
}
