package xbzrle

import (
	"encoding/binary"
	"math/bits"
)

const (
	ones  = 0x0101010101010101 // 1 in every byte of a word
	highs = 0x8080808080808080 // the top bit of every byte of a word
)

// MaxPage is the longest page that the format can carry, in bytes: a run
// length has 14 bits.
const MaxPage = 1<<14 - 1

// Encode writes the difference between old and new, which have the same length
// of at most [MaxPage] bytes, into dst and returns its length n.
//
// n is 0 and ok true if the pages are equal. ok is false if the delta does not
// fit dst; the page is then better sent whole, and dst holds nothing of use. A
// peer accepts no delta longer than the page, so dst should not be longer
// either.
//
// new may be changing while it is read, as a running guest's page does: the
// delta then describes a page that is neither the one before nor the one
// after, but it is a valid one.
func Encode(dst, old, new []byte) (n int, ok bool) {
	if len(old) != len(new) || len(new) > MaxPage {
		return 0, false
	}
	i := 0
	for {
		start := i
		i = equalRun(old, new, i)
		if i == start && n > 0 && i < len(new) {
			i++ // was equal a moment ago; no run is empty but the first
		}
		if i == len(new) {
			return n, true
		}
		if n+2 > len(dst) {
			return 0, false
		}
		n += putLength(dst[n:], i-start)

		start = i
		i = max(differentRun(old, new, i), start+1) // likewise
		if n+2 > len(dst) {
			return 0, false
		}
		n += putLength(dst[n:], i-start)
		if n+i-start > len(dst) {
			return 0, false
		}
		n += copy(dst[n:], new[start:i])
	}
}

// equalRun returns the first index from i on where a and b differ, or their
// length. It compares 32 bytes at a time where it can: most of a page is equal.
func equalRun(a, b []byte, i int) int {
	b = b[:len(a)]
	for i+32 <= len(a) {
		p, q := a[i:i+32:i+32], b[i:i+32:i+32]
		x0 := binary.LittleEndian.Uint64(p) ^ binary.LittleEndian.Uint64(q)
		x1 := binary.LittleEndian.Uint64(p[8:]) ^ binary.LittleEndian.Uint64(q[8:])
		x2 := binary.LittleEndian.Uint64(p[16:]) ^ binary.LittleEndian.Uint64(q[16:])
		x3 := binary.LittleEndian.Uint64(p[24:]) ^ binary.LittleEndian.Uint64(q[24:])
		if x0|x1|x2|x3 == 0 {
			i += 32
			continue
		}
		switch {
		case x0 != 0:
			return i + bits.TrailingZeros64(x0)>>3
		case x1 != 0:
			return i + 8 + bits.TrailingZeros64(x1)>>3
		case x2 != 0:
			return i + 16 + bits.TrailingZeros64(x2)>>3
		default:
			return i + 24 + bits.TrailingZeros64(x3)>>3
		}
	}
	for i < len(a) && a[i] == b[i] {
		i++
	}
	return i
}

// differentRun returns the first index from i on where a and b are equal, or
// their length.
func differentRun(a, b []byte, i int) int {
	b = b[:len(a)]
	for i+8 <= len(a) {
		x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:])
		// The lowest marked byte is the first that is zero; marks above it
		// may be false, and do not matter.
		if z := (x - ones) &^ x & highs; z != 0 {
			return i + bits.TrailingZeros64(z)>>3
		}
		i += 8
	}
	for i < len(a) && a[i] != b[i] {
		i++
	}
	return i
}

// putLength writes v, which is at most MaxPage, as ULEB128 into p, which has
// room for two bytes.
func putLength(p []byte, v int) int {
	if v < 0x80 {
		p[0] = byte(v)
		return 1
	}
	p[0] = byte(v) | 0x80
	p[1] = byte(v >> 7)
	return 2
}
