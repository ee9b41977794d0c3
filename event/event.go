package event

import "encoding/json"

// An Event is a fact about a session. Its JSON encoding is the "data" member
// of the QMP event; an event without members encodes as an empty object.
// Events are values: they may be kept, copied and sent between goroutines.
type Event interface {
	// Name is the event's QMP name, in capitals.
	Name() string
}

// COLOExit says that the COLO session has ended on this side, and why.
// (QAPI event COLO_EXIT.)
type COLOExit struct {
	Mode   Mode       `json:"mode"`
	Reason ExitReason `json:"reason"`

	// Error is the failure in words. QEMU's first proposals of this event had
	// it, its present form does not; it is absent when the reason is a request.
	Error string `json:"error,omitempty"`
}

// Name returns "COLO_EXIT".
func (COLOExit) Name() string { return "COLO_EXIT" }

// Stop says that the guest was paused. (QAPI event STOP.)
type Stop struct{}

// Name returns "STOP".
func (Stop) Name() string { return "STOP" }

// Resume says that the guest runs again. (QAPI event RESUME.)
type Resume struct{}

// Name returns "RESUME".
func (Resume) Name() string { return "RESUME" }

// Migration says that the migration which carries the session has a new
// status. (QAPI event MIGRATION.)
type Migration struct {
	Status MigrationStatus `json:"status"`
}

// Name returns "MIGRATION".
func (Migration) Name() string { return "MIGRATION" }

// MigrationPass says that a pass over the dirty pages begins, counted from 1.
// (QAPI event MIGRATION_PASS.)
type MigrationPass struct {
	Pass int `json:"pass"`
}

// Name returns "MIGRATION_PASS".
func (MigrationPass) Name() string { return "MIGRATION_PASS" }

// CheckpointStart says that a checkpoint has begun. It is this library's own
// event; QEMU reports single checkpoints only to its trace.
type CheckpointStart struct {
	Mode  Mode   `json:"mode"`
	Epoch uint64 `json:"epoch"`           // the epoch that the checkpoint ends; 0 is the initial synchronisation
	Cause Cause  `json:"cause,omitempty"` // known to the primary only
}

// Name returns "CHECKPOINT_START".
func (CheckpointStart) Name() string { return "CHECKPOINT_START" }

// CheckpointCommit says that both sides have a checkpoint: a failover from now
// on goes back no further than this. It is this library's own event.
type CheckpointCommit struct {
	Mode  Mode   `json:"mode"`
	Epoch uint64 `json:"epoch"`
	Cause Cause  `json:"cause,omitempty"` // known to the primary only
	Pages uint64 `json:"pages"`           // pages of guest memory that were sent; 0 on a secondary
	Bytes uint64 `json:"bytes"`           // bytes on the wire, memory and devices

	PauseNS    int64 `json:"pause-ns"`             // how long the guest stood still, nanoseconds
	StoppedNS  int64 `json:"stopped-ns,omitempty"` // how long the guest really stood still in the pause of StoppedEpoch, as the VM measures it, the longest over its vCPUs, nanoseconds; 0: it does not
	TransferNS int64 `json:"transfer-ns"`          // from the first byte of state to its receipt, nanoseconds
	CommitNS   int64 `json:"commit-ns"`            // from receipt until the secondary's guest has this state, nanoseconds

	// StoppedEpoch is Epoch on a primary that resumes early, and the epoch before on another
	// one and on a secondary: they commit before the guest's vCPUs are back.
	StoppedEpoch uint64 `json:"stopped-epoch,omitempty"`

	// EarlyResume says that the primary's guest ran on while the state was sent.
	EarlyResume bool `json:"early-resume"`
}

// Name returns "CHECKPOINT_COMMIT".
func (CheckpointCommit) Name() string { return "CHECKPOINT_COMMIT" }

// FailoverDone says that this side goes on alone. It is this library's own
// event.
type FailoverDone struct {
	Mode  Mode   `json:"mode"`  // the role that it had
	Epoch uint64 `json:"epoch"` // the last checkpoint that it has

	// Status is the failover status by its QAPI name (FailoverStatus), as the
	// String of a failover.Status gives it.
	Status string `json:"status"`
}

// Name returns "FAILOVER".
func (FailoverDone) Name() string { return "FAILOVER" }

// Unknown is an event that [Decode] has no type for, with its data as text.
type Unknown struct {
	Event string          // its QMP name
	Data  json.RawMessage // its data member; nil if it had none
}

// Name returns the name that the event came with.
func (u Unknown) Name() string { return u.Event }

// MarshalJSON returns the data as it came.
func (u Unknown) MarshalJSON() ([]byte, error) {
	if len(u.Data) == 0 {
		return []byte("{}"), nil
	}
	return u.Data, nil
}
