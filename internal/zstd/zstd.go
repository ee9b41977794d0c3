package zstd

import (
	"encoding/binary"
	"fmt"
)

const (
	magic     = 0xfd2fb528
	maxBlock  = 128 << 10
	maxWindow = 32 << 20 // the window of level 20
)

// A Decoder decompresses one stream. The zero value is ready. It belongs to one
// goroutine.
type Decoder struct {
	begun    bool
	checksum bool
	window   int
	out      []byte // what was decompressed, as far back as matches reach
	start    int    // of the frame, in out: no match reaches beyond it
	literals []byte
	tree     *huffman
	tables   [3]*fseTable // of literal lengths, offsets and match lengths
	repeats  [3]int
	end      bool // the frame has ended
}

// Decode fills dst with what src decompresses to: the next bytes of the stream,
// whole blocks of them. Data that is not exactly as much is [ErrCorrupt].
func (d *Decoder) Decode(dst, src []byte) error {
	from := len(d.out)
	for len(src) > 0 {
		if !d.begun || d.end {
			n, err := d.frame(src)
			if err != nil {
				return err
			}
			src = src[n:]
			continue
		}
		if len(src) < 3 {
			return fmt.Errorf("%w: half a block header", ErrCorrupt)
		}
		head := int(src[0]) | int(src[1])<<8 | int(src[2])<<16
		src = src[3:]
		kind, size := head>>1&3, head>>3
		in := size
		if kind == 1 {
			in = 1
		}
		if size > maxBlock || in > len(src) {
			return fmt.Errorf("%w: a block of %d bytes where %d are left", ErrCorrupt, size, len(src))
		}
		if err := d.block(kind, size, src[:in]); err != nil {
			return err
		}
		if len(d.out)-from > len(dst) {
			return fmt.Errorf("%w: more than %d bytes", ErrCorrupt, len(dst))
		}
		src = src[in:]
		if d.end = head&1 != 0; d.end && d.checksum {
			if len(src) < 4 {
				return fmt.Errorf("%w: no checksum", ErrCorrupt)
			}
			src = src[4:]
		}
	}
	if n := copy(dst, d.out[from:]); n < len(dst) {
		return fmt.Errorf("%w: %d bytes of %d", ErrCorrupt, n, len(dst))
	}
	if old := len(d.out) - d.window; old > 4<<20 {
		d.out = d.out[:copy(d.out, d.out[old:])]
		d.start = max(0, d.start-old)
	}
	return nil
}

// frame reads the header of a frame and returns how long it is.
func (d *Decoder) frame(p []byte) (int, error) {
	if len(p) < 5 || binary.LittleEndian.Uint32(p) != magic {
		return 0, fmt.Errorf("%w: no frame", ErrCorrupt)
	}
	flags := p[4]
	single := flags>>5&1 != 0
	n := 5
	if !single {
		n++
	}
	n += [...]int{0, 1, 2, 4}[flags&3]
	size := [...]int{0, 2, 4, 8}[flags>>6]
	if single && size == 0 {
		size = 1
	}
	if len(p) < n+size || flags&8 != 0 || flags&3 != 0 {
		return 0, fmt.Errorf("%w: frame header", ErrCorrupt)
	}
	window := uint64(0)
	if single {
		for i := range size {
			window |= uint64(p[n+i]) << (8 * i)
		}
		if size == 2 {
			window += 256
		}
	} else {
		base := uint64(1) << (10 + p[5]>>3)
		window = base + base/8*uint64(p[5]&7)
	}
	if window > maxWindow {
		return 0, fmt.Errorf("%w: a window of %d bytes, at most %d", ErrCorrupt, window, maxWindow)
	}
	*d = Decoder{begun: true, checksum: flags&4 != 0, window: int(window), out: d.out, start: len(d.out), literals: d.literals}
	d.repeats = [3]int{1, 4, 8}
	return n + size, nil
}

// block decompresses one block.
func (d *Decoder) block(kind, size int, p []byte) error {
	switch kind {
	case 0:
		d.out = append(d.out, p...)
		return nil
	case 1:
		for range size {
			d.out = append(d.out, p[0])
		}
		return nil
	case 2:
		rest, err := d.literalsOf(p)
		if err != nil {
			return err
		}
		return d.sequences(rest)
	}
	return fmt.Errorf("%w: a block of an unknown kind", ErrCorrupt)
}

// literalsOf reads the literals of a block and returns what follows them.
func (d *Decoder) literalsOf(p []byte) ([]byte, error) {
	if len(p) == 0 {
		return nil, ErrCorrupt
	}
	kind, format := p[0]&3, p[0]>>2&3
	word := uint64(0)
	for i, c := range p[:min(5, len(p))] {
		word |= uint64(c) << (8 * i)
	}
	if kind < 2 {
		n, shift := 1, 3
		switch format {
		case 1:
			n, shift = 2, 4
		case 3:
			n, shift = 3, 4
		}
		size := int(word & (1<<(8*n) - 1) >> shift)
		in := size
		if kind == 1 {
			in = 1
		}
		if size > maxBlock || n+in > len(p) {
			return nil, ErrCorrupt
		}
		d.literals = d.literals[:0]
		if kind == 0 {
			d.literals = append(d.literals, p[n:n+in]...)
		} else {
			for range size {
				d.literals = append(d.literals, p[n])
			}
		}
		return p[n+in:], nil
	}
	n, width := 3, 10
	switch format {
	case 2:
		n, width = 4, 14
	case 3:
		n, width = 5, 18
	}
	size, in := int(word>>4&(1<<width-1)), int(word>>(4+width)&(1<<width-1))
	if size > maxBlock || n+in > len(p) {
		return nil, ErrCorrupt
	}
	return p[n+in:], d.huffmanLiterals(p[n:n+in], size, kind == 2, format == 0)
}

func (d *Decoder) huffmanLiterals(p []byte, size int, tree, single bool) error {
	if tree {
		h, n, err := readHuffman(p)
		if err != nil {
			return err
		}
		d.tree, p = h, p[n:]
	}
	if d.tree == nil {
		return ErrCorrupt
	}
	if cap(d.literals) < size {
		d.literals = make([]byte, size, maxBlock)
	}
	d.literals = d.literals[:size]
	if single {
		return d.tree.decode(d.literals, p)
	}
	if len(p) < 6 {
		return ErrCorrupt
	}
	quarter := (size + 3) / 4
	out, rest := d.literals, p[6:]
	for i := range 4 {
		n, m := len(rest), len(out)
		if i < 3 {
			n, m = int(binary.LittleEndian.Uint16(p[2*i:])), quarter
		}
		if n > len(rest) || m > len(out) {
			return ErrCorrupt
		}
		if err := d.tree.decode(out[:m], rest[:n]); err != nil {
			return err
		}
		out, rest = out[m:], rest[n:]
	}
	return nil
}
