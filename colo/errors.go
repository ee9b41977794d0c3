package colo

import (
	"errors"
	"fmt"
	"os"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

var (
	// ErrFailover is the reason of a session that ended because a failover was
	// ordered: Run itself returns nil then, since this side went on.
	ErrFailover = errors.New("failover requested")

	// ErrEnded: an order was given, or Run was called, after the session had
	// ended. Whether the guest runs here is what the first Run returned.
	ErrEnded = errors.New("session has ended")

	// ErrEndedByPeer is for the Expect of a host whose peer has ended the protection on purpose, and
	// has said so over a connection of the two hosts' own: PROTECTION_ENDED says that it was ordered there.
	ErrEndedByPeer = errors.New("the peer's host has ended the protection on purpose")

	// ErrGoodbye: the peer has ended the protection on purpose, or has said
	// that it cannot take part in it; the error is then a *GoodbyeError. A
	// secondary that was ended by End returns it from Run, too. A secondary
	// that returns it must not go on with its guest: the primary runs.
	ErrGoodbye = errors.New("protection ended on purpose")

	// ErrOutOfTurn: the secondary spoke where it has nothing to say but
	// goodbye. A *MessageError tells which word it was, if it was a whole one.
	ErrOutOfTurn = errors.New("the peer speaks out of turn")

	// ErrStalled: a checkpoint was not received within CheckpointTimeout. The
	// primary gives its secondary up, by way of the arbiter. It matches
	// ErrTimeout and os.ErrDeadlineExceeded.
	ErrStalled error = stalled{}

	// ErrNotPaused: this side does not go on, and its guest could not be
	// paused: it may run. Nothing of it leaves.
	ErrNotPaused = errors.New("the guest may still run")

	// ErrNotResumed: this side goes on, its output may leave, and its guest
	// stands still, since Resume failed.
	ErrNotResumed = errors.New("the guest could not be resumed")

	// ErrLost is the cause of a session that the host ended with Lost
	// without giving a reason.
	ErrLost = errors.New("peer reported lost")

	// ErrSize: the peer announced more device state than MaxDeviceState.
	ErrSize = errors.New("device state too large")

	// ErrTimeout: the peer, or the VM or a disk of this host, did not do in time
	// what the protocol waits for. It wraps os.ErrDeadlineExceeded where a
	// connection said so.
	ErrTimeout = errors.New("timed out")

	// ErrRefused: the arbiter gave the guest to the other side. The guest
	// is paused here and nothing that it held has left.
	ErrRefused = failover.ErrRefused

	// ErrDegraded: this side took over and the guest runs here, but
	// something of the takeover failed (a disk, the network); the rest of
	// the error says what.
	ErrDegraded = errors.New("took over with errors")
)

// GoodbyeError is the peer's last word. It matches ErrGoodbye.
type GoodbyeError struct {
	// Reason is the reason that the peer gave, in words; it may be empty. Unprintable
	// characters are replaced.
	Reason string
}

func (e *GoodbyeError) Error() string {
	if e.Reason == "" {
		return "the peer said goodbye"
	}
	return "the peer said goodbye: " + e.Reason
}

// Is reports whether target is ErrGoodbye.
func (e *GoodbyeError) Is(target error) bool { return target == ErrGoodbye }

// stalled is the type of ErrStalled: a type of its own, so that errors.Is finds
// ErrTimeout and os.ErrDeadlineExceeded in it.
type stalled struct{}

func (stalled) Error() string { return "the checkpoint took too long" }

func (stalled) Is(target error) bool {
	return target == ErrTimeout || target == os.ErrDeadlineExceeded
}

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

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// MessageError is a message out of turn, or an unknown one.
type MessageError struct {
	Got, Want Message
	Offset    int64 // of the message in the peer's stream, in bytes
}

func (e *MessageError) Error() string {
	return fmt.Sprintf("offset %d: got %v, want %v", e.Offset, e.Got, e.Want)
}
