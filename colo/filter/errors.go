package filter

import (
	"errors"
	"fmt"
)

var (
	// ErrFrameTooBig says that a frame is longer than [MaxFrame].
	ErrFrameTooBig = errors.New("frame too big")

	// ErrFrame says that what the peer sent is no frame: of length zero, or
	// with a virtio-net header that does not fit.
	ErrFrame = errors.New("malformed frame")

	// ErrFull says that a buffer is at its limit. Nothing was taken; the caller
	// keeps the packet.
	ErrFull = errors.New("filter: buffer full")

	// ErrEpoch says that a checkpoint's steps came in the wrong order.
	ErrEpoch = errors.New("epoch out of order")
)

// An Error says where something failed. It wraps one of this package's
// sentinels or the error of a connection.
type Error struct {
	Op     string // what was being done
	Offset int64  // bytes into the stream, where the frame begins; -1 if there is no stream
	Err    error
}

func (e *Error) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("filter: %s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("filter: %s: frame at offset %d: %v", e.Op, e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
