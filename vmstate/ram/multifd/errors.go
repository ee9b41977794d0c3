package multifd

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// What can be wrong with a channel. Each is found with errors.Is within an
// [*Error].
var (
	ErrMagic   = errors.New("not a multifd channel")
	ErrVersion = errors.New("unsupported version of multifd")
	ErrUUID    = errors.New("channel of another VM")
	ErrChannel = errors.New("channel number out of range")
	ErrFlags   = errors.New("unknown combination of multifd flags")
	ErrCount   = errors.New("page count out of range")
	ErrOffset  = errors.New("page offset is not a multiple of the page size")
	ErrBlock   = errors.New("bad block name")
	ErrSize    = errors.New("length of the contents does not fit the pages")
	ErrMethod  = errors.New("nothing here decompresses this method")
	ErrDecode  = errors.New("compressed contents are corrupt")
)

// Error says where in a channel something is wrong.
type Error struct {
	Stream int64 // where the packet begins in the channel, in bytes
	Err    error
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("multifd: packet at %d: %v", e.Stream, e.Err) }

// Unwrap returns the cause: one of the errors above, or the error of the stream.
func (e *Error) Unwrap() error { return e.Err }

func wrap(at int64, err error) error { return &Error{Stream: at, Err: err} }

// checkMagic checks the first 8 bytes of an init packet or a packet.
func checkMagic(p []byte) error {
	if m := binary.BigEndian.Uint32(p); m != Magic {
		return fmt.Errorf("%w: magic %#x", ErrMagic, m)
	}
	if v := binary.BigEndian.Uint32(p[4:]); v != Version {
		return fmt.Errorf("%w: %d", ErrVersion, v)
	}
	return nil
}
