package colo

import (
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

var (
	// ErrFailover is why a session ended when a failover was asked for:
	// Run itself returns nil then, since this side went on.
	ErrFailover = errors.New("failover requested")

	// ErrEnded: a failover was ordered after the session had ended without
	// one. Whether the guest runs here is what Run returned.
	ErrEnded = errors.New("session has ended")

	// ErrLost is the cause of a session that the host ended with Lost
	// without giving a reason.
	ErrLost = errors.New("peer reported lost")

	// ErrSize: the peer announced more device state than MaxDeviceState.
	ErrSize = errors.New("device state too large")

	// ErrTimeout: the peer, or the host's own VM, did not do within its
	// time what the protocol waits for. It wraps os.ErrDeadlineExceeded
	// where a connection said so.
	ErrTimeout = errors.New("timed out")

	// ErrRefused: the arbiter gave the guest to the other side. The guest
	// is paused here and nothing that it held has left.
	ErrRefused = failover.ErrRefused

	// ErrDegraded: this side took over and the guest runs here, but
	// something of the takeover failed (a disk, the network); the rest of
	// the error says what.
	ErrDegraded = errors.New("took over with errors")
)

// Error says where a session failed: which side, in which checkpoint (0 is the
// initial synchronisation) and at which step.
type Error struct {
	Mode  event.Mode
	Epoch uint64
	Op    string // a step, as the package comment names it
	Err   error
}

func (e *Error) Error() string {
	return fmt.Sprintf("colo: %s: checkpoint %d: %s: %v", e.Mode, e.Epoch, e.Op, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// MessageError is a message out of turn, or an unknown one.
type MessageError struct {
	Got, Want Message
	Offset    int64 // of the message in the peer's stream, in bytes
}

func (e *MessageError) Error() string {
	return fmt.Sprintf("offset %d: got %v, want %v", e.Offset, e.Got, e.Want)
}
