// Package qjson reads and writes JSON as QEMU's monitor does, which differs from
// RFC 8259: strings may have single quotes, values follow each other without a
// separator, an error loses one value and not the connection, and the output is ASCII
// with the members in an order of QEMU's own.
//
// A [Parser] takes bytes one at a time and returns values and errors; an error's
// text is the one that QEMU 7.2 answers. [Append] prints.
package qjson

import (
	"cmp"
	"slices"
	"strings"
)

// An Object is a JSON object. Members are in the order in which they came; no
// two have the same name.
type Object []Member

// A Member is one member of an Object.
type Member struct {
	Name string
	// Value is nil, a bool, a string, an int64, a uint64 above the int64s, a
	// float64, an []any or an Object.
	Value any
}

// Get returns the value of a member.
func (o Object) Get(name string) (value any, ok bool) {
	for _, m := range o {
		if m.Name == name {
			return m.Value, true
		}
	}
	return nil, false
}

// bucket is where QEMU keeps the member of a name in an object's table, whose
// buckets it visits in ascending order. (The formula was found by measuring: it
// gives the order of all objects of a session with a QEMU 7.2.)
func bucket(name string) uint32 {
	name = Stored(name)
	v := 0x238F13AF * uint32(len(name))
	for i := range len(name) {
		v += uint32(name[i]) << (5 * i % 24)
	}
	return (1103515243*v + 12345) % 512
}

// Stored returns a string as QEMU has it in memory, where no string has a NUL within:
// U+0000 is the bytes C0 80.
func Stored(s string) string { return strings.ReplaceAll(s, "\x00", "\xc0\x80") }

// Sorted returns the members in the order in which QEMU visits them: by bucket,
// in one bucket the newest first.
func (o Object) Sorted() Object {
	type place struct {
		bucket uint32
		i      int
	}
	places := make([]place, len(o))
	for i, m := range o {
		places[i] = place{bucket(m.Name), len(o) - i}
	}
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.bucket, b.bucket), cmp.Compare(a.i, b.i))
	})
	sorted := make(Object, len(o))
	for i, p := range places {
		sorted[i] = o[len(o)-p.i]
	}
	return sorted
}
