package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// errBlock says that a block of pcapng contradicts itself, or that its times are in units that
// are not read. Nothing behind it is read, since nobody can tell what was meant.
var errBlock = errors.New("malformed block")

// An ngBlocks gives the reader of pcapng what the packets of a file need: sections, interfaces
// with the units of their times, and packets, each without other options, and no other blocks. That reader
// looks for the rest of a block or an option that contradicts itself in the blocks behind it, and takes the
// file for one that ends within a packet; here it ends with errBlock. Sections of version
// 1.2 get the number 1.0: some programs have written it, and it is to be read as that
// (draft-ietf-opsawg-pcapng section 4.1).
type ngBlocks struct {
	src   *bufio.Reader
	order binary.ByteOrder // of the section
	snap  int64            // the most bytes of a packet that the first interface of the section captured; 0: all
	first bool             // it has no interface yet
	cut   bool             // the file ends within a block

	// What is read next: head, then pass bytes of src, then tail. After it skip bytes of src are passed over, and
	// then the length of the block is there again.
	head, tail []byte
	pass, skip int64
	length     int64
}

// Kinds of blocks, and the options of an interface that say what its times mean.
const (
	ngMagic     = 0x0a0d0d0a // begins a section; it reads the same in either order of bytes
	ngInterface = 1
	ngOldPacket = 2
	ngSimple    = 3
	ngEnhanced  = 6

	ngEnd        = 0
	ngResolution = 9
	ngOffset     = 14

	ngOrderMagic = 0x1a2b3c4d
	ngShortest   = 12      // the length of a block with nothing in it, in bytes: its kind, and twice its length
	ngMost       = 1 << 20 // and of one that describes an interface, or begins a section, at most
)

// ngFixed is how many bytes there are in a block before its packet or its options, by its kind.
var ngFixed = map[uint32]int64{ngMagic: 16, ngInterface: 8, ngOldPacket: 20, ngSimple: 4, ngEnhanced: 20}

// Read implements io.Reader. The error is io.EOF where the file ends between two blocks.
func (v *ngBlocks) Read(p []byte) (n int, err error) {
	for len(v.head) == 0 && v.pass == 0 && len(v.tail) == 0 {
		if err := v.end(); err != nil {
			return 0, err
		}
		if err := v.block(); err != nil {
			return 0, err
		}
	}
	switch {
	case len(v.head) > 0:
		n = copy(p, v.head)
		v.head = v.head[n:]
	case v.pass > 0:
		n, err = v.src.Read(p[:min(int64(len(p)), v.pass)])
		v.pass -= int64(n)
		err = v.within(err)
	default:
		n = copy(p, v.tail)
		v.tail = v.tail[n:]
	}
	return n, err
}

// within returns the error of a read within a block, and notes an end of the file there: the reader of
// pcapng does not always pass it on, and takes an io.ErrUnexpectedEOF at the beginning of a
// block for the end of the file.
func (v *ngBlocks) within(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		v.cut = true
		return fmt.Errorf("within a block: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// end passes over what is left of the block before.
func (v *ngBlocks) end() error {
	if v.length == 0 {
		return nil
	}
	if _, err := io.CopyN(io.Discard, v.src, v.skip); err != nil {
		return v.within(err)
	}
	var b [4]byte
	if _, err := io.ReadFull(v.src, b[:]); err != nil {
		return v.within(err)
	}
	if n := int64(v.order.Uint32(b[:])); n != v.length {
		return fmt.Errorf("%w: it has %d bytes by its beginning, and %d by its end", errBlock, v.length, n)
	}
	v.skip, v.length = 0, 0
	return nil
}

// block prepares what is read of the next block. The error is io.EOF if there is none.
func (v *ngBlocks) block() error {
	b := make([]byte, 8, 8+20) // 20: the most of ngFixed
	if _, err := io.ReadFull(v.src, b); err == io.EOF {
		return err
	} else if err != nil {
		return v.within(err)
	}
	if binary.BigEndian.Uint32(b) == ngMagic {
		magic, err := v.src.Peek(4)
		if err != nil {
			return v.within(err)
		}
		switch uint32(ngOrderMagic) {
		case binary.BigEndian.Uint32(magic):
			v.order = binary.BigEndian
		case binary.LittleEndian.Uint32(magic):
			v.order = binary.LittleEndian
		default:
			return fmt.Errorf("%w: a section in no known order of bytes", errBlock)
		}
	}
	kind, length := v.order.Uint32(b), int64(v.order.Uint32(b[4:]))
	fixed, known := ngFixed[kind]
	if length < ngShortest+fixed || length%4 != 0 {
		return fmt.Errorf("%w: one of kind %d has %d bytes, and not %d or more, a multiple of 4", errBlock, kind, length, ngShortest+fixed)
	}
	v.length, v.skip = length, length-ngShortest
	if !known {
		return nil
	}
	b = b[:8+fixed]
	if _, err := io.ReadFull(v.src, b[8:]); err != nil {
		return v.within(err)
	}
	v.skip -= fixed
	switch kind {
	case ngMagic, ngInterface:
		options, err := v.options(kind)
		if err != nil {
			return err
		}
		if snap := int64(v.order.Uint32(b[12:])); kind == ngMagic {
			v.snap, v.first = 0, true
		} else if v.first {
			v.snap, v.first = snap, false
		}
		b = append(b, options...)
	default:
		v.pass = (v.captured(kind, b[8:]) + 3) &^ 3
		if v.pass > v.skip {
			return fmt.Errorf("%w: a packet of %d bytes, and there are %d", errBlock, v.pass, v.skip)
		}
		v.skip -= v.pass
	}
	if kind == ngMagic && v.order.Uint16(b[12:]) == 1 && v.order.Uint16(b[14:]) == 2 {
		v.order.PutUint16(b[14:], 0)
	}
	v.order.PutUint32(b[4:], uint32(int64(len(b))+v.pass+4))
	v.head, v.tail = b, b[4:8:8]
	return nil
}

// captured returns how many bytes of the packet a block has, by what is before it.
func (v *ngBlocks) captured(kind uint32, fixed []byte) int64 {
	if kind != ngSimple {
		return int64(v.order.Uint32(fixed[12:]))
	}
	n := int64(v.order.Uint32(fixed))
	if v.snap > 0 {
		n = min(n, v.snap)
	}
	return n
}

// options reads the options of a block that begins a section or describes an interface, and returns
// those that say what times mean.
func (v *ngBlocks) options(kind uint32) (kept []byte, err error) {
	if v.skip > ngMost {
		return nil, fmt.Errorf("%w: one of kind %d has %d bytes of options, and %d are read", errBlock, kind, v.skip, ngMost)
	}
	b := make([]byte, v.skip)
	if _, err := io.ReadFull(v.src, b); err != nil {
		return nil, v.within(err)
	}
	v.skip = 0
	for len(b) >= 4 {
		option, n := v.order.Uint16(b), int(v.order.Uint16(b[2:]))
		if option == ngEnd {
			return kept, nil
		}
		end := 4 + (n+3)&^3
		if end > len(b) {
			return nil, fmt.Errorf("%w: option %d has %d bytes, of %d", errBlock, option, n, len(b)-4)
		}
		if kind == ngInterface && (option == ngResolution || option == ngOffset) {
			if want := map[uint16]int{ngResolution: 1, ngOffset: 8}[option]; n != want {
				return nil, fmt.Errorf("%w: option %d of an interface has %d bytes, and not %d", errBlock, option, n, want)
			}
			if option == ngResolution && !readable(b[4]) {
				return nil, fmt.Errorf("%w: an interface with times in units of %#x, which are not read", errBlock, b[4])
			}
			kept = append(kept, b[:end]...)
		}
		b = b[end:]
	}
	return kept, nil
}

// readable reports whether the reader of pcapng reads times in these units. It takes seconds for
// microseconds, counts units of 10^-20 s and less with 64 bits, and rounds those of 2^-24 s and less
// so that a second is wrong by a hundredth and more, and times go backwards.
func readable(resolution byte) bool {
	if resolution >= 0x80 {
		return resolution < 0x80+24
	}
	return resolution > 0 && resolution < 20
}
