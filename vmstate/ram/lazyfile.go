package ram

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/gocolo/lockstep/internal/uffd"
	"github.com/gocolo/lockstep/qemufile"
)

const (
	// fillPiece is how much is read at once while nobody waits for it, in bytes.
	fillPiece = 1 << 20
	// faultPiece is how much is read around a page that somebody waits for: what is
	// beside it is touched next, as likely as not.
	faultPiece = 64 << 10
)

// A lazyFile is a mapped-ram file that has the memory of a Lazy.
type lazyFile struct {
	f      io.ReaderAt
	blocks []fileBlock // the blocks of the file, in the order of the Lazy's
}

// fileBlock says where a block's pages are in the file.
type fileBlock struct {
	pages int64  // offset in the file of page 0
	has   Bitmap // pages that the file has; all others are zeros
}

// OpenMapped has the memory come from a file that a [MappedWriter] or a QEMU with
// mapped-ram (9.0 and later) has finished. at is the offset in the file of the body of the
// ram section's START. OpenMapped reads which pages the file has, a bit for each, and no
// page itself, so that it takes little time however large the guest is. The caller then
// calls Listen and Fill. It returns the offset behind the body. Nothing has changed if
// there is an error, which is an [*Error] and says what in the file is not of this guest,
// or the file's.
func (l *Lazy) OpenMapped(f io.ReaderAt, at int64) (end int64, err error) {
	from := &lazyFile{f: f, blocks: make([]fileBlock, len(l.blocks))}
	listed := 0
	named := make([]bool, len(l.blocks)) // there may be several lists
	r := qemufile.NewReader(io.NewSectionReader(f, at, 1<<62))
	k := Walker{Format: Format{MappedRAM: true}, origin: at}
	k.bitmaps = func(info BlockInfo, m *MappedBlock, words []byte) {
		b := &from.blocks[l.index[info.Name]]
		b.pages, b.has = int64(m.Pages), NewBitmap(int(info.Length/PageSize))
		for i := range b.has {
			b.has[i] = binary.LittleEndian.Uint64(words[8*i:])
		}
	}
	err = k.Walk(r, func(rec *Record) error {
		if is, err := mappedEntry(rec); !is {
			return err
		}
		info := rec.Blocks[0] // its bitmap is read next
		i, ok := l.index[info.Name]
		switch {
		case !ok:
			return &Error{Op: "map", Block: info.Name, Stream: rec.Stream, Err: ErrUnknownBlock}
		case named[i]:
			return &Error{Op: "map", Block: info.Name, Stream: rec.Stream, Err: fmt.Errorf("%w: listed twice", ErrBlockList)}
		case info.Length != l.blocks[i].length:
			return &Error{Op: "map", Block: info.Name, Stream: rec.Stream, Err: fmt.Errorf("%w: length %#x, here %#x", ErrBlockList, info.Length, l.blocks[i].length)}
		case rec.Mapped.PageSize != PageSize:
			return &Error{Op: "map", Block: info.Name, Stream: rec.Stream, Err: fmt.Errorf("%w: pages of %d bytes", ErrMapped, rec.Mapped.PageSize)}
		}
		named[i] = true
		listed++
		return nil
	})
	if err != nil {
		return 0, err
	}
	if listed != len(l.blocks) {
		return 0, &Error{Op: "map", Stream: at, Err: fmt.Errorf("%w: %d blocks of %d", ErrBlockList, listed, len(l.blocks))}
	}
	for i := range from.blocks {
		if past := from.blocks[i].has.Next(int(l.blocks[i].length / PageSize)); past >= 0 {
			return 0, &Error{Op: "map", Block: l.blocks[i].Name, Offset: uint64(past) * PageSize, Stream: at, Err: ErrOffset}
		}
	}
	l.from = from
	return at + r.Offset(), nil
}

// Fill takes the place of Serve and Finish for memory that comes from a file (OpenMapped),
// after Listen. It reads a page that is touched from the file at once, and meanwhile all
// others in order. It returns nil when all of the guest's memory is ordinary memory. If it
// returns an error, of the file or the context's cause, threads that wait for a page go on
// waiting: the guest must be stopped before Close, and must never run on. The file must
// not change meanwhile. It is called once.
func (l *Lazy) Fill(ctx context.Context) error {
	if l.from == nil || !l.listening.Load() {
		return &Error{Op: "fill", Stream: -1, Err: errors.New("Fill before OpenMapped and Listen")}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var touched sync.WaitGroup
	touched.Go(func() {
		if err := l.fillTouched(); err != nil {
			cancel(err)
		}
	})
	// Touches are answered until all memory is ordinary.
	err := l.fillRest(ctx)
	if err == nil {
		err = l.ordinary()
	}
	cancel(err)
	l.fd.Interrupt()
	touched.Wait()
	if err == nil {
		return nil
	}
	return context.Cause(ctx) // what came first
}

// ordinary makes all memory ordinary memory, none of which is missing. A page
// that nobody has placed becomes zeros.
func (l *Lazy) ordinary() error {
	for i := range l.blocks {
		if b := &l.blocks[i]; len(b.Host) > 0 {
			if err := l.fd.Unregister(b.Host); err != nil {
				return &Error{Op: "fill", Block: b.Name, Stream: -1, Err: err}
			}
		}
	}
	l.done.Store(true)
	l.allowHuge()
	return nil
}

// fillTouched places the pages that are touched, until Interrupt.
func (l *Lazy) fillTouched() error {
	faults := make([]uffd.Fault, 64)
	buf := make([]byte, max(faultPiece, len(l.part)))
	for {
		n, err := l.fd.Faults(faults)
		if errors.Is(err, uffd.ErrClosed) {
			return nil
		}
		if err != nil {
			return &Error{Op: "fill", Stream: -1, Err: err}
		}
		for _, f := range faults[:n] {
			b := l.at(f.Addr)
			if b == nil {
				continue
			}
			at := uint64(f.Addr-b.base()) / b.size * b.size
			if b.has(b.received, at/PageSize) {
				_ = l.fd.Wake(b.Host[at : at+b.size]) // it came between the touch and now
				continue
			}
			l.asked.Add(1)
			size := max(faultPiece, b.size)
			first := at / size * size
			if err := l.fill(b, first, min(first+size, b.length), true, buf); err != nil {
				return err
			}
		}
	}
}

// fillRest reads what the file has, in order.
func (l *Lazy) fillRest(ctx context.Context) error {
	buf := make([]byte, max(fillPiece, len(l.part)))
	for i := range l.blocks {
		b, has := &l.blocks[i], l.from.blocks[i].has
		size := max(fillPiece, b.size)
		for p := has.Next(0); p >= 0; {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			first := uint64(p) * PageSize / size * size
			end := min(first+size, b.length)
			if err := l.fill(b, first, end, false, buf); err != nil {
				return err
			}
			if end == b.length {
				break
			}
			p = has.Next(int(end / PageSize))
		}
	}
	return nil
}

// fill places the missing pages of the part of a block from first to end, which are
// bounds of pages of the host and at most len(buf) apart. With zeros it also places the
// pages that the file does not have.
func (l *Lazy) fill(b *lazyBlock, first, end uint64, zeros bool, buf []byte) error {
	from := l.from.of(l, b)
	for at := first; at < end; {
		if b.has(b.received, at/PageSize) {
			at += b.size
			continue
		}
		data, stop := from.any(at, b.size), at+b.size
		for stop < end && !b.has(b.received, stop/PageSize) && from.any(stop, b.size) == data {
			stop += b.size
		}
		if data || zeros {
			src := buf[:stop-at]
			if !data {
				src = nil
			} else if err := from.read(l.from.f, at, src); err != nil {
				return &Error{Op: "fill", Block: b.Name, Offset: at, Stream: from.pages + int64(at), Err: err}
			}
			if err := l.placeRun(b, at, stop, src); err != nil {
				return &Error{Op: "fill", Block: b.Name, Offset: at, Stream: -1, Err: err}
			}
		}
		at = stop
	}
	return nil
}

func (f *lazyFile) of(l *Lazy, b *lazyBlock) *fileBlock {
	for i := range l.blocks {
		if &l.blocks[i] == b {
			return &f.blocks[i]
		}
	}
	return nil // b is one of l's
}

// any reports whether the file has a page of the size bytes from at on.
func (b *fileBlock) any(at, size uint64) bool {
	p := b.has.Next(int(at / PageSize))
	return p >= 0 && uint64(p) < (at+size)/PageSize
}

// read reads a part of a block. What the file does not have is zeros, whatever is there.
func (b *fileBlock) read(f io.ReaderAt, at uint64, p []byte) error {
	if n, err := f.ReadAt(p, b.pages+int64(at)); n < len(p) {
		return qemufile.NoEOF(err)
	}
	for i := 0; i < len(p); i += PageSize {
		if !b.has.Has(int(at+uint64(i)) / PageSize) {
			clear(p[i : i+PageSize])
		}
	}
	return nil
}

// placeRun makes src the pages from at up to stop, or zeros if it is nil. A page that is
// there already is left, since the guest may have written it.
func (l *Lazy) placeRun(b *lazyBlock, at, stop uint64, src []byte) error {
	begin := at
	for at < stop {
		dst := b.Host[at:stop]
		var n int
		var err error
		switch {
		case src != nil:
			n, err = l.fd.Copy(dst, src[at-begin:])
		case b.HostPageSize == 0:
			n, err = l.fd.Zero(dst)
		default:
			dst = dst[:b.size]
			n, err = l.fd.Copy(dst, l.zeros[:b.size])
		}
		l.placed.Add(uint64(n) / b.size)
		b.arrived(at, at+uint64(n))
		at += uint64(n)
		if errors.Is(err, uffd.ErrExists) {
			// A thread that waits for the page may have touched it before it
			// was there.
			b.arrived(at, at+b.size)
			err = l.fd.Wake(b.Host[at : at+b.size])
			at += b.size
		}
		if err != nil {
			return fmt.Errorf("place: %w", err)
		}
	}
	return nil
}

// arrived marks pages as there.
func (b *lazyBlock) arrived(at, stop uint64) {
	for p := at / PageSize; p < stop/PageSize; p++ {
		atomic.OrUint64(&b.received[p/64], 1<<(p%64))
	}
}
