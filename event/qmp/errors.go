package qmp

import (
	"errors"
	"fmt"
)

// Class says what a client can do about an error: most are a GenericError, whose text is for
// people only. (QAPI enum QapiErrorClass.)
type Class string

// The classes.
const (
	GenericError    Class = "GenericError"
	CommandNotFound Class = "CommandNotFound"
	DeviceNotActive Class = "DeviceNotActive"
	DeviceNotFound  Class = "DeviceNotFound"
	KVMMissingCap   Class = "KVMMissingCap"
)

// An Error is the answer of a monitor in place of a result. A command of a host
// that returns one, wrapped or not, is answered with its class; any other error
// is a GenericError with its text. A [Client] returns them.
type Error struct {
	Command string `json:"-"` // the command that was refused; set by a Client
	Class   Class  `json:"class"`
	Desc    string `json:"desc"` // what is wrong, in words
}

func (e *Error) Error() string {
	if e.Command == "" {
		return e.Desc
	}
	return e.Command + ": " + e.Desc
}

// refuse returns a GenericError.
func refuse(format string, args ...any) error {
	return &Error{Class: GenericError, Desc: fmt.Sprintf(format, args...)}
}

// classed returns the class and the text of an error.
func classed(err error) (Class, string) {
	if e := (*Error)(nil); errors.As(err, &e) {
		if e.Class == "" {
			return GenericError, e.Desc
		}
		return e.Class, e.Desc
	}
	return GenericError, err.Error()
}
