package ram

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/gocolo/lockstep/qemufile"
)

// A PageSender takes pages with contents that would otherwise be in the stream:
// connections beside it (multifd). Its methods are called by whoever sends, one
// at a time.
type PageSender interface {
	// SendPage takes a page of a block, by reference: the guest may write it until
	// the next Sync returns, since it is then dirty, and sent again.
	SendPage(block string, offset uint64, page []byte) error
	// Sync is called at the end of each section, before the stream has it. It
	// returns when the memory of every page so far has been read for the last
	// time. The other side must have staged all of them before it takes another
	// section.
	Sync() error
}

// A PageReceiver brings the pages that a [PageSender] has sent, to [Cache.StagePage].
// Its methods are called by whoever loads, one at a time.
type PageReceiver interface {
	// Begin is called when a section begins: pages may come from now on, on any
	// goroutines.
	Begin() error
	// Sync is called at the end of the section, and returns when all of its pages
	// have been staged. None comes after that until the next Begin.
	Sync() error
}

// SendPagesTo has pages with contents go to p in place of the stream, from the next
// page on; nil: to the stream. It is called between two sections, with nothing
// captured. Pages of zeros and differences (SaverConfig.XBZRLE) stay in the stream,
// and with differences also the whole pages that SaveIterate sends after the first
// round. It is not for postcopy.
func (s *Saver) SendPagesTo(p PageSender) { s.elsewhere = p }

// SendPagesTo does what Saver.SendPagesTo does.
func (l *LazySaver) SendPagesTo(p PageSender) { l.s.SendPagesTo(p) }

// enter begins a section. Where pages go elsewhere it flushes the section's
// header: the other side takes no page elsewhere before it has read that a
// section begins.
func (s *Saver) enter(w *qemufile.Writer) {
	if s.elsewhere != nil {
		_ = w.Flush() // the error sticks
	}
}

// putElsewhere sends a page beside the stream.
func (s *Saver) putElsewhere(w *qemufile.Writer, bi int, off uint64, page []byte) {
	s.stats.Bytes += PageSize
	s.sentElsewhere += PageSize
	if err := s.elsewhere.SendPage(s.blocks[bi].Name, off, page); err != nil {
		w.Fail(err)
	}
}

// putCaptured sends captured records, those of pages with contents beside the
// stream. bi is the block of the record before, and of the last one when it returns.
func (s *Saver) putCaptured(w *qemufile.Writer, records []byte, bi int) int {
	for len(records) > 0 && w.Err() == nil {
		word := binary.BigEndian.Uint64(records)
		n := 8
		if word&flagContinue == 0 {
			name := records[9:][:records[8]]
			bi = slices.IndexFunc(s.blocks, func(b saverBlock) bool { return b.Name == string(name) })
			n = 9 + len(name)
		}
		off := word &^ flagMask
		body := 1 // a page of zeros
		switch {
		case word&flagPage != 0:
			s.putElsewhere(w, bi, off, records[n:n+PageSize:n+PageSize])
			records = records[n+PageSize:]
			continue
		case word&flagXBZRLE != 0:
			body = 3 + int(binary.BigEndian.Uint16(records[n+1:]))
		}
		s.putWord(w, bi, word&^flagContinue)
		w.WriteRef(records[n : n+body])
		records = records[n+body:]
	}
	return bi
}

// end ends a section. It first waits until the pages that were sent elsewhere
// have been read.
func (s *Saver) end(w *qemufile.Writer) {
	if s.elsewhere != nil && w.Err() == nil {
		if err := s.elsewhere.Sync(); err != nil {
			w.Fail(err)
		}
	}
	w.PutBE64(flagEOS)
	if s.elsewhere != nil {
		// The other side takes nothing more elsewhere before it has read this.
		_ = w.Flush() // the error sticks
	}
}

// TakePagesFrom has pages come from p beside the stream, from the next section on;
// nil: from the stream only. What p calls is [Cache.StagePage]. A block list is then
// refused: the blocks are known. It is called between two sections, and whoever
// calls Discard, Flush or Close after a load that has failed sees to it that nothing
// comes from p any more.
func (c *Cache) TakePagesFrom(p PageReceiver) { c.beside = p }

// lock is held while what is staged changes, where pages come from several
// goroutines.
func (c *Cache) lock() {
	if c.beside != nil {
		c.mu.Lock()
	}
}

func (c *Cache) unlock() {
	if c.beside != nil {
		c.mu.Unlock()
	}
}

// begin begins a section.
func (c *Cache) begin() error {
	if c.beside == nil {
		return nil
	}
	return c.beside.Begin()
}

// end ends a section.
func (c *Cache) end() error {
	if c.beside == nil {
		return nil
	}
	return c.beside.Sync()
}

// SetBarrier has fn called at the end of each section, before LoadState returns: pages
// that come elsewhere (StagePage) are in step with the stream there. LoadState returns
// its error. Nil: nothing is called.
func (l *Lazy) SetBarrier(fn func() error) { l.barrier = fn }

// StagePage takes a page that came elsewhere than in the stream, before Listen:
// PageSize bytes, or nil for zeros. Unlike LoadState it may be called from several
// goroutines at a time, for pages that are not the same. The error is an [*Error]
// with [ErrUnknownBlock] or [ErrOffset].
func (l *Lazy) StagePage(block string, offset uint64, page []byte) error {
	i, ok := l.index[block]
	err := ErrUnknownBlock
	if ok {
		b := &l.blocks[i]
		switch {
		case l.listening.Load():
			err = errors.New("page beside the stream in postcopy")
		case offset%PageSize != 0 || offset >= b.length || page != nil && len(page) != PageSize:
			err = fmt.Errorf("%w: length %#x", ErrOffset, b.length)
		default:
			dst := b.Host[offset : offset+PageSize : offset+PageSize]
			switch {
			case page != nil:
				copy(dst, page)
			case !isZero(dst):
				clear(dst)
			}
			b.receive(offset)
			return nil
		}
	}
	return &Error{Op: "load", Block: block, Offset: offset, Stream: -1, Err: err}
}

// receive marks a page of the stream as received.
func (b *lazyBlock) receive(offset uint64) {
	p := offset / PageSize
	atomic.OrUint64(&b.received[p/64], 1<<(p%64))
}
