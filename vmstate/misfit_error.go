package vmstate

import (
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// A MisfitError says how a device section and its description disagree. The section's
// bounds were found in another way, so that other devices are read all the same. It wraps
// [ErrDescription].
//
// The stream is not bad because of that: only an inspector reads the description, and
// QEMU's own is wrong for some devices (an array of pointers whose first is null, as
// s390-ccw-virtio has).
type MisfitError struct {
	Name     string
	Instance uint32
	// Described and Found are the lengths of the body in bytes. Where they are
	// equal, it is a part inside that does not fit. Described is -1 where the
	// description does not tell.
	Described, Found int64
	// Err says what else is known: which field, or why there is no length. It
	// may be nil.
	Err error
}

// Error implements error: "device piix4_pm: described 2432 bytes, found 2440".
func (e *MisfitError) Error() string {
	text := "device " + e.Name
	if e.Instance != 0 {
		text += fmt.Sprintf(" instance %d", e.Instance)
	}
	text += ": "
	if e.Described >= 0 && e.Described != e.Found {
		text += fmt.Sprintf("described %d bytes, found %d", e.Described, e.Found)
		if e.Err != nil {
			text += ": "
		}
	}
	if e.Err != nil {
		text += e.Err.Error()
	}
	return text
}

// Unwrap returns [ErrDescription], and what Err has.
func (e *MisfitError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrDescription}
	}
	return []error{ErrDescription, e.Err}
}

// fits compares the length of a body with what the description adds up to; nil if they
// agree.
func (d *DeviceDesc) fits(found int) error { return d.misfit(d.Len(), found) }

// misfit does what fits does, for a description of which Len has returned n.
func (d *DeviceDesc) misfit(n int64, found int) error {
	if d.Broken != nil {
		return &MisfitError{Name: d.Name, Instance: d.Instance, Described: -1, Found: int64(found), Err: d.Broken}
	}
	if n < 0 {
		return &MisfitError{Name: d.Name, Instance: d.Instance, Described: -1, Found: int64(found), Err: fmt.Errorf("described as more than 1 TiB, found %d bytes", found)}
	}
	if n != int64(found) {
		return &MisfitError{Name: d.Name, Instance: d.Instance, Described: n, Found: int64(found)}
	}
	return nil
}

// undescribed returns the error of a section that is not in the description.
func undescribed(h Header, found int) error {
	return &MisfitError{Name: h.Name, Instance: h.Instance, Described: -1, Found: int64(found), Err: fmt.Errorf("nothing describes it")}
}

// withoutOffset returns err without its offset, which counts from the beginning of a
// body and not of the stream.
func withoutOffset(err error) error {
	err = qemufile.NoEOF(err)
	if e, ok := err.(*qemufile.Error); ok {
		return e.Err
	}
	return err
}
