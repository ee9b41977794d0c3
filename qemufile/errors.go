package qemufile

import (
	"errors"
	"fmt"
	"io"
)

// ErrTooLong is the error of a length beyond its limit: a string of more than
// 255 bytes to put, or a counted value whose length, as the peer claims it, is
// more than the caller allows. Nothing is allocated for such a value.
var ErrTooLong = errors.New("too long")

// Error says where in a stream an operation failed. [Reader.Err] and
// [Writer.Err] return one for every error that arose here or below; an error
// given to Fail is kept as it is.
type Error struct {
	Op     string // "read" or "write"
	Offset int64  // bytes from the start of the stream
	Err    error
}

// Error implements error.
func (e *Error) Error() string {
	return fmt.Sprintf("qemufile: %s at offset %d: %v", e.Op, e.Offset, e.Err)
}

// Unwrap returns the cause: io.EOF between values, io.ErrUnexpectedEOF inside
// one, [ErrTooLong], or the error of the underlying reader or writer.
func (e *Error) Unwrap() error { return e.Err }

// NoEOF turns io.EOF into io.ErrUnexpectedEOF, keeping the offset, and returns
// every other error, nil included, unchanged. A [Reader] knows only single
// values; whoever reads something made of several uses NoEOF after the first.
func NoEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	if e, ok := err.(*Error); ok && e.Err == io.EOF {
		return &Error{Op: e.Op, Offset: e.Offset, Err: io.ErrUnexpectedEOF}
	}
	return err
}
