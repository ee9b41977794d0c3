package ram

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/gocolo/lockstep/internal/uffd"
	"github.com/gocolo/lockstep/internal/xbzrle"
	"github.com/gocolo/lockstep/qemufile"
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
// back what was written again at the source. After Listen, what has not come is missing:
// whoever touches it waits, and Serve asks the source for it; LoadState places each page of
// the host whole. Finish ends that when all has come.
//
// In Go, only system calls may touch memory that may be missing, KVM_RUN among them; Go code
// that is about to touch it (a device model, say) calls Ensure first. Otherwise the process
// may stand still for ever: the thread waits in the kernel, where Go's scheduler does not
// know of it.
//
// Discard, Listen, LoadState and Finish belong to one goroutine at a time, Serve to another;
// the other methods may be called from any.
//
// It needs what a [Tracker] needs, but for an older kernel (4.11; blocks of files in memory
// or hugetlbfs included). The memory must not be pinned or locked, and nothing but Lazy may
// register it with a userfaultfd.
//
// [vmstate.LiveLoader]: https://pkg.go.dev/github.com/gocolo/lockstep/vmstate#LiveLoader
type Lazy struct {
	blocks []lazyBlock
	index  map[string]int
	cfg    Format
	fd     *uffd.FD // from Listen on

	last      int // the block of the last record on this connection, or noBlock
	listening atomic.Bool
	done      atomic.Bool
	inflate   inflater
	barrier   func() error

	// A page of the host that is coming in parts.
	part      []byte
	partBlock *lazyBlock
	partAt    uint64 // where it begins in the block
	partHave  uint64 // bytes
	partData  bool   // not all zeros
	zeros     []byte

	placed atomic.Uint64 // pages of the host placed since Listen
	asked  atomic.Uint64 // pages that Serve asked for

	mu    sync.Mutex // fd, against Close; and small
	small bool       // the kernel was told to use no huge pages: from PostcopyAdvised to Finish or Close
}

type lazyBlock struct {
	Block
	length uint64 // bytes
	size   uint64 // of the pages of the host, bytes
	// By page of the stream; a page of the host has all its bits or none. Atomic words.
	received, requested Bitmap
}

// NewLazy returns a Lazy of blocks. It opens nothing yet; Probe says whether it can.
func NewLazy(blocks []Block) (*Lazy, error) {
	if err := checkBlocks(blocks); err != nil {
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

// Probe returns why Listen could not work here: what NewTracker's error may be.
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
	return fd, nil
}

// Register registers the loader as the memory of a destination's registry.
func (l *Lazy) Register(reg *vmstate.Registry) error { return reg.RegisterLive(Entry(), nil, l) }

// PostcopyAdvised says that the stream's POSTCOPY_ADVISE command was read: the block list
// has page sizes, and the memory is kept in ordinary pages, each of which can be missing,
// until Finish or Close.
func (l *Lazy) PostcopyAdvised() error {
	l.cfg.Postcopy = true
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

// NewSession begins with another connection, whose records name their blocks anew. A page
// of the host of which a part has come has to come again; what was asked for, Outstanding
// knows.
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

// Discard drops what has come of the ranges of a block.
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

// Listen makes missing what has not come, and has the kernel report who touches it. The
// guest stands still until Serve runs.
func (l *Lazy) Listen() error {
	if l.listening.Load() {
		return nil
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

// dropMissing gives the pages back that have not come.
func (b *lazyBlock) dropMissing() error {
	each := int(b.size / PageSize)
	n := int(b.length) / PageSize
	for i := 0; i < n; {
		if b.received.Has(i) {
			i += each
			continue
		}
		end := i + each
		for end < n && !b.received.Has(end) {
			end += each
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

// Serve asks for pages that are touched and missing, each once for each connection, until
// Close or Finish. ask is called with a page of the host, and must not wait for one; what
// it cannot send because the connection is broken, Outstanding has later.
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

// want asks for a page of the host unless it is there or was asked for.
func (l *Lazy) want(b *lazyBlock, at uint64, ask func(string, uint64, uint32)) {
	i := at / PageSize
	if b.has(b.received, i) {
		// It came between the touch and now.
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

// Received returns which pages of a block have come, for a RECV_BITMAP.
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

// Close gives the userfaultfd back, after Serve has returned, which Interrupt makes it do.
// Before Finish that leaves a guest whose memory is not all there: whoever waits for a page
// finds zeros, so its vCPUs must have ended. After precopy it lets the kernel use huge
// pages again, so the memory must still be mapped. Closing it again does nothing.
func (l *Lazy) Close() error {
	defer l.allowHuge()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd == nil {
		return nil
	}
	fd := l.fd
	l.fd = nil
	return fd.Close()
}

// Interrupt makes Serve return.
func (l *Lazy) Interrupt() {
	if l.listening.Load() {
		l.fd.Interrupt()
	}
}

// LoadState decodes the body of a RAM section. Before Listen pages go to the guest's memory
// at once; afterwards each is placed when all of its page of the host is there, and one that
// is there already is left as it is, since the guest may have written it. Every error is an
// [*Error]; after one the connection is of no use.
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
			name := ""
			if b != nil {
				name = b.Name
			}
			return loadError(at, name, off, err)
		}
	}
}

// block returns the block of a page record.
func (l *Lazy) block(r *qemufile.Reader, word uint64) (*lazyBlock, error) {
	if word&flagContinue == 0 {
		name := r.CountedBytes()
		if err := r.Err(); err != nil {
			return nil, err
		}
		i, ok := l.index[string(name)] // does not allocate
		if !ok {
			return nil, unknownBlock(name)
		}
		l.last = i
	} else if l.last == noBlock {
		return nil, ErrNoBlock
	}
	b := &l.blocks[l.last]
	if word&^flagMask >= b.length {
		return b, fmt.Errorf("%w: length %#x", ErrOffset, b.length)
	}
	return b, nil
}

// page reads what follows a page's first word.
func (l *Lazy) page(r *qemufile.Reader, b *lazyBlock, off, kind uint64) error {
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
		return nil // it came before: it is the guest's
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
