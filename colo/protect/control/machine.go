package control

import (
	"context"
	"errors"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
)

// runs reports whether the guest that the world sees runs here.
func runs(s protect.State) bool {
	switch s {
	case protect.Alone, protect.Synchronising, protect.Protected, protect.Paused:
		return true
	}
	return s.String() == "cancelled" // after job-cancel the guest runs on, unprotected
}

// gone reports whether the guest certainly does not run here. That is not certain while the
// arbiter is asked who goes on, or while the guest moves.
func gone(s protect.State) bool {
	return s == protect.Waiting || s == protect.Following || s == protect.Concluded
}

// machine makes the guest of a monitor a qmp.Machine.
type machine Monitor

var (
	errNoGuest = errors.New("this host does not let its guest be stopped")
	errNotHere = errors.New("the guest runs on the other host, or it is being settled where")
)

// RunState returns the state of the guest as a QEMU would name it (QAPI RunState).
func (m *machine) RunState() string {
	in := m.job.Query()
	m.mu.Lock()
	defer m.mu.Unlock()
	switch s := in.State; {
	case runs(s) && m.stopped:
		return "paused"
	case runs(s):
		return "running"
	case s == protect.Created:
		return "prelaunch"
	case s == protect.Waiting, s == protect.Following && !whole(in):
		return "inmigrate"
	case s == protect.SwitchingOver:
		return "finish-migrate"
	case s == protect.Concluded:
		return "shutdown"
	}
	return "colo"
}

// whole reports whether a host that follows has a first checkpoint.
func whole(in protect.Info) bool {
	return in.Session != nil && in.Session.State != colo.StateNew && in.Session.State != colo.StateSynchronising
}

// Stop pauses the guest, beside what the job does with it.
func (m *machine) Stop(ctx context.Context) error {
	defer m.settle()
	m.operator.Lock()
	defer m.operator.Unlock()
	switch in := m.job.Query(); {
	case m.cfg.Guest == nil:
		return errNoGuest
	case !runs(in.State):
		return errNotHere
	case m.isStopped():
		return nil
	}
	if err := m.cfg.Guest.Pause(ctx); err != nil {
		return err
	}
	m.set(true)
	m.cfg.Events.Publish(event.Stop{})
	(*Monitor)(m).ordered("stop", nil)
	return nil
}

// Cont takes back the pause that Stop made. A guest that stands still for another
// reason too goes on standing still.
func (m *machine) Cont(ctx context.Context) error {
	if m.cfg.Guest == nil {
		return errNoGuest
	}
	defer m.settle()
	m.operator.Lock()
	defer m.operator.Unlock()
	if !m.isStopped() {
		return errNotHere
	}
	if err := m.cfg.Guest.Resume(ctx); err != nil {
		return err
	}
	m.set(false)
	m.cfg.Events.Publish(event.Resume{})
	(*Monitor)(m).ordered("cont", nil)
	return nil
}

// left takes an operator's pause back when the guest does not run here any more: a
// host that follows must not find its guest stopped when it takes over. It does not
// wait for a stop or cont under way, which does it then.
func (m *machine) left() {
	m.leave.Store(true)
	m.settle()
}

func (m *machine) settle() {
	for m.leave.Load() && m.operator.TryLock() {
		m.leave.Store(false)
		ctx, cancel := context.WithTimeout(context.Background(), colo.DefaultPeerTimeout)
		if err := m.release(ctx); err != nil {
			m.log.Error("the guest stays stopped", "guest", m.job.Query().Guest, "error", err)
		}
		cancel()
		m.operator.Unlock()
	}
}

// release takes an operator's pause back. It is called with operator held.
func (m *machine) release(ctx context.Context) error {
	if !m.isStopped() {
		return nil
	}
	err := m.cfg.Guest.Resume(ctx)
	if err == nil {
		m.set(false)
	}
	return err
}

func (m *machine) isStopped() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stopped
}

func (m *machine) set(stopped bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = stopped
}
