package ram

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/gocolo/lockstep/internal/uffd"
	"github.com/gocolo/lockstep/vmstate"
)

// Errors of a [Lazy].
var (
	// ErrIncomplete means that the stream has ended and pages are missing.
	ErrIncomplete = errors.New("pages are missing")
	// ErrPartialPage means that the parts of a page of the host do not come one after the
	// other, as they must in postcopy.
	ErrPartialPage = errors.New("part of a page of the host out of turn")
)

// A Lazy is the memory of a guest that can run before its memory is there (postcopy). It
// is a [vmstate.LiveLoader].
//
// At first it loads pages into the memory of the guest, which stands still. Discard takes
// back what was written again at the source. After Listen, the pages that have not come are
// missing: a thread that touches one waits, and Serve asks the source for the page.
// LoadState places a page of the host when all of it has come. Finish ends this state when
// all pages have come.
//
// Where the memory comes from a file and not from a stream (OpenMapped, Listen), the
// caller calls Fill in place of Serve, LoadState and Finish.
//
// In Go, only system calls may touch memory that may be missing, KVM_RUN among them; Go code
// that is about to touch it (a device model, say) calls Ensure first. Otherwise the process
// may stand still for ever: the thread waits in the kernel, where Go's scheduler does not
// know of it.
//
// Discard, Listen, LoadState and Finish belong to one goroutine at a time, Serve to another;
// the other methods may be called from any.
//
// It needs what a [Tracker] needs, but Linux 4.11 is enough, also for blocks that are
// shared memory or hugetlbfs. The memory must not be pinned or locked, and nothing but Lazy
// may register it with a userfaultfd.
//
// [vmstate.LiveLoader]: https://pkg.go.dev/github.com/gocolo/lockstep/vmstate#LiveLoader
type Lazy struct {
	blocks []lazyBlock
	index  map[string]int // by name, the block's place in blocks
	cfg    Format
	fd     *uffd.FD  // from Listen on
	from   *lazyFile // which has the memory; nil: a stream brings it

	last      int         // the block of the last record on this connection, or noBlock
	listening atomic.Bool // Listen has succeeded
	done      atomic.Bool // all of the memory is ordinary again
	inflate   inflater
	barrier   func() error // see SetBarrier; nil: none

	// A page of the host that is coming in parts.
	part      []byte
	partBlock *lazyBlock // the block of that page
	partAt    uint64     // where it begins in the block
	partHave  uint64     // how many bytes of the page have come
	partData  bool       // not all zeros
	zeros     []byte

	placed atomic.Uint64 // pages of the host placed since Listen
	asked  atomic.Uint64 // pages that Serve asked for

	mu    sync.Mutex // fd, against Close; and small
	small bool       // the kernel was told to use no huge pages: from PostcopyAdvised to Finish or Close
}

// lazyBlock is a block of a Lazy, with the pages that have come.
type lazyBlock struct {
	Block
	length uint64 // bytes
	size   uint64 // of the pages of the host, bytes
	// By page of the stream; a page of the host has all its bits or none. Atomic words.
	received, requested Bitmap
}

// name is "" where a record has been read no further than to its first word.
func (b *lazyBlock) name() string {
	if b == nil {
		return ""
	}
	return b.Name
}

// NewLazy returns a Lazy of blocks. It opens nothing yet; Probe says whether it can.
func NewLazy(blocks []Block) (*Lazy, error) {
	if err := CheckBlocks(blocks); err != nil {
		return nil, err
	}
	l := &Lazy{index: make(map[string]int), last: noBlock}
	for i, b := range blocks {
		size := b.hostPage()
		start := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b.Host))))
		if b.used() != uint64(len(b.Host)) || size%PageSize != 0 || b.used()%size != 0 || start%size != 0 {
			return nil, &Error{Op: "block", Block: b.Name, Stream: -1, Err: fmt.Errorf("%d bytes at %#x, %d in use, are not whole pages of %d", len(b.Host), start, b.used(), size)}
		}
		n := len(b.Host) / PageSize
		l.blocks = append(l.blocks, lazyBlock{
			Block: b, length: b.used(), size: size,
			received: NewBitmap(n), requested: NewBitmap(n),
		})
		l.index[b.Name] = i
		if uint64(len(l.part)) < size {
			l.part, l.zeros = make([]byte, size), make([]byte, size)
		}
	}
	return l, nil
}

// Probe returns why Listen could not work here, or nil. NewTracker says which
// errors there are.
func (l *Lazy) Probe() error {
	fd, err := l.open()
	if err != nil {
		return err
	}
	return fd.Close()
}

func (l *Lazy) open() (*uffd.FD, error) {
	fd, err := uffd.Open(uffd.MissingShmem | uffd.MissingHugetlbfs)
	if err != nil {
		return nil, fmt.Errorf("ram: postcopy: %w", err)
	}
	if err := fd.CanWait(); err != nil {
		return nil, errors.Join(fmt.Errorf("ram: postcopy: %w", err), fd.Close())
	}
	return fd, nil
}

// Register registers the loader as the memory of a destination's registry.
func (l *Lazy) Register(reg *vmstate.Registry) error { return reg.RegisterLive(Entry(), nil, l) }

// PostcopyAdvised says that the stream's POSTCOPY_ADVISE command was read: the block list
// has page sizes, and the memory is kept in ordinary pages, each of which can be missing,
// until Finish or Close.
func (l *Lazy) PostcopyAdvised() error {
	l.cfg.Postcopy = true
	return l.smallPages()
}

func (l *Lazy) smallPages() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.small = true
	for i := range l.blocks {
		if b := &l.blocks[i]; len(b.Host) > 0 {
			if err := uffd.SmallPages(b.Host); err != nil {
				return &Error{Op: "block", Block: b.Name, Stream: -1, Err: err}
			}
		}
	}
	return nil
}

// NewSession is called when another connection takes the place of the one that broke. Its
// records name their blocks anew, and a page of the host of which only a part has come
// has to come again. The pages that were asked for on the old connection are asked for
// again by Outstanding.
func (l *Lazy) NewSession() {
	l.last = noBlock
	l.partBlock, l.partHave = nil, 0
}

// Block returns the length of a block in bytes, for [vmstate.Incoming].
//
// [vmstate.Incoming]: https://pkg.go.dev/github.com/gocolo/lockstep/vmstate#Incoming
func (l *Lazy) Block(name string) (length uint64, ok bool) {
	i, ok := l.index[name]
	if !ok {
		return 0, false
	}
	return l.blocks[i].length, true
}

// Discard drops what has come of the ranges of a block. It is called before Listen, from the
// goroutine that loads the stream. An error is an [*Error] with [ErrUnknownBlock], or with
// [ErrOffset] for a range that is not made of whole pages of the block.
func (l *Lazy) Discard(d vmstate.RAMDiscard) error {
	i, ok := l.index[d.Block]
	if !ok {
		return &Error{Op: "discard", Block: d.Block, Stream: -1, Err: ErrUnknownBlock}
	}
	b := &l.blocks[i]
	for _, r := range d.Ranges {
		if r.Start+r.Length < r.Start || r.Start+r.Length > b.length || r.Start%b.size != 0 || r.Length%b.size != 0 || l.listening.Load() {
			return &Error{Op: "discard", Block: d.Block, Offset: r.Start, Stream: -1, Err: ErrOffset}
		}
		b.received.ClearRange(int(r.Start/PageSize), int((r.Start+r.Length)/PageSize))
	}
	return nil
}

// Listen makes the pages that have not come missing, and has the kernel report each
// touch of one. The guest must stand still until Serve runs.
func (l *Lazy) Listen() error {
	if l.listening.Load() {
		return nil
	}
	if l.from != nil {
		if err := l.smallPages(); err != nil {
			return err
		}
	}
	fd, err := l.open()
	if err != nil {
		return err
	}
	for i := range l.blocks {
		b := &l.blocks[i]
		if len(b.Host) == 0 {
			continue
		}
		err := b.dropMissing()
		if err == nil {
			err = fd.Register(b.Host, uffd.ModeMissing)
		}
		if err != nil {
			return errors.Join(&Error{Op: "listen", Block: b.Name, Stream: -1, Err: err}, fd.Close())
		}
	}
	l.fd = fd
	l.listening.Store(true)
	return nil
}

// dropMissing returns to the kernel the memory of the pages that have not come.
func (b *lazyBlock) dropMissing() error {
	each := int(b.size / PageSize)
	n := int(b.length) / PageSize
	for i := 0; i < n; {
		if b.received.Has(i) {
			i += each
			continue
		}
		end := i + each
		if end < n && !b.received.Has(end) {
			if end = b.received.Next(end); end < 0 {
				end = n // nearly all of a large guest, often
			}
			end = min(n, (end+each-1)/each*each)
		}
		// A page of the host of which a part has come is missing as a whole.
		b.received.ClearRange(i, end)
		if err := uffd.Drop(b.Host[i*PageSize : end*PageSize]); err != nil {
			return err
		}
		i = end
	}
	return nil
}

// Finish ends postcopy: everything has come, or the error is [ErrIncomplete] and nothing
// has changed. Serve returns, and memory is ordinary memory again, which the kernel may
// back with huge pages.
func (l *Lazy) Finish() error {
	if n := l.Missing(); n > 0 {
		return &Error{Op: "finish", Stream: -1, Err: fmt.Errorf("%d %w", n, ErrIncomplete)}
	}
	l.done.Store(true)
	if !l.listening.Load() {
		l.allowHuge()
		return nil
	}
	l.fd.Interrupt()
	for i := range l.blocks {
		if b := &l.blocks[i]; len(b.Host) > 0 {
			if err := l.fd.Unregister(b.Host); err != nil {
				return &Error{Op: "finish", Block: b.Name, Stream: -1, Err: err}
			}
		}
	}
	l.allowHuge()
	return nil
}

// allowHuge undoes what PostcopyAdvised has told the kernel.
func (l *Lazy) allowHuge() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.small {
		return
	}
	l.small = false
	for i := range l.blocks {
		if b := &l.blocks[i]; len(b.Host) > 0 {
			_ = uffd.HugePages(b.Host) // the guest runs without
		}
	}
}

// Close closes the userfaultfd. Call it after Serve has returned; Interrupt makes Serve
// return. Before Finish the guest's memory is not all there, and a thread that waits for a
// page would go on with zeros: so the vCPUs must have ended. After precopy it lets the
// kernel use huge pages again, so the memory must still be mapped. Closing it again does
// nothing.
func (l *Lazy) Close() error {
	defer l.allowHuge()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd == nil {
		return nil
	}
	return l.fd.Close() // it stays: who comes late finds it closed
}

// Interrupt makes Serve return.
func (l *Lazy) Interrupt() {
	if l.listening.Load() {
		l.fd.Interrupt()
	}
}
