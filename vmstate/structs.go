package vmstate

// Parts of a device that are Go values of one type: an array of them, a slice with a count
// in the stream, or a part that is optional.

// Structs carries an array of parts of one description, back to back, as
// [Fields.StructArray] does. Both sides know how many there are; where the stream
// says it, give [Counted] of the slice.
//
//	vmstate.Structs(f, "rings", "nic-ring", 1, n.rings[:], func(r *ring, f *vmstate.Fields) {
//		f.Uint64("base", &r.base)
//	})
func Structs[T any](f *Fields, name, vmsd string, version uint32, parts []T, fn func(*T, *Fields)) {
	f.StructArray(name, vmsd, version, len(parts), func(i int, f *Fields) { fn(&parts[i], f) })
}

// Counted carries the length of a slice as a field, an unsigned 32-bit integer,
// and returns the slice for the field that comes next: its elements. While loading
// *s becomes as many zero elements as the stream says, or the load fails with
// [ErrBounds] beyond max; a rollback brings the old slice back. While saving, a
// slice of more than max elements fails the same way, as it could not be loaded.
//
//	f.Uint32s("items", vmstate.Counted(f, "count", &q.items, 64))
//
// For a count of another width, name it and give [Resize] of it.
func Counted[T any](f *Fields, name string, s *[]T, max int) []T {
	n := uint32(f.Count(uint64(len(*s)), max))
	if f.mode == loading {
		n = 0
	}
	f.Uint32(name, &n)
	if f.mode != loading {
		return (*s)[:min(int(n), len(*s))]
	}
	if f.Err() != nil {
		return nil
	}
	return Resize(f, s, uint64(n), max)
}

// Optional carries what a pointer points to as a subsection, which is there if the
// pointer is not nil (QEMU's way for a part that only some guests have). While
// loading, *p becomes a new T that fn fills, or nil if the stream does not have
// the subsection; a rollback brings the old pointer back. Otherwise it is
// [Fields.Subsection], with its rules about the name and the place.
//
//	vmstate.Optional(f, "nic/ctrl", 1, &n.ctrl, func(q *queue, f *vmstate.Fields) {
//		f.Uint16("head", &q.head)
//	})
func Optional[T any](f *Fields, name string, version uint32, p **T, fn func(*T, *Fields)) {
	came := false
	f.Subsection(name, version, *p != nil, func(f *Fields) {
		came = true
		Set(f, p, new(T))
		fn(*p, f)
	})
	if !came && *p != nil {
		Set(f, p, nil)
	}
}
