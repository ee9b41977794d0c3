package ram

import (
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// A LazySaver is a [Saver] that can go on after the guest runs on the other side
// (postcopy): it then sends what the other side asks for, and behind that all the rest, from
// the memory of the guest, which stands still here for good.
//
// Until BeginPostcopy it is a Saver, whose methods say what it does; it never captures, and
// sends no differences, and [Saver.Resume] does not go on from it (its own Resume does, with
// what the other side says that it has). It is a [vmstate.PostcopySaver]. It belongs to one goroutine at a
// time, but for Request.
//
// [vmstate.PostcopySaver]: https://pkg.go.dev/github.com/gocolo/lockstep/vmstate#PostcopySaver
type LazySaver struct {
	s     *Saver
	begun bool

	mu     sync.Mutex
	queue  []pageRef // pages of the host that were asked for, in that order
	queued []Bitmap  // which these are, by block: each is in the queue once
}

const (
	// askedBytes is about how many bytes one SaveIterate sends of the pages
	// that were asked for.
	askedBytes = 64 << 10
	// walkBytes is about how many bytes one SaveIterate sends of the other pages. A
	// page that is asked for meanwhile waits until they have been sent.
	walkBytes = 16 << 10
)

// NewLazySaver returns a LazySaver of blocks, with the arguments of NewSaver. The block
// list has page sizes ([Format].Postcopy), so the stream must have the POSTCOPY_ADVISE
// command.
func NewLazySaver(blocks []Block, log DirtyLog, cfg SaverConfig) *LazySaver {
	cfg.XBZRLE, cfg.Resumable, cfg.Format.Postcopy = 0, false, true
	l := &LazySaver{s: NewSaver(blocks, log, cfg)}
	for _, b := range blocks {
		if size := b.hostPage(); size%PageSize != 0 || uint64(len(b.Host))%size != 0 || b.used()%size != 0 {
			l.s.bad = &Error{Op: "block", Block: b.Name, Stream: -1, Err: fmt.Errorf("%d bytes are not whole pages of %d", b.used(), size)}
		}
		l.queued = append(l.queued, NewBitmap(len(b.Host)/PageSize))
	}
	return l
}

// hostPage returns the size of the pages that back the block, in bytes.
func (b *Block) hostPage() uint64 {
	if b.HostPageSize != 0 {
		return b.HostPageSize
	}
	return uint64(os.Getpagesize())
}

// PageSizes returns the OR of the sizes of the pages that back blocks, in bytes: what a
// [vmstate.PostcopyAdvise] says.
//
// [vmstate.PostcopyAdvise]: https://pkg.go.dev/github.com/gocolo/lockstep/vmstate#PostcopyAdvise
func PageSizes(blocks []Block) (sizes uint64) {
	for i := range blocks {
		sizes |= blocks[i].hostPage()
	}
	return sizes
}

// Register registers the saver as the memory of a source's registry.
func (l *LazySaver) Register(reg *vmstate.Registry) error { return reg.RegisterLive(Entry(), l, nil) }

// SaveSetup does what Saver.SaveSetup does.
func (l *LazySaver) SaveSetup(w *qemufile.Writer) error {
	l.begun = false
	l.forgetRequests()
	return l.s.SaveSetup(w)
}

// SaveComplete does what Saver.SaveComplete does: the guest does not run on the other
// side before all its memory is there.
func (l *LazySaver) SaveComplete(w *qemufile.Writer) error { return l.s.SaveComplete(w) }

// SaveCleanup does what Saver.SaveCleanup does.
func (l *LazySaver) SaveCleanup() { l.s.SaveCleanup() }

// Stats returns what Saver.Stats returns.
func (l *LazySaver) Stats() Stats { return l.s.Stats() }

// Pending returns what is left to be sent, in bytes. All of it can follow the guest.
func (l *LazySaver) Pending(exact bool) (mustPrecopy, canPostcopy uint64) {
	if l.begun {
		return 0, uint64(l.s.dirty) * PageSize
	}
	n, _ := l.s.Pending(exact)
	return 0, n
}

// HasPostcopy says that memory may follow the guest.
func (l *LazySaver) HasPostcopy() bool { return true }

// BeginPostcopy tells the other side, by RAM_DISCARD commands, which part of the memory
// that it has is out of date: all that was written since it was sent, in whole pages of
// the host. The guest stands still, here and from now on.
func (l *LazySaver) BeginPostcopy(w *qemufile.Writer) error {
	if err := l.s.ready(); err != nil {
		return err
	}
	if err := l.s.sync(); err != nil {
		return err
	}
	l.begun = true
	l.s.sendDeltas = false
	for bi := range l.s.blocks {
		b := &l.s.blocks[bi]
		l.wholePages(b)
		var d vmstate.RAMDiscard
		for i := b.dirty.Next(0); i >= 0; {
			end := i + 1
			for end < len(b.mem)/PageSize && b.dirty.Has(end) {
				end++
			}
			d.Ranges = append(d.Ranges, vmstate.Range{Start: uint64(i) * PageSize, Length: uint64(end-i) * PageSize})
			if end >= len(b.mem)/PageSize {
				break
			}
			i = b.dirty.Next(end)
		}
		if len(d.Ranges) > 0 {
			d.Block = b.Name
			vmstate.PutRAMDiscard(w, d)
		}
	}
	return l.s.saved(w)
}

// wholePages makes a page of the host dirty of which a part is, and counts anew.
func (l *LazySaver) wholePages(b *saverBlock) {
	each := int(b.hostPage() / PageSize)
	before := b.dirty.Count()
	if each > 1 {
		for i := b.dirty.Next(0); i >= 0; {
			first := i / each * each
			b.dirty.SetRange(first, first+each)
			if first+each >= 64*len(b.dirty) {
				break
			}
			i = b.dirty.Next(first + each)
		}
	}
	l.s.dirty += b.dirty.Count() - before
}

// Request has a part of a block sent before the rest: the part that a REQ_PAGES names.
// Pages of it that were sent already are not sent again. It may be called from any
// goroutine. Its error is an [*Error] with [ErrUnknownBlock] or [ErrOffset].
func (l *LazySaver) Request(block string, start uint64, length uint32) error {
	bi := slices.IndexFunc(l.s.blocks, func(b saverBlock) bool { return b.Name == block })
	if bi < 0 {
		return &Error{Op: "request", Block: block, Offset: start, Stream: -1, Err: ErrUnknownBlock}
	}
	b := &l.s.blocks[bi]
	end := start + uint64(length)
	if end < start || end > uint64(len(b.mem)) {
		return &Error{Op: "request", Block: block, Offset: start, Stream: -1, Err: ErrOffset}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	size := b.hostPage()
	for at := start / size * size; at < end; at += size {
		i := int(at / PageSize)
		if !l.queued[bi].Has(i) {
			l.queued[bi].Set(i)
			l.queue = append(l.queue, pageRef{int32(bi), int32(i)})
		}
	}
	return nil
}

// asked takes the next page of the host that was asked for from the queue.
func (l *LazySaver) asked() (p pageRef, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return p, false
	}
	p = l.queue[0]
	if l.queue = l.queue[1:]; len(l.queue) == 0 {
		l.queue = nil
	}
	l.queued[p.block].Clear(int(p.page))
	return p, true
}

func (l *LazySaver) forgetRequests() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = nil
	for _, q := range l.queued {
		clear(q)
	}
}

// Requested reports whether something was asked for that has not had its turn. It may be
// called from any goroutine.
func (l *LazySaver) Requested() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue) > 0
}

// SaveIterate does what Saver.SaveIterate does until BeginPostcopy. Then it sends what was
// asked for, up to some 64 KiB and nothing else, so that a page that was asked for never
// waits for others; or, if nothing was asked for, some 16 KiB of the pages behind the
// last one. The caller flushes. done means that all was sent.
func (l *LazySaver) SaveIterate(w *qemufile.Writer) (done bool, err error) {
	if !l.begun {
		return l.s.SaveIterate(w)
	}
	if err := l.s.ready(); err != nil {
		return false, err
	}
	l.s.begin()
	start := w.Transferred()
	if !l.sendAsked(w, start) {
		l.walk(w, start)
	}
	w.PutBE64(flagEOS)
	l.s.stats.Bytes += uint64(w.Transferred() - start)
	return l.s.dirty == 0, l.s.saved(w)
}

// sendAsked sends what was asked for, and reports whether that was anything.
func (l *LazySaver) sendAsked(w *qemufile.Writer, start int64) (any bool) {
	for l.s.dirty > 0 && w.Err() == nil && w.Transferred()-start < askedBytes {
		p, ok := l.asked()
		if !ok {
			break
		}
		any = true
		l.sendWhole(w, int(p.block), int(p.page))
	}
	return any
}

// walk sends the pages behind the last one.
func (l *LazySaver) walk(w *qemufile.Writer, start int64) {
	s := l.s
	for s.dirty > 0 && w.Err() == nil && w.Transferred()-start < walkBytes {
		i := s.blocks[s.atBlock].dirty.Next(s.atPage)
		if i < 0 {
			s.atBlock, s.atPage = (s.atBlock+1)%len(s.blocks), 0
			continue
		}
		l.sendWhole(w, s.atBlock, i)
	}
}

// sendWhole sends the page of the host that page i of a block is in, if it is dirty. The
// walk then goes on behind that page: the guest will probably ask for what follows next.
func (l *LazySaver) sendWhole(w *qemufile.Writer, bi, i int) {
	b := &l.s.blocks[bi]
	each := int(b.hostPage() / PageSize)
	first := i / each * each
	if !b.dirty.Has(first) {
		return
	}
	for i := first; i < first+each; i++ {
		b.dirty.Clear(i)
		l.s.dirty--
		l.s.send(w, bi, i, true)
	}
	l.s.atBlock, l.s.atPage = bi, first+each
	if l.s.atPage >= len(b.mem)/PageSize {
		l.s.atBlock, l.s.atPage = (bi+1)%len(l.s.blocks), 0
	}
}

// SaveCompletePostcopy ends the memory; everything must have been sent, as SaveIterate says.
func (l *LazySaver) SaveCompletePostcopy(w *qemufile.Writer) error {
	if l.s.dirty > 0 {
		return &Error{Op: "save", Stream: w.Transferred(), Err: fmt.Errorf("%d pages are not sent", l.s.dirty)}
	}
	w.PutBE64(flagEOS)
	l.s.statsDone = true
	return l.s.saved(w)
}

// Resume begins again on another connection, for one block: received has a bit for each
// page that the other side has, in pages of the host's ordinary size (RECV_BITMAP), and all
// others are sent. What was asked for on the old connection is forgotten.
func (l *LazySaver) Resume(block string, received []uint64) error {
	bi := slices.IndexFunc(l.s.blocks, func(b saverBlock) bool { return b.Name == block })
	if bi < 0 {
		return &Error{Op: "resume", Block: block, Stream: -1, Err: ErrUnknownBlock}
	}
	b := &l.s.blocks[bi]
	n := len(b.mem) / PageSize
	if len(received) < (n+63)/64 {
		return &Error{Op: "resume", Block: block, Stream: -1, Err: fmt.Errorf("bitmap of %d words for %d pages", len(received), n)}
	}
	l.forgetRequests()
	l.s.last, l.s.err = noBlock, nil
	before := b.dirty.Count()
	for i := range (n + 63) / 64 {
		b.dirty[i] = ^received[i]
	}
	b.dirty.ClearRange(n, 64*len(b.dirty))
	l.s.dirty += b.dirty.Count() - before
	l.wholePages(b)
	l.s.atBlock, l.s.atPage = 0, 0
	return nil
}

// Blocks calls fn for each block that is sent, with its length in bytes.
func (l *LazySaver) Blocks(fn func(name string, length uint64) error) error {
	for i := range l.s.blocks {
		if b := &l.s.blocks[i]; len(b.mem) > 0 {
			if err := fn(b.Name, uint64(len(b.mem))); err != nil {
				return err
			}
		}
	}
	return nil
}
