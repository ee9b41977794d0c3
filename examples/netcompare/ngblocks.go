package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Some programs have written sections of pcapng with the version 1.2, which is the same format
// as 1.0, and is to be read as that (draft-ietf-opsawg-pcapng section 4.1). The reader of
// pcapng reads sections of version 1.0.

// errBlock says that a block of pcapng contradicts itself. The reader of pcapng would look for
// the rest of the block in those behind it, and take the file for one that ends within a packet.
var errBlock = errors.New("malformed block")

// An ngBlocks reads a pcapng file, and gives sections of version 1.2 the number 1.0. It ends
// with errBlock at a block that is too short for what is in it.
type ngBlocks struct {
	src   *bufio.Reader
	order binary.ByteOrder // of the section
	head  []byte           // what is read next, of a section's first block
	left  uint64           // what is left of the block behind that
	err   error            // of a block that contradicts itself
}

// The parts of a section header block up to its version, and of others, in bytes.
const (
	ngShortest  = 12 // of any block: kind, length, and the length again
	ngVersionAt = 12 // after kind, length and the magic number that says the order of bytes
	ngHead      = 16

	ngOrderMagic = 0x1a2b3c4d
)

// Blocks that have packets, and where they say how many bytes of one they have.
const (
	ngOldPacket = 2
	ngSimple    = 3
	ngEnhanced  = 6

	ngPacketAt = 20 // of ngOldPacket and ngEnhanced
)

// ngLeast is the least length of a block in bytes, by its kind; that of any other kind is
// ngShortest.
var ngLeast = map[uint32]uint64{ngMagic: 28, 1: 20, ngOldPacket: 32, ngSimple: 16, ngEnhanced: 32}

func (v *ngBlocks) Read(p []byte) (n int, err error) {
	if len(v.head) == 0 && v.left == 0 {
		v.block()
	}
	if v.err != nil {
		return 0, v.err
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
func (v *ngBlocks) block() {
	v.left = math.MaxUint64 // unless it is whole
	b, _ := v.src.Peek(ngPacketAt + 4)
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
	kind, length := v.order.Uint32(b), uint64(v.order.Uint32(b[4:]))
	least := max(ngShortest, ngLeast[kind])
	if (kind == ngOldPacket || kind == ngEnhanced) && len(b) == ngPacketAt+4 {
		least += uint64(v.order.Uint32(b[ngPacketAt:]))
	}
	if length < least {
		v.err = fmt.Errorf("%w: it has %d bytes, and there are %d in it", errBlock, length, least)
		return
	}
	v.left = length
	if begins && len(b) >= ngHead && length >= ngHead && v.order.Uint16(b[ngVersionAt:]) == 1 && v.order.Uint16(b[ngVersionAt+2:]) == 2 {
		v.head = append(v.head[:0], b[:ngHead]...)
		v.order.PutUint16(v.head[ngVersionAt+2:], 0)
		v.left -= ngHead
		v.src.Discard(ngHead) // what was peeked at is there
	}
}
