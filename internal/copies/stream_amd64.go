package copies

import "unsafe"

const pageSize = 4096

// streamed copies lines of 64 bytes past the caches. to has to begin with a line. What it has
// stored is seen by others after a fence.
//
//go:noescape
func streamed(to, from *byte, lines int)

func fence()

// stream copies a page as copy does, but for the lines that lie in it as a whole.
func stream(to, from []byte) {
	first := int(-uintptr(unsafe.Pointer(&to[0])) & 63)
	lines := (pageSize - first) / 64
	last := first + lines*64
	copy(to[:first], from[:first])
	streamed(&to[first], &from[first], lines)
	copy(to[last:pageSize], from[last:pageSize])
}
