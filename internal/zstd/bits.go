package zstd

import (
	"errors"
	"math/bits"
)

// ErrCorrupt is the error for data that no compressor would write.
var ErrCorrupt = errors.New("corrupt zstd data")

// forward reads bits from the lowest of the first byte on (RFC 8878, 4.1.1).
type forward struct {
	p   []byte
	pos int // offset of the next bit
}

func (b *forward) read(n int) (v int, ok bool) {
	if b.pos+n > 8*len(b.p) {
		return 0, false
	}
	for i := range n {
		at := b.pos + i
		v |= int(b.p[at/8]>>(at%8)&1) << i
	}
	b.pos += n
	return v, true
}

// backward reads bits from the end of a stream: from the highest of the last byte
// on, below its final 1 (RFC 8878, 4.1). Beyond the beginning there are zeros.
type backward struct {
	p    []byte
	left int // bits that are left; negative: so many too much were read
}

func newBackward(p []byte) (backward, error) {
	if len(p) == 0 || p[len(p)-1] == 0 {
		return backward{}, ErrCorrupt
	}
	return backward{p: p, left: 8*(len(p)-1) + bits.Len8(p[len(p)-1]) - 1}, nil
}

// read returns the next n bits, at most 32.
func (b *backward) read(n int) uint64 {
	b.left -= n
	if n == 0 {
		return 0
	}
	var v uint64
	switch first := b.left; {
	case first >= 0:
		at := first / 8
		for i, c := range b.p[at:min(at+5, len(b.p))] {
			v |= uint64(c) << (8 * i)
		}
		v >>= first % 8
	case first > -n:
		for i, c := range b.p[:min(4, len(b.p))] {
			v |= uint64(c) << (8 * i)
		}
		v <<= -first
	}
	return v & (1<<n - 1)
}
