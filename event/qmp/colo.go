package qmp

import (
	"context"

	"github.com/gocolo/lockstep/event"
)

// COLO is a session that runs or has ended. Its methods may be called from any
// goroutine.
type COLO interface {
	// COLOStatus returns the mode of this side, event.ModeNone outside a session,
	// the mode that it had before a failover, and why the session has ended.
	COLOStatus() (mode, last event.Mode, reason event.ExitReason)
	// LostHeartbeat orders a failover to this side. It returns when it is ordered.
	LostHeartbeat(ctx context.Context) error
}

// coloStatus is the answer to query-colo-status. (QAPI type COLOStatus.)
type coloStatus struct {
	Mode     event.Mode       `json:"mode"`
	LastMode event.Mode       `json:"last-mode"`
	Reason   event.ExitReason `json:"reason"`
}

// RegisterCOLO adds query-colo-status and x-colo-lost-heartbeat.
func RegisterCOLO(c *Commands, s COLO) {
	Register(c, "query-colo-status", func(context.Context, None) (coloStatus, error) {
		mode, last, reason := s.COLOStatus()
		return coloStatus{mode, last, reason}, nil
	})
	Register(c, "x-colo-lost-heartbeat", func(ctx context.Context, _ None) (None, error) {
		if mode, _, _ := s.COLOStatus(); mode != event.ModePrimary && mode != event.ModeSecondary {
			return None{}, refuse("The feature 'colo' is not enabled")
		}
		return None{}, s.LostHeartbeat(ctx)
	})
}

// Replication starts, stops and checkpoints the replication of a session's disks. Its
// methods may be called from any goroutine.
type Replication interface {
	// StartReplication starts the replication of all disks, as the primary or the secondary.
	StartReplication(ctx context.Context, primary bool) error
	// StopReplication ends it; failover says that this side goes on alone.
	StopReplication(ctx context.Context, failover bool) error
	// CheckpointReplication makes a checkpoint of all disks.
	CheckpointReplication(ctx context.Context) error
	// ReplicationError returns what is wrong with a disk, nil if nothing is.
	ReplicationError() error
}

// setReplication has the arguments of xen-set-replication.
type setReplication struct {
	Enable   bool  `json:"enable"`
	Primary  bool  `json:"primary"`
	Failover *bool `json:"failover"`
}

// replicationStatus is the answer to query-xen-replication-status. (QAPI type
// ReplicationStatus.)
type replicationStatus struct {
	Error bool   `json:"error"`
	Desc  string `json:"desc,omitempty"`
}

// RegisterReplication adds xen-set-replication, query-xen-replication-status and
// xen-colo-do-checkpoint.
func RegisterReplication(c *Commands, r Replication) {
	Register(c, "xen-set-replication", func(ctx context.Context, a setReplication) (None, error) {
		if a.Enable {
			if a.Failover != nil {
				return None{}, refuse("Parameter 'failover' is only for stopping replication")
			}
			return None{}, r.StartReplication(ctx, a.Primary)
		}
		failover := a.Failover != nil && *a.Failover
		if err := r.StopReplication(ctx, failover); err != nil && !failover {
			return None{}, err
		}
		return None{}, nil
	})
	Register(c, "query-xen-replication-status", func(context.Context, None) (replicationStatus, error) {
		if err := r.ReplicationError(); err != nil {
			return replicationStatus{true, err.Error()}, nil
		}
		return replicationStatus{}, nil
	})
	Register(c, "xen-colo-do-checkpoint", func(ctx context.Context, _ None) (None, error) {
		return None{}, r.CheckpointReplication(ctx)
	})
}
