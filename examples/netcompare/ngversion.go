package main

import (
	"bufio"
	"encoding/binary"
	"math"
)

// Some programs have written sections of pcapng with the version 1.2, which is the same format
// as 1.0, and is to be read as that (draft-ietf-opsawg-pcapng section 4.1). The reader of
// pcapng passes over sections of other versions than 1.0.

// An ngVersion reads a pcapng file, and gives sections of version 1.2 the number 1.0. It leaves
// everything as it is from a block on whose length cannot be.
type ngVersion struct {
	src   *bufio.Reader
	order binary.ByteOrder // of the section
	head  []byte           // what is read next, of a section's first block
	left  uint64           // what is left of the block behind that
}

// The parts of a section header block up to its version, in bytes.
const (
	ngShortest  = 12 // of any block: kind, length, and the length again
	ngVersionAt = 12 // after kind, length and the magic number that says the order of bytes
	ngHead      = 16

	ngOrderMagic = 0x1a2b3c4d
)

func (v *ngVersion) Read(p []byte) (n int, err error) {
	if len(v.head) == 0 && v.left == 0 {
		v.block()
	}
	if len(v.head) > 0 {
		n = copy(p, v.head)
		v.head = v.head[n:]
		return n, nil
	}
	if uint64(len(p)) > v.left {
		p = p[:v.left]
	}
	n, err = v.src.Read(p)
	v.left -= uint64(n)
	return n, err
}

// block looks at the beginning of the next block.
func (v *ngVersion) block() {
	v.left = math.MaxUint64 // unless it is whole
	b, _ := v.src.Peek(ngHead)
	if len(b) < ngShortest {
		return
	}
	begins := binary.BigEndian.Uint32(b) == ngMagic
	if begins {
		switch uint32(ngOrderMagic) {
		case binary.BigEndian.Uint32(b[8:]):
			v.order = binary.BigEndian
		case binary.LittleEndian.Uint32(b[8:]):
			v.order = binary.LittleEndian
		default:
			return
		}
	}
	if v.order == nil {
		return
	}
	length := uint64(v.order.Uint32(b[4:]))
	if length < ngShortest {
		return
	}
	v.left = length
	if begins && len(b) == ngHead && length >= ngHead && v.order.Uint16(b[ngVersionAt:]) == 1 && v.order.Uint16(b[ngVersionAt+2:]) == 2 {
		v.head = append(v.head[:0], b...)
		v.order.PutUint16(v.head[ngVersionAt+2:], 0)
		v.left -= ngHead
		v.src.Discard(ngHead) // what was peeked at is there
	}
}
