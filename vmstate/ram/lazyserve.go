package ram

import (
	"errors"
	"sync/atomic"
	"unsafe"

	"github.com/gocolo/lockstep/internal/uffd"
)

// Serve asks for pages that are touched and missing, each once for each connection, until
// Close or Finish. It calls ask with a page of the host. ask must not wait for that page;
// a request that it cannot send, because the connection is broken, Outstanding repeats
// later.
func (l *Lazy) Serve(ask func(block string, start uint64, length uint32)) error {
	if !l.listening.Load() {
		return &Error{Op: "serve", Stream: -1, Err: errors.New("Serve before Listen")}
	}
	faults := make([]uffd.Fault, 64)
	for {
		n, err := l.fd.Faults(faults)
		if errors.Is(err, uffd.ErrClosed) {
			return nil
		}
		if err != nil {
			return &Error{Op: "serve", Stream: -1, Err: err}
		}
		for _, f := range faults[:n] {
			if b := l.at(f.Addr); b != nil {
				l.want(b, uint64(f.Addr-b.base())/b.size*b.size, ask)
			}
		}
	}
}

// want asks for a page of the host unless the page is there or was asked for
// already.
func (l *Lazy) want(b *lazyBlock, at uint64, ask func(string, uint64, uint32)) {
	i := at / PageSize
	if b.has(b.received, i) {
		// The page came after it was touched.
		_ = l.fd.Wake(b.Host[at : at+b.size])
		return
	}
	bit := uint64(1) << (i % 64)
	if atomic.OrUint64(&b.requested[i/64], bit)&bit == 0 {
		l.asked.Add(1)
		ask(b.Name, at, uint32(b.size))
	}
}

// Outstanding calls ask for each page of the host that was asked for and has not come: on a
// new connection they have to be asked for again. Serve may go on meanwhile; from before
// the call its asks must go to the new connection.
func (l *Lazy) Outstanding(ask func(block string, start uint64, length uint32)) {
	for i := range l.blocks {
		b := &l.blocks[i]
		for p := uint64(0); p < b.length/PageSize; p += b.size / PageSize {
			if b.has(b.requested, p) && !b.has(b.received, p) {
				ask(b.Name, p*PageSize, uint32(b.size))
			}
		}
	}
}

func (b *lazyBlock) has(bits Bitmap, i uint64) bool {
	return atomic.LoadUint64(&bits[i/64])>>(i%64)&1 != 0
}

func (b *lazyBlock) base() uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b.Host))) }

// at returns the block that an address is in.
func (l *Lazy) at(addr uintptr) *lazyBlock {
	for i := range l.blocks {
		if b := &l.blocks[i]; addr >= b.base() && addr-b.base() < uintptr(len(b.Host)) {
			return b
		}
	}
	return nil
}

// Ensure returns when n bytes of a block from offset on are there and may be touched. It
// waits for the source if need be, as long as that takes, and blocks no other goroutine.
func (l *Lazy) Ensure(block string, offset, n uint64) error {
	i, ok := l.index[block]
	if !ok {
		return &Error{Op: "ensure", Block: block, Offset: offset, Stream: -1, Err: ErrUnknownBlock}
	}
	b := &l.blocks[i]
	if offset+n < offset || offset+n > b.length {
		return &Error{Op: "ensure", Block: block, Offset: offset, Stream: -1, Err: ErrOffset}
	}
	if n == 0 || l.done.Load() || !l.listening.Load() {
		return nil
	}
	first, end := offset/b.size*b.size, (offset+n+b.size-1)/b.size*b.size
	for at := first; at < end; at += b.size {
		if !b.has(b.received, at/PageSize) {
			return uffd.Populate(b.Host[at:end])
		}
	}
	return nil
}

// Received returns which pages of a block have come, for a RECV_BITMAP. A block of another name
// is an [*Error] with [ErrUnknownBlock].
func (l *Lazy) Received(block string) ([]uint64, error) {
	i, ok := l.index[block]
	if !ok {
		return nil, &Error{Op: "resume", Block: block, Stream: -1, Err: ErrUnknownBlock}
	}
	b := &l.blocks[i]
	words := make([]uint64, len(b.received))
	for w := range words {
		words[w] = atomic.LoadUint64(&b.received[w])
	}
	return words, nil
}

// Missing returns how many pages of the stream have not come.
func (l *Lazy) Missing() (pages int) {
	for i := range l.blocks {
		b := &l.blocks[i]
		have := 0
		for p := uint64(0); p < b.length/PageSize; p++ {
			if b.has(b.received, p) {
				have++
			}
		}
		pages += int(b.length/PageSize) - have
	}
	return pages
}

// Placed returns how many pages of the host have been placed since Listen, and how many of
// them somebody touched before they had come.
func (l *Lazy) Placed() (placed, touched uint64) { return l.placed.Load(), l.asked.Load() }
