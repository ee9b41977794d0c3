package ram

import (
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/gocolo/lockstep/internal/xbzrle"
	"github.com/gocolo/lockstep/qemufile"
)

// LoadState decodes the body of a RAM section. Before Listen pages go to the guest's memory
// at once; afterwards each is placed when all of its page of the host is there, and one
// that is there already is left as it is, since the guest may have written it. Every error
// is an [*Error]; after one the connection cannot be used any more.
func (l *Lazy) LoadState(r *qemufile.Reader, version uint32) error {
	if version != Version {
		return &Error{Op: "load", Stream: r.Offset(), Err: fmt.Errorf("%w: %d", ErrVersion, version)}
	}
	for {
		at := r.Offset()
		word := r.BE64()
		if err := r.Err(); err != nil {
			return loadError(at, "", 0, err)
		}
		off := word &^ flagMask
		var b *lazyBlock
		var err error
		switch word & flagMask &^ flagContinue {
		case flagPage, flagZero, flagXBZRLE, flagCompressed:
			if b, err = l.block(r, word); err == nil {
				err = l.page(r, b, off, word&flagMask&^flagContinue)
			}
		case flagMemSize:
			if err := l.blockList(r, off); err != nil {
				return loadError(at, "", 0, err)
			}
		case flagMultiFDFlush:
		case flagEOS:
			if l.listening.Load() && l.partHave > 0 {
				return loadError(at, l.partBlock.Name, l.partAt, ErrPartialPage)
			}
			if l.barrier != nil {
				if err := l.barrier(); err != nil {
					return loadError(at, "", 0, err)
				}
			}
			return nil
		default:
			err = fmt.Errorf("%w: %#x", ErrFlags, word&flagMask)
		}
		if err != nil {
			return loadError(at, b.name(), off, err)
		}
	}
}

// block returns the block of a page record.
func (l *Lazy) block(r *qemufile.Reader, word uint64) (*lazyBlock, error) {
	var err error
	if l.last, err = recordBlock(r, word, l.index, l.last); err != nil {
		return nil, err
	}
	b := &l.blocks[l.last]
	if word&^flagMask >= b.length {
		return b, fmt.Errorf("%w: length %#x", ErrOffset, b.length)
	}
	return b, nil
}

// page reads what follows a page's first word.
func (l *Lazy) page(r *qemufile.Reader, b *lazyBlock, off, kind uint64) error {
	if l.from != nil {
		return fmt.Errorf("%w: %#x beside the pages of a file", ErrFlags, kind)
	}
	live := l.listening.Load()
	dst := b.Host[off : off+PageSize : off+PageSize]
	if live {
		if kind != flagPage && kind != flagZero {
			return fmt.Errorf("%w: %#x in postcopy", ErrFlags, kind)
		}
		if err := l.expect(b, off); err != nil {
			return err
		}
		dst = l.part[l.partHave : l.partHave+PageSize]
	}
	data := true
	switch kind {
	case flagPage:
		if err := r.ReadFull(dst); err != nil {
			return err
		}
	case flagZero:
		fill := r.Byte()
		if err := r.Err(); err != nil {
			return err
		}
		if fill != 0 {
			return fmt.Errorf("%w: %#x", ErrFill, fill)
		}
		data = false
		if live || !isZero(dst) {
			clear(dst)
		}
	case flagXBZRLE:
		delta, err := readDelta(r)
		if err != nil {
			return err
		}
		if err := xbzrle.Decode(dst, delta); err != nil {
			return fmt.Errorf("%w: %w", ErrXBZRLE, err)
		}
	case flagCompressed:
		z, err := readCompressed(r)
		if err != nil {
			return err
		}
		p, err := l.inflate.page(z)
		if err != nil {
			return err
		}
		copy(dst, p)
	}
	if !live {
		b.receive(off)
		return nil
	}
	l.partHave += PageSize
	l.partData = l.partData || data
	if l.partHave < b.size {
		return nil
	}
	l.partHave = 0
	return l.place(b, l.partAt)
}

// expect checks that a page is the next part of a page of the host.
func (l *Lazy) expect(b *lazyBlock, off uint64) error {
	if l.partHave == 0 {
		if off%b.size != 0 {
			return ErrPartialPage
		}
		l.partBlock, l.partAt, l.partData = b, off, false
		return nil
	}
	if l.partBlock != b || l.partAt+l.partHave != off {
		return ErrPartialPage
	}
	return nil
}

// place makes l.part the page of the host at an offset of a block.
func (l *Lazy) place(b *lazyBlock, at uint64) error {
	i := at / PageSize
	if b.has(b.received, i) {
		return nil // it came before, and the guest may have written it
	}
	dst := b.Host[at : at+b.size]
	var err error
	switch {
	case l.partData:
		_, err = l.fd.Copy(dst, l.part[:b.size])
	case b.HostPageSize == 0:
		_, err = l.fd.Zero(dst)
	default:
		_, err = l.fd.Copy(dst, l.zeros[:b.size])
	}
	if err != nil {
		return fmt.Errorf("place: %w", err)
	}
	l.placed.Add(1)
	for p := i; p < i+b.size/PageSize; p++ {
		atomic.OrUint64(&b.received[p/64], 1<<(p%64))
	}
	return nil
}

// blockList reads the block list, which must name each block with the length that it has
// here.
func (l *Lazy) blockList(r *qemufile.Reader, total uint64) error {
	if l.listening.Load() {
		return fmt.Errorf("%w: in postcopy", ErrBlockList)
	}
	var listed []string
	for left := total; left > 0; {
		name := r.CountedBytes()
		if err := r.Err(); err != nil {
			return err
		}
		i, ok := l.index[string(name)]
		if !ok {
			return unknownBlock(name)
		}
		b := &l.blocks[i]
		if slices.Contains(listed, b.Name) {
			return &Error{Block: b.Name, Err: fmt.Errorf("%w: listed twice", ErrBlockList)}
		}
		listed = append(listed, b.Name)
		info, err := readBlockInfo(r, l.cfg, func(*qemufile.Reader, Format) bool { return b.hugePages() != 0 }, left)
		switch {
		case err != nil:
		case info.Length != b.length:
			err = fmt.Errorf("%w: length %#x, here %#x", ErrBlockList, info.Length, b.length)
		case info.PageSize != 0 && info.PageSize != b.HostPageSize:
			err = fmt.Errorf("%w: page size %#x, here %#x", ErrBlockList, info.PageSize, b.HostPageSize)
		}
		if err != nil {
			return &Error{Block: b.Name, Err: qemufile.NoEOF(err)}
		}
		left -= info.Length
	}
	if len(listed) > 0 && len(listed) != len(l.blocks) {
		return fmt.Errorf("%w: %d blocks of %d", ErrBlockList, len(listed), len(l.blocks))
	}
	return nil
}
