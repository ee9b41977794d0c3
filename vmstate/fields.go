package vmstate

import (
	"bytes"
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// mode says whether a walk over the fields of a device saves, loads or describes.
type mode uint8

const (
	saving mode = iota
	loading
	describing
)

// Fields carries the fields of a device out of it or into it. A device names
// each field once, in wire order; the same walk saves, loads and describes.
//
// While loading, values are written through the pointers at once, so a later
// field may depend on an earlier one, and everything is undone if the load is
// rolled back. Therefore:
//
//   - a device must not change anything else of itself from inside VMState:
//     derived state belongs into PostLoad, or goes through [Set] or OnRollback;
//   - a count that came from the stream must be checked before it is used:
//     [Fields.Count], [Elems] and [Resize] do that;
//   - a pointer given to a field must stay valid until Commit or Rollback.
//
// # Refusing
//
// A device may refuse a state in three places, and the earlier the better:
//
//   - in VMState, with [Fields.Check] for a condition on fields named before it,
//     with Fail for anything else, or by the fields that check themselves
//     (Uint32Equal, Int32LE, [Elems], [Counted]). Nothing has been applied yet,
//     of any device, and everything is rolled back;
//   - in OnCommit, for what depends on fields of the part that come later, or on
//     other devices: these have their values by then. The load has been accepted
//     and [Registry.Commit] fails; devices before this one have been applied;
//   - in PostLoad, the same for the whole device.
//
// # Versions
//
// Version returns the version of the description that is being carried. In VMState that is
// the version of the device. Inside Struct, VStruct, Structs, a list or a Subsection it is
// the version of the part, which the caller of these names (for a subsection that is loaded,
// the stream does). DeviceVersion returns the version of the device everywhere.
//
// The first error sticks; after it nothing is loaded any more. A Fields is only
// valid during the call it is passed to.
//
// There is a method or function for every kind of field that QEMU has
// (include/migration/vmstate.h), but for file descriptors, which travel beside
// the bytes of a stream. A pointer to one value needs none: name the value.
type Fields struct {
	mode    mode
	w       *qemufile.Writer // set while saving
	r       *qemufile.Reader // set while loading
	undo    *undoLog         // set while loading
	desc    *describer       // set while describing
	after   *[]func() error  // loading: to be called by Commit
	version uint32
	device  uint32 // version of the device
	vmsd    string // the description whose fields these are
	inSubs  bool   // a subsection of vmsd has been named
	err     error
}

// Loading reports whether values go into the device.
func (f *Fields) Loading() bool { return f.mode == loading }

// Version returns the version of the description being carried: the entry's
// when saving, the stream's when loading; inside Struct, VStruct or Subsection
// the version of that part. A field that exists since version n is named inside
// "if f.Version() >= n".
func (f *Fields) Version() uint32 { return f.version }

// DeviceVersion returns the version of the device whose fields are carried: what
// Version returns outside of any part.
func (f *Fields) DeviceVersion() uint32 { return f.device }

// OnCommit registers fn to be called when this load is committed, after those that
// were registered before and before the device's PostLoad: it is the PostLoad of a
// part. Its error ends [Registry.Commit]. It does nothing unless loading.
func (f *Fields) OnCommit(fn func() error) {
	if f.mode == loading && f.after != nil && f.Err() == nil {
		*f.after = append(*f.after, fn)
	}
}

// Fail refuses the state, unless something failed before; err nil is ignored.
// A device calls it for a value it cannot take, best wrapping [ErrValue].
func (f *Fields) Fail(err error) {
	if f.err == nil {
		f.err = err
	}
}

// Err returns the first error so far.
func (f *Fields) Err() error {
	if f.err == nil {
		switch f.mode {
		case loading:
			f.err = qemufile.NoEOF(f.r.Err())
		case saving:
			f.err = f.w.Err()
		}
	}
	return f.err
}

// failField refuses the value of the field with that name.
func (f *Fields) failField(name string, err error) {
	f.Fail(&FieldError{Field: f.vmsd + ":" + name, Err: err})
}

// OnRollback registers fn to be called if this load is rolled back, in reverse
// order with the fields. It does nothing unless loading.
func (f *Fields) OnRollback(fn func()) {
	if f.mode == loading {
		f.undo.add(fn, 0)
	}
}

// Set stores v in *p while loading, and undoes that on a rollback; otherwise it
// does nothing. It is for what a device computes from fields at once, instead of
// in PostLoad.
func Set[T any](f *Fields, p *T, v T) {
	if f.mode == loading && f.Err() == nil {
		old := *p
		f.undo.add(func() { *p = old }, 0)
		*p = v
	}
}

// Count returns n as an int if it is at most max, and otherwise fails with
// [ErrBounds] and returns 0. Use it on every count that came from the stream.
func (f *Fields) Count(n uint64, max int) int {
	if n > uint64(max) {
		f.Fail(fmt.Errorf("%s: count %d, at most %d: %w", f.vmsd, n, max, ErrBounds))
		return 0
	}
	return int(n)
}

// Elems returns the first n elements of s, for an array whose length is an
// earlier field (VARRAY and VBUFFER). It fails with [ErrBounds] and returns none
// if s has fewer.
func Elems[T any](f *Fields, s []T, n uint64) []T { return s[:f.Count(n, len(s))] }

// Resize returns *s for an array whose length n is an earlier field. While loading it
// first makes *s a new slice of n zero elements, or fails with [ErrBounds] if n is above
// max; a rollback brings the old slice back. While saving *s must have n elements already.
func Resize[T any](f *Fields, s *[]T, n uint64, max int) []T {
	if f.mode != loading {
		return Elems(f, *s, n)
	}
	c := f.Count(n, max)
	if f.Err() != nil {
		return nil
	}
	Set(f, s, make([]T, c))
	return *s
}

// Check fails with [ErrValue] unless ok. It carries no bytes: it is a condition
// on fields named before it (QEMU's VMSTATE_VALIDATE), asked only when loading.
func (f *Fields) Check(name string, ok bool) {
	if f.mode == loading && !ok && f.Err() == nil {
		f.failField(name, fmt.Errorf("validation failed: %w", ErrValue))
	}
}

// Unused stands for n bytes that an older version used: zeros are written, and what is
// read is skipped.
func (f *Fields) Unused(n int) {
	switch f.mode {
	case saving:
		var zero [64]byte
		for n > 0 {
			m, _ := f.w.Write(zero[:min(n, len(zero))])
			if m == 0 {
				return
			}
			n -= m
		}
	case loading:
		f.r.Skip(uint64(n))
	case describing:
		f.describe("unused", "unused_buffer", n, 1)
	}
}

// Bytes carries a buffer whose length both sides know. For one whose length is
// an earlier field, give Elems of it.
func (f *Fields) Bytes(name string, p []byte) { f.Info(name, "buffer", p) }

// Info is Bytes with a type of its own in the description, such as "pci config".
func (f *Fields) Info(name, typ string, p []byte) {
	switch f.mode {
	case saving:
		f.w.Write(p)
	case loading:
		if f.Err() == nil && len(p) > 0 {
			f.undo.bytes(p)
			f.r.ReadFull(p)
		}
	case describing:
		f.describe(name, typ, len(p), 1)
	}
}

// Capability carries a name preceded by its length in one byte, as capabilities
// are in the configuration section.
func (f *Fields) Capability(name string, p *string) {
	switch f.mode {
	case saving:
		f.w.PutCountedString(*p)
	case loading:
		Set(f, p, f.r.CountedString())
	case describing:
		f.describe(name, "capability", 1+len(*p), 1)
	}
}

// Struct carries the fields of a part, which has a description of its own.
// Neither name nor version is on the wire: version is what both sides have.
func (f *Fields) Struct(name, vmsd string, version uint32, fn func(*Fields)) {
	f.nested(name, "struct", vmsd, version, fn)
}

// VStruct does what Struct does, for a part that is pinned to an old version of its
// description.
func (f *Fields) VStruct(name, vmsd string, version uint32, fn func(*Fields)) {
	f.nested(name, "vstruct", vmsd, version, fn)
}

// Tmp carries the fields of a value that exists only for the stream
// (VMSTATE_WITH_TMP): fn makes it from the device, names its fields and, if
// f.Loading(), applies it with [Set].
func (f *Fields) Tmp(name, vmsd string, version uint32, fn func(*Fields)) {
	if f.mode == describing {
		f.desc.tmp(f, name, vmsd, version, func() { f.within(vmsd, version, fn) })
		return
	}
	f.within(vmsd, version, fn)
}

// StructArray carries n parts of one description, back to back. No count is on
// the wire; if n came from the stream it must have passed Count.
func (f *Fields) StructArray(name, vmsd string, version uint32, n int, fn func(i int, f *Fields)) {
	if f.mode == describing {
		f.desc.array(f, name, n, func(i int) {
			f.desc.structBody("struct", vmsd, version, func() { f.withinElem(vmsd, version, i, fn) })
		})
		return
	}
	for i := 0; i < n && f.Err() == nil; i++ {
		f.withinElem(vmsd, version, i, fn)
	}
}

// nullMarker stands for a nil element in an array of pointers
// (VMS_NULLPTR_MARKER).
const nullMarker = 0x30

// Pointers is StructArray for an array of pointers: a nil element is a single
// byte. Whether an element is nil is not on the wire; both sides must agree, and
// the receiver fails with [ErrValue] where it sees that they do not.
func (f *Fields) Pointers(name, vmsd string, version uint32, n int, isNil func(i int) bool, fn func(i int, f *Fields)) {
	if f.mode == describing {
		f.desc.array(f, name, n, func(i int) {
			if isNil(i) {
				f.desc.plainBody("nullptr", 1)
				return
			}
			f.desc.structBody("struct", vmsd, version, func() { f.withinElem(vmsd, version, i, fn) })
		})
		return
	}
	for i := 0; i < n && f.Err() == nil; i++ {
		switch {
		case !isNil(i):
			f.withinElem(vmsd, version, i, fn)
		case f.mode == saving:
			f.w.PutByte(nullMarker)
		default:
			if got := f.r.Byte(); f.Err() == nil && got != nullMarker {
				f.failField(name, fmt.Errorf("byte %#02x where element %d is null: %w", got, i, ErrValue))
			}
		}
	}
}

func (f *Fields) nested(name, typ, vmsd string, version uint32, fn func(*Fields)) {
	if f.mode == describing {
		f.desc.structField(f, name, typ, vmsd, version, func() { f.within(vmsd, version, fn) })
		return
	}
	f.within(vmsd, version, fn)
}

// within carries one description: its fields, then its subsections.
func (f *Fields) within(vmsd string, version uint32, fn func(*Fields)) {
	if f.Err() != nil {
		return
	}
	v, name, subs := f.version, f.vmsd, f.inSubs
	f.version, f.vmsd, f.inSubs = version, vmsd, false
	fn(f)
	f.end()
	f.version, f.vmsd, f.inSubs = v, name, subs
}

func (f *Fields) withinElem(vmsd string, version uint32, i int, fn func(int, *Fields)) {
	if f.Err() != nil {
		return
	}
	v, name, subs := f.version, f.vmsd, f.inSubs
	f.version, f.vmsd, f.inSubs = version, vmsd, false
	fn(i, f)
	f.end()
	f.version, f.vmsd, f.inSubs = v, name, subs
}

// Subsection carries an optional part. It comes after all fields of its parent,
// in the order named, and its name begins with the name of the parent's
// description, as in "timer/latched". While saving it is written if needed;
// while loading fn is called if the stream has it, and needed is ignored. What
// fn would have loaded then keeps its value: a device that needs another default
// sets it before, with [Set].
//
// version is the newest that fn knows; a newer one in the stream fails with
// [ErrVersion]. A subsection in the stream whose name has the prefix of the
// parent, but which the parent does not name, fails with
// [ErrUnknownSubsection].
func (f *Fields) Subsection(name string, version uint32, needed bool, fn func(*Fields)) {
	f.inSubs = true
	switch f.mode {
	case saving, describing:
		if !needed || f.Err() != nil {
			return
		}
		if !f.owns(len(name), []byte(name)) {
			f.Fail(fmt.Errorf("subsection %q of %q: name lacks the prefix: %w", name, f.vmsd, ErrUnknownSubsection))
			return
		}
		if f.mode == describing {
			f.desc.subsection(name, version, func() { f.within(name, version, fn) })
			return
		}
		putSubsection(f.w, name, version)
		f.within(name, version, fn)
	case loading:
		if f.Err() != nil || string(f.peekSubsection()) != name {
			return
		}
		f.r.Skip(uint64(2 + len(name)))
		v := f.r.BE32()
		if f.Err() == nil && v > version {
			f.Fail(fmt.Errorf("subsection %s: %w %d, at most %d", name, ErrVersion, v, version))
		}
		f.within(name, v, fn)
	}
}

// owns reports whether a subsection belongs to the present description. As in QEMU its
// name only has to begin with that of the description, without regard for the slash
// (vmstate_subsection_load in migration/vmstate.c).
func (f *Fields) owns(n int, name []byte) bool {
	return n >= len(f.vmsd)+1 && len(name) >= len(f.vmsd) && string(name[:len(f.vmsd)]) == f.vmsd
}

// peekSubsection returns the name of the subsection that comes next; nil if there is none,
// or it belongs to another description.
func (f *Fields) peekSubsection() []byte {
	// One byte at a time: more may never come.
	if b := f.r.Peek(1); len(b) < 1 || SectionType(b[0]) != Subsection {
		return nil
	}
	b := f.r.Peek(2)
	if len(b) < 2 {
		f.r.Skip(2) // the stream is cut off, since at least a footer would follow
		return nil
	}
	n := int(b[1])
	if n < len(f.vmsd)+1 {
		return nil
	}
	b = f.r.Peek(2 + n)
	name := b[2:]
	switch {
	case len(name) == n && f.owns(n, name):
		return name
	case len(name) < n && string(name[:min(len(name), len(f.vmsd))]) == f.vmsd[:min(len(name), len(f.vmsd))]:
		f.r.Skip(uint64(2 + n)) // the stream is cut off inside the name
	}
	return nil
}

// end closes the present description.
func (f *Fields) end() {
	if f.mode != loading || f.Err() != nil {
		return
	}
	if name := f.peekSubsection(); name != nil {
		f.Fail(fmt.Errorf("%w %q", ErrUnknownSubsection, bytes.Clone(name)))
	}
}

// describe names a plain field in the description.
func (f *Fields) describe(name, typ string, size, count int) { f.desc.plain(f, name, typ, size, count) }
