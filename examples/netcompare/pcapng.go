package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// errBlock says that a block of pcapng contradicts itself, or what is before it. Nothing behind
// it is read, since nobody can tell what was meant.
var errBlock = errors.New("malformed block")

// An ngReader reads the packets of a pcapng file (draft-ietf-opsawg-pcapng). Of what else is in
// the file it reads what the packets need: the order of bytes, links, and the units of times. It
// takes no memory for bytes before they have come.
type ngReader struct {
	src    *bufio.Reader
	order  binary.ByteOrder // of the section
	ifaces []ngIface        // of the section

	length uint32 // of the block that is being read, in bytes
	left   int64  // how many of them are not read, without the length at its end
}

// An ngIface is an interface of a section.
type ngIface struct {
	link   layers.LinkType
	snap   uint32 // the most bytes of a packet that were captured; 0: all
	second uint64 // ticks in a second
	offset int64  // seconds that are added to its times
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
	ngShortest   = 12      // the length of a block with nothing in it, in bytes
	ngMicros     = 1000000 // ticks in a second, where an interface does not say it
)

// ngLeast is how many bytes there are at least in a block, by its kind.
var ngLeast = map[uint32]uint32{ngMagic: 16, ngInterface: 8, ngOldPacket: 20, ngSimple: 4, ngEnhanced: 20}

func newNgReader(src *bufio.Reader) (*ngReader, error) {
	r := &ngReader{src: src}
	if _, err := r.block(); err != nil { // the caller has seen that it begins a section
		return nil, unexpected(err)
	}
	return r, r.section()
}

// packet returns the next packet, with its link in the AncillaryData. The error is io.EOF at the
// end of a block, and io.ErrUnexpectedEOF where the file ends elsewhere.
func (r *ngReader) packet() (data []byte, ci gopacket.CaptureInfo, err error) {
	for {
		kind, err := r.block()
		if err != nil {
			return nil, ci, err
		}
		switch kind {
		case ngMagic:
			err = r.section()
		case ngInterface:
			err = r.description()
		case ngOldPacket, ngEnhanced, ngSimple:
			if data, ci, err = r.captured(kind); err == nil {
				err = r.end()
			}
			return data, ci, err
		default:
			err = r.end()
		}
		if err != nil {
			return nil, ci, err
		}
	}
}

// block reads the beginning of a block, of a section's first one up to the order of bytes.
func (r *ngReader) block() (kind uint32, err error) {
	var b [12]byte
	if _, err := io.ReadFull(r.src, b[:8]); err != nil {
		return 0, err
	}
	begins := binary.BigEndian.Uint32(b[:]) == ngMagic
	if begins {
		if _, err := io.ReadFull(r.src, b[8:]); err != nil {
			return 0, unexpected(err)
		}
		switch uint32(ngOrderMagic) {
		case binary.BigEndian.Uint32(b[8:]):
			r.order = binary.BigEndian
		case binary.LittleEndian.Uint32(b[8:]):
			r.order = binary.LittleEndian
		default:
			return 0, fmt.Errorf("%w: a section in no known order of bytes", errBlock)
		}
	}
	kind, r.length = r.order.Uint32(b[:]), r.order.Uint32(b[4:])
	least := ngShortest + ngLeast[kind]
	if r.length < least || r.length%4 != 0 {
		return 0, fmt.Errorf("%w: one of kind %d has %d bytes, and not %d or more, a multiple of 4", errBlock, kind, r.length, least)
	}
	r.left = int64(r.length) - ngShortest
	if begins {
		r.left -= 4
	}
	return kind, nil
}

// read reads the next bytes of the block, which has them.
func (r *ngReader) read(b []byte) error {
	r.left -= int64(len(b))
	_, err := io.ReadFull(r.src, b)
	return unexpected(err)
}

// skip passes over the next bytes of the block, which has them.
func (r *ngReader) skip(n int64) error {
	r.left -= n
	_, err := io.CopyN(io.Discard, r.src, n)
	return unexpected(err)
}

// end passes over what is left of the block, whose length must be there again.
func (r *ngReader) end() error {
	if err := r.skip(r.left); err != nil {
		return err
	}
	var b [4]byte
	if err := r.read(b[:]); err != nil {
		return err
	}
	if n := r.order.Uint32(b[:]); n != r.length {
		return fmt.Errorf("%w: it has %d bytes by its beginning, and %d by its end", errBlock, r.length, n)
	}
	return nil
}

// section reads the rest of a block that begins a section.
func (r *ngReader) section() error {
	var b [12]byte // the version, and the length of the section
	if err := r.read(b[:]); err != nil {
		return err
	}
	// Some programs have written 1.2, which is to be read as 1.0 (section 4.1).
	if major, minor := r.order.Uint16(b[:]), r.order.Uint16(b[2:]); major != 1 || minor != 0 && minor != 2 {
		return fmt.Errorf("%w: a section of version %d.%d", errBlock, major, minor)
	}
	r.ifaces = r.ifaces[:0]
	return r.end()
}

// description reads the rest of a block that describes an interface.
func (r *ngReader) description() error {
	var b [8]byte
	if err := r.read(b[:]); err != nil {
		return err
	}
	f := ngIface{link: layers.LinkType(r.order.Uint16(b[:])), snap: r.order.Uint32(b[4:]), second: ngMicros}
	for r.left >= 4 {
		if err := r.read(b[:4]); err != nil {
			return err
		}
		kind, n := r.order.Uint16(b[:]), int64(r.order.Uint16(b[2:]))
		padded := (n + 3) &^ 3
		switch {
		case kind == ngEnd:
			return r.add(f)
		case padded > r.left, kind == ngResolution && n != 1, kind == ngOffset && n != 8:
			return fmt.Errorf("%w: option %d of an interface has %d bytes, of %d", errBlock, kind, n, r.left)
		case kind == ngResolution, kind == ngOffset:
			if err := r.read(b[:padded]); err != nil {
				return err
			}
			if kind == ngOffset {
				f.offset = int64(r.order.Uint64(b[:]))
			} else if f.second = ticks(b[0]); f.second == 0 {
				return fmt.Errorf("%w: an interface with times in units of %#x", errBlock, b[0])
			}
			continue
		}
		if err := r.skip(padded); err != nil {
			return err
		}
	}
	return r.add(f)
}

func (r *ngReader) add(f ngIface) error {
	if err := r.end(); err != nil {
		return err
	}
	r.ifaces = append(r.ifaces, f)
	return nil
}

// ticks returns how many ticks there are in a second by the option of this, or 0 if they are more
// than 64 bits can count.
func ticks(resolution byte) uint64 {
	n := resolution & 0x7f
	if resolution >= 0x80 {
		return 1 << n
	}
	if n > 19 {
		return 0
	}
	t := uint64(1)
	for range n {
		t *= 10
	}
	return t
}

// farthest bounds the seconds of a time, on either side of 1970: no clock goes there, and a sum of
// two such fits.
const farthest = 1 << 40

// time returns the time of a number of ticks.
func (f *ngIface) time(n uint64) time.Time {
	hi, lo := bits.Mul64(n%f.second, uint64(time.Second))
	ns, _ := bits.Div64(hi, lo, f.second)
	s := int64(min(n/f.second, farthest)) + max(-farthest, min(f.offset, farthest))
	return time.Unix(s, int64(ns))
}

// captured reads a packet of a block, up to its options.
func (r *ngReader) captured(kind uint32) (data []byte, ci gopacket.CaptureInfo, err error) {
	var b [20]byte // the interface, the time, and the lengths
	head := b[:ngLeast[kind]]
	if err := r.read(head); err != nil {
		return nil, ci, err
	}
	ci.Length = int(r.order.Uint32(head[len(head)-4:]))
	n := int64(ci.Length)
	number := uint32(0)
	switch kind {
	case ngEnhanced:
		number = r.order.Uint32(b[:])
	case ngOldPacket:
		number = uint32(r.order.Uint16(b[:]))
	}
	if uint64(number) >= uint64(len(r.ifaces)) {
		return nil, ci, fmt.Errorf("%w: a packet of interface %d, and there are %d", errBlock, number, len(r.ifaces))
	}
	f := &r.ifaces[number]
	if kind != ngSimple {
		ci.Timestamp = f.time(uint64(r.order.Uint32(b[4:]))<<32 | uint64(r.order.Uint32(b[8:])))
		n = int64(r.order.Uint32(b[12:]))
	} else if f.snap > 0 {
		n = min(n, int64(f.snap))
	}
	if n > r.left {
		return nil, ci, fmt.Errorf("%w: a packet of %d bytes, and there are %d", errBlock, n, r.left)
	}
	data, err = io.ReadAll(io.LimitReader(r.src, n))
	r.left -= n
	if err == nil && int64(len(data)) < n {
		err = io.ErrUnexpectedEOF
	}
	ci.CaptureLength, ci.AncillaryData = len(data), []any{f.link}
	return data, ci, unexpected(err)
}
