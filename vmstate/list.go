package vmstate

import (
	"fmt"
	"slices"
)

// Lists are elements each preceded by a byte 1, and a byte 0 at the end. A load
// builds a new slice, at most max elements, and a rollback brings back the old
// one.

// QTailQ carries a list of parts with the description vmsd (QEMU's QTAILQ).
// More than max elements in the stream fail with [ErrBounds].
func QTailQ[T any](f *Fields, name, vmsd string, version uint32, list *[]T, max int, fn func(*T, *Fields)) {
	carryList(f, name, "qtailq", vmsd, version, list, max, fn)
}

// QList does what QTailQ does, under the type name of QEMU's QLIST; the wire is the same.
func QList[T any](f *Fields, name, vmsd string, version uint32, list *[]T, max int, fn func(*T, *Fields)) {
	carryList(f, name, "qlist", vmsd, version, list, max, fn)
}

func carryList[T any](f *Fields, name, typ, vmsd string, version uint32, list *[]T, max int, fn func(*T, *Fields)) {
	switch f.mode {
	case saving:
		for i := range *list {
			f.w.PutByte(1)
			f.within(vmsd, version, func(f *Fields) { fn(&(*list)[i], f) })
		}
		f.w.PutByte(0)
	case loading:
		if items, ok := loadList(f, name, vmsd, version, max, fn); ok {
			Set(f, list, items)
		}
	case describing:
		f.desc.list(f, name, typ, vmsd, version, len(*list), func(i int) {
			f.within(vmsd, version, func(f *Fields) { fn(&(*list)[i], f) })
		}, 1, 1)
	}
}

// GTree carries a tree as its nodes in key order (QEMU's GTREE): a 32-bit count,
// then a list. fn names the key (a Uint64, or the fields of a key part) and then
// the value. A count that is not the list's length fails with [ErrValue].
func GTree[T any](f *Fields, name, vmsd string, version uint32, nodes *[]T, max int, fn func(*T, *Fields)) {
	switch f.mode {
	case saving:
		f.w.PutBE32(uint32(len(*nodes)))
		carryList(f, name, "gtree", vmsd, version, nodes, max, fn)
	case loading:
		n := f.Count(uint64(f.r.BE32()), max)
		items, ok := loadList(f, name, vmsd, version, n, fn)
		if ok && len(items) != n {
			f.failField(name, fmt.Errorf("%d nodes where %d were announced: %w", len(items), n, ErrValue))
		} else if ok {
			Set(f, nodes, items)
		}
	case describing:
		f.desc.list(f, name, "gtree", vmsd, version, len(*nodes), func(i int) {
			f.within(vmsd, version, func(f *Fields) { fn(&(*nodes)[i], f) })
		}, 1, 4+1)
	}
}

func loadList[T any](f *Fields, name, vmsd string, version uint32, max int, fn func(*T, *Fields)) ([]T, bool) {
	var items []T
	var parts []*T
	before := len(*f.after)
	for f.Err() == nil {
		marker := f.r.Byte()
		if f.Err() != nil {
			break
		}
		if marker == 0 {
			if len(*f.after) > before {
				// The functions that the parts have registered by OnCommit
				// point to parts, and not to the elements of the list: so into
				// copies each element to its part before they are called, and
				// back copies it back afterwards.
				into := func() error {
					for i, p := range parts {
						*p = items[i]
					}
					return nil
				}
				back := func() error {
					for i, p := range parts {
						items[i] = *p
					}
					return nil
				}
				*f.after = append(slices.Insert(*f.after, before, into), back)
			}
			return items, true
		}
		if len(items) == max {
			f.failField(name, fmt.Errorf("more than %d elements: %w", max, ErrBounds))
			break
		}
		// The element is built by itself: growing the slice moves what is in
		// it, and the undo log holds pointers.
		item := new(T)
		f.within(vmsd, version, func(f *Fields) { fn(item, f) })
		items, parts = append(items, *item), append(parts, item)
	}
	return nil, false
}
