package ram

import (
	"errors"
	"fmt"
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
	// returns when every page so far has been read for the last time, and the
	// other side will have placed them before it takes another section.
	Sync() error
}

// SendPagesTo has pages with contents go to p in place of the stream, from the next
// page on; nil: to the stream. It is called between two sections. It is not for a saver that captures, whose
// captured pages are in the stream all the same, nor for one with
// SaverConfig.XBZRLE, nor for postcopy.
func (s *Saver) SendPagesTo(p PageSender) { s.elsewhere = p }

// SendPagesTo is Saver.SendPagesTo.
func (l *LazySaver) SendPagesTo(p PageSender) { l.s.SendPagesTo(p) }

// end ends a section: what was sent elsewhere has arrived before it does.
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

// SetBarrier has fn called at the end of each section, before LoadState returns:
// pages that come elsewhere (StagePage) are in step with the stream there. Its
// error is the load's. Nil: nothing is called.
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
