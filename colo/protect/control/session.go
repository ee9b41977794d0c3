package control

import (
	"context"
	"errors"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
)

// session makes the sessions of a monitor's job a qmp.COLO.
type session Monitor

// COLOStatus returns the status of the present session, or how the last one ended.
func (s *session) COLOStatus() (mode, last event.Mode, reason event.ExitReason) {
	in := s.job.Query()
	s.mu.Lock()
	last, reason = s.last, s.reason
	s.mu.Unlock()
	mode = event.ModeNone
	if in.Session == nil {
		return mode, last, reason
	}
	switch in.State {
	case protect.Synchronising, protect.Protected, protect.SwitchingOver, protect.Following:
		return in.Session.Mode, in.Session.LastMode, in.Session.Reason
	case protect.Asking, protect.TakingOver:
		// QEMU's own session lasts until its failover is done, and a failover can
		// be ordered here.
		return in.Session.LastMode, in.Session.LastMode, event.ExitProcessing
	}
	return mode, last, reason
}

// LostHeartbeat orders a failover to this host.
func (s *session) LostHeartbeat(context.Context) error {
	return (*Monitor)(s).ordered("x-colo-lost-heartbeat", s.job.Failover())
}

// disks makes the disks of a monitor's job a qmp.Replication. The job itself starts and
// stops their replication.
type disks Monitor

var errByItself = errors.New("the protection of a guest starts and stops its replication by itself")

// StartReplication does nothing if the job replicates in that direction already, and
// fails otherwise.
func (d *disks) StartReplication(_ context.Context, primary bool) error {
	if in := d.job.Query(); in.Session != nil && primary == (in.Role == event.ModePrimary) {
		return nil
	}
	return errByItself
}

// StopReplication does nothing if no disk is replicated, and fails otherwise.
func (d *disks) StopReplication(_ context.Context, failover bool) error {
	if failover || d.job.Query().Session != nil {
		return errByItself
	}
	return nil
}

func (d *disks) CheckpointReplication(context.Context) error {
	return (*Monitor)(d).ordered("xen-colo-do-checkpoint", d.job.Checkpoint())
}

func (d *disks) ReplicationError() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.broken
}
