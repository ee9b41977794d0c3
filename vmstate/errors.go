package vmstate

import (
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// Errors that a caller can tell apart with errors.Is. They do not name the package: a
// [SectionError] does, with the place. A function that reads or checks a single element
// (ReadHeader, ReadFooter, ReadCommand, the methods of Command, Incoming.Accept,
// Configuration.Check) knows no place and returns them without either; its caller adds both.
var (
	// ErrMagic: the stream does not begin with QEVM.
	ErrMagic = errors.New("not a migration stream")
	// ErrVersion: a version that is too new or too old: of the stream, of a
	// section, or of a subsection.
	ErrVersion = errors.New("unsupported version")
	// ErrConfiguration: the configuration section is missing, malformed, or
	// not that of the local machine.
	ErrConfiguration = errors.New("configuration")
	// ErrSectionType: a byte that begins no section here.
	ErrSectionType = errors.New("unknown section type")
	// ErrUnknownSection: no such device, or no such instance of it, or a
	// section id that no START or FULL has introduced.
	ErrUnknownSection = errors.New("unknown section or instance")
	// ErrSectionID: a section id that already belongs to another device.
	ErrSectionID = errors.New("section id in use")
	// ErrUnknownSubsection: a subsection whose name has the prefix of this
	// device, and which the device does not have, or which comes out of order.
	ErrUnknownSubsection = errors.New("unknown subsection")
	// ErrFooter: the section's footer is missing or carries another id.
	ErrFooter = errors.New("section footer")
	// ErrValue: a field has a value that its receiver cannot take.
	ErrValue = errors.New("unacceptable value")
	// ErrBounds: a count or a length beyond the capacity of what it counts.
	ErrBounds = errors.New("out of bounds")
	// ErrCommand: an unknown command, or one of the wrong length, form or time.
	ErrCommand = errors.New("command")
	// ErrReturnPath: an unknown message on the return path, or one of the wrong
	// length, form or time.
	ErrReturnPath = errors.New("return path")
	// ErrDescription: a VM description that cannot be read, or that does not
	// fit the sections it describes.
	ErrDescription = errors.New("vm description")
	// ErrTrailing: bytes after the end of a device state.
	ErrTrailing = errors.New("trailing bytes")
	// ErrUnmigratable: a registered device cannot be migrated.
	ErrUnmigratable = errors.New("state blocked by non-migratable device")
	// ErrSwitchover: the guest is to be stopped before the destination has
	// agreed, or the destination agrees more often than it was asked.
	ErrSwitchover = errors.New("switchover is not in order")
	// ErrDuplicate: two devices of one name and instance.
	ErrDuplicate = errors.New("already registered")
	// ErrPostcopyRun is no failure: [Registry.Load] returns it where the
	// stream says POSTCOPY_RUN. See there.
	ErrPostcopyRun = errors.New("postcopy run")
)

// A SectionError says which section failed and where in the stream. It wraps
// one of the sentinels of this package, io.ErrUnexpectedEOF, an error of
// package qemufile, or whatever the device or the loader returned.
type SectionError struct {
	Section Header // as far as it was read; Type 0xff where none was
	Offset  int64  // bytes from the start of the stream (of the device state)
	Err     error
}

// Error implements error.
func (e *SectionError) Error() string {
	if e.Section.Type == noSection {
		return fmt.Sprintf("vmstate: offset %d: %v", e.Offset, e.Err)
	}
	return fmt.Sprintf("vmstate: section %s at offset %d: %v", e.Section, e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *SectionError) Unwrap() error { return e.Err }

// noSection marks a SectionError outside any section.
const noSection SectionType = 0xff

// sectionError wraps err unless it is nil or already says which section. A
// stream that ends inside a section ends unexpectedly.
func sectionError(h Header, offset int64, err error) error {
	if err == nil {
		return nil
	}
	var se *SectionError
	if errors.As(err, &se) {
		return err
	}
	return &SectionError{Section: h, Offset: offset, Err: qemufile.NoEOF(err)}
}

// streamError wraps what failed outside any section.
func streamError(offset int64, err error) error {
	return sectionError(Header{Type: noSection}, offset, err)
}

// FieldError says which field of a section or subsection was refused.
type FieldError struct {
	Field string // description and field name, as "timer:mode"
	Err   error
}

// Error implements error.
func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *FieldError) Unwrap() error { return e.Err }
