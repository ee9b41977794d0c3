package ram

import (
	"math/bits"

	"github.com/gocolo/lockstep/internal/xbzrle"
	"github.com/gocolo/lockstep/qemufile"
)

// SaverConfig says how a [Saver] works; the zero value is right for most hosts.
type SaverConfig struct {
	// Format says what the block list contains. It has to be the one that the peer uses.
	Format Format

	// IterateBytes is about how much one SaveIterate sends; 0 means 4 MiB.
	IterateBytes int

	// MaxCapture bounds the memory that Capture copies dirty pages into, in
	// bytes. 0 means 256 MiB, or what the whole guest needs if that is less.
	// Memory is taken as captures need it, and kept.
	MaxCapture uint64

	// CaptureWorkers is how many goroutines copy dirty pages in Capture, while the
	// guest stands still: one copies a page in less than a microsecond, and memory
	// takes more. 0 means one and as many more as the guest leaves CPUs idle, where the
	// DirtyLog is an Idler and as long as that pays: where the host's CPUs are busy
	// it does not. There are never more than CPUs or GOMAXPROCS. With XBZRLE
	// it is one.
	CaptureWorkers int

	// XBZRLE is the size, in bytes, of the memory that keeps pages as they were
	// last sent. A page that is in it is sent as a difference from that. 0
	// means that no page is. It pays where a guest changes little of each page
	// it dirties and the link is slower than about 1 GB/s. A QEMU peer should
	// have its capability xbzrle set.
	XBZRLE int64

	// KeepAfter says when a page stays writable, where the DirtyLog is a DirtyKeeper: when
	// it was written before each of so many checkpoints in a row (somewhat more, if there
	// are gaps). Writes to such a page cost the guest no fault, and each checkpoint sends
	// it. Once in sixteen it is protected, to see whether it is still written; when it was
	// not written before some checkpoints, it no longer stays writable. 0 means 4, which
	// suits pages that are written before most checkpoints; 1 suits a host where a fault is
	// dear, as it is where KVM does without the hardware's help; the most is 7; below 0 no
	// page is kept.
	KeepAfter int

	// Resumable has the saver keep account, after a session, of the pages that its
	// peer lacks, so that the next session need not send all memory
	// ([Saver.Resume]). It costs a bit for each page, and the dirty log stays on
	// from one session to the next, until [Saver.Forget].
	Resumable bool
}

// Stats counts what one checkpoint, or the synchronisation before the first,
// carried.
type Stats struct {
	Pages          uint64 // page records, of every kind
	ZeroPages      uint64 // of them without contents
	XBZRLEPages    uint64 // of them as differences
	UnchangedPages uint64 // dirty, but what the peer has already (only with XBZRLE): no record
	Bytes          uint64 // in the stream, without section headers
}

// Saver sends a guest's memory: all of it once, then what was dirtied. It is a
// [vmstate.LiveSaver] with the optional methods; register it under
// [SectionName] and [Version], as Register does.
//
// The guest may run while SaveIterate is called. It must be paused from Capture
// or, without one, SaveComplete on; when a Capture took everything the guest
// may run again at once, and SaveComplete later sends what Capture copied.
//
// After an error the peer's memory is unknown and the saver has to start over
// with SaveSetup. A Saver belongs to one goroutine at a time.
//
// [vmstate.LiveSaver]: https://pkg.go.dev/github.com/gocolo/lockstep/vmstate#LiveSaver
type Saver struct {
	blocks []saverBlock
	log    DirtyLog
	cfg    SaverConfig
	bad    error // the blocks are wrong: nothing can be saved
	err    error // of the dirty log, met where no error could be returned

	dirty   int // pages known to be dirty
	last    int // the block of the last record on this connection, or noBlock
	atBlock int // where SaveIterate goes on
	atPage  int

	arena    arena
	batches  batches
	trial    trials
	captured bool // Capture was called and SaveComplete not yet
	whole    bool // it took everything

	deltas     *xbzrle.Cache  // nil: off
	sendDeltas bool           // the first round, in which every page is new, is over
	delta      [PageSize]byte // memory for one difference

	aheads uint64     // checkpoints that memory was sent ahead of
	ahead  bool       // BeginAhead was called, and SaveComplete not yet
	rounds bool       // BeginRounds was called, so that nothing is left out
	most   int        // bytes that SaveIterate sends; 0: as configured
	spared int        // of dirty, pages that SaveIterate leaves out
	sent   aheadCount // what became of the pages that were sent ahead

	elsewhere     PageSender // takes the pages with contents; nil: the stream does
	sentElsewhere int64      // bytes, in this SaveIterate

	resume resumption
	keep   keeping

	stats         Stats
	statsDone     bool  // stats count a checkpoint that is complete
	beforeCapture Stats // stats as they were before the capture
	logging       bool  // the saver has switched the dirty log on
}

// saverBlock is a block of a Saver.
type saverBlock struct {
	Block
	mem   []byte // the part of Host in use; empty if the block is not sent
	dirty Bitmap
	taken Bitmap      // dirty pages that are in the arena, or go with this checkpoint
	sent  Bitmap      // pages sent, or captured, since the last Confirm; nil if the saver is not resumable
	early Bitmap      // pages that were sent ahead of this checkpoint, and not written since, as far as the log was read
	hot   Bitmap      // pages that are not worth it: see BeginAhead
	keep  keptPages   // pages that the log leaves writable
	told  bool        // in the list that LoadDirty reads
	marks []deltaMark // of pages; nil: none has been sent as a difference
}

// noBlock is the value of last before any record named a block.
const noBlock = -1

const (
	defaultIterate = 4 << 20
	defaultCapture = 256 << 20
	firstPrepare   = 8 << 20
)

// NewSaver returns a Saver of blocks. log, which must not be nil, tells which
// pages are dirty. What is wrong with the blocks is returned by SaveSetup.
func NewSaver(blocks []Block, log DirtyLog, cfg SaverConfig) *Saver {
	s := &Saver{log: log, cfg: cfg, bad: CheckBlocks(blocks), last: noBlock, keep: newKeeping(log, cfg.KeepAfter)}
	if s.cfg.IterateBytes <= 0 {
		s.cfg.IterateBytes = defaultIterate
	}
	if s.bad != nil {
		return s
	}
	var guest uint64
	for _, b := range blocks {
		sb := saverBlock{Block: b, mem: b.Host[:b.used()]}
		if cfg.Format.IgnoreShared && b.Shared {
			sb.mem = nil
		}
		pages := len(b.Host) / PageSize
		sb.dirty, sb.taken = NewBitmap(pages), NewBitmap(pages)
		if cfg.Resumable {
			sb.sent = NewBitmap(pages)
		}
		sb.early, sb.hot = NewBitmap(pages), NewBitmap(pages)
		guest += uint64(len(sb.mem) / PageSize * (PageSize + 8))
		s.blocks = append(s.blocks, sb)
	}
	if s.cfg.MaxCapture == 0 {
		// A chunk's end is not used up to the last byte. A guest smaller than the largest
		// has a few of its own size.
		end := uint64(chunkSize)
		if guest < chunkSize {
			end = 4 * maxRecord
		}
		s.cfg.MaxCapture = min(defaultCapture, guest+guest/64+end)
	}
	s.arena = newArena(s.cfg.MaxCapture)
	if cfg.XBZRLE > 0 {
		s.deltas = xbzrle.NewCache(PageSize, cfg.XBZRLE)
	}
	return s
}

// NewSession forgets what the peer has: the connection's block context, a
// capture that was not sent, and the pages kept for differences. SaveSetup does
// the same and more.
func (s *Saver) NewSession() {
	s.abandon()
	s.endAhead()
	s.keepNone()
	s.last = noBlock
	if s.deltas != nil {
		s.deltas.Reset()
	}
	s.sendDeltas = false
	s.atBlock, s.atPage = 0, 0
	s.err = nil
	s.stats, s.statsDone = Stats{}, false
}

// SaveSetup begins a session: it switches the dirty log on if it is a
// [LogSwitch], writes the block list and marks every page dirty, or after
// [Saver.Resume] those that the peer lacks.
func (s *Saver) SaveSetup(w *qemufile.Writer) error {
	if s.bad != nil {
		return s.bad
	}
	s.NewSession()
	if sw, ok := s.log.(LogSwitch); ok && !s.logging {
		if err := sw.StartDirtyLog(); err != nil {
			return &Error{Op: "dirty log", Stream: -1, Err: err}
		}
		s.logging = true
	}
	// What the log knows of the time before does not have to be sent twice.
	if err := s.sync(); err != nil {
		return err
	}
	s.dirty, s.sendDeltas = 0, false
	resumed := s.resume.begin(s)
	var total uint64
	list := make([]BlockInfo, len(s.blocks))
	for i := range s.blocks {
		b := &s.blocks[i]
		if !resumed {
			b.dirty.SetRange(0, len(b.mem)/PageSize)
		}
		s.dirty += b.dirty.Count()
		list[i] = BlockInfo{Name: b.Name, Length: b.used(), PageSize: b.hugePages(), GPA: b.GPA}
		total += list[i].Length
	}
	s.arena.prepare(min(firstPrepare, s.dirty*PageSize))
	start := w.Transferred()
	putBlockList(w, list, total, s.cfg.Format)
	s.end(w)
	s.stats.Bytes += uint64(w.Transferred() - start)
	return s.saved(w)
}

// SaveIterate sends up to about SaverConfig.IterateBytes of dirty pages, less
// if the writer's rate limit says so, straight from the guest's memory. done
// means that no page is known to be dirty any more; what the guest dirtied
// since the log was last read only Pending(true) finds. After BeginAhead or BeginEarly it leaves
// out some, and done means that no other is known. A capture that was not
// sent is given up.
//
// Pages are queued by reference: the guest may write them until they leave,
// since it then dirties them again.
func (s *Saver) SaveIterate(w *qemufile.Writer) (done bool, err error) {
	if err := s.ready(); err != nil {
		return false, err
	}
	s.abandon()
	s.begin()
	if !s.ahead && s.keep.named {
		s.keepNone() // whoever iterates until nothing is dirty is to get there
	}
	start := w.Transferred()
	most := s.cfg.IterateBytes
	if s.most > 0 {
		most = s.most
	}
	limit := start + int64(most)
	s.sentElsewhere = 0
	s.enter(w)
	var heads zeroHeads
	// A zero page costs few bytes, but its time: count pages too.
	for pages := 16 * most / PageSize; s.dirty > s.spared && pages >= 0; pages-- {
		if w.Transferred()+s.sentElsewhere >= limit || w.Err() != nil || pages&15 == 0 && w.RateExceeded() {
			break
		}
		b := &s.blocks[s.atBlock]
		i := b.dirty.Next(s.atPage)
		if i < 0 {
			s.atBlock, s.atPage = (s.atBlock+1)%len(s.blocks), 0
			continue
		}
		if s.ahead && !s.rounds {
			if b.spares(i) {
				s.atPage = i + 1
				continue
			}
			b.early.Set(i)
			s.sent.pages++
		}
		mayBeZero := heads.has(b, i)
		b.dirty.Clear(i)
		if b.sent != nil {
			b.sent.Set(i)
		}
		s.dirty--
		s.atPage = i + 1
		s.send(w, s.atBlock, i, mayBeZero)
	}
	s.end(w)
	s.stats.Bytes += uint64(w.Transferred() - start)
	return s.dirty == s.spared, s.saved(w)
}

// Pending returns how many bytes are still to be sent, all of which can only be
// sent before the switch-over. exact reads the dirty log first, which ends the
// round; otherwise the figure is what was known and not sent. An error of the
// log is returned by the next method that can.
func (s *Saver) Pending(exact bool) (mustPrecopy, canPostcopy uint64) {
	if exact && s.bad == nil && !s.captured && s.err == nil {
		s.err = s.sync()
		s.countSpared()
	}
	return uint64(s.dirty) * PageSize, 0
}

// SaveComplete sends the rest: what Capture took, and if that was not
// everything, or Capture was not called, what is dirty in the paused guest's
// memory. In the latter case it flushes w, so that the guest may run when it
// returns; otherwise the caller flushes w before the next Capture.
//
// On an error the pages count as dirty again.
func (s *Saver) SaveComplete(w *qemufile.Writer) error {
	if err := s.ready(); err != nil {
		return err
	}
	s.begin()
	if !s.captured {
		if err := s.sync(); err != nil {
			return err
		}
	}
	start := w.Transferred()
	s.enter(w)
	s.sendCaptured(w)
	fromGuest := s.dirty > 0 && !s.whole
	if fromGuest {
		for bi := range s.blocks {
			b := &s.blocks[bi]
			var heads zeroHeads
			for wi, word := range b.dirty {
				for m := word; m != 0; m &= m - 1 {
					i := wi<<6 | bits.TrailingZeros64(m)
					s.send(w, bi, i, heads.has(b, i))
				}
				b.send(wi, word)
				b.dirty[wi] = 0
				b.taken[wi] |= word // for endAhead
			}
		}
		s.dirty = 0
	}
	s.end(w)
	s.stats.Bytes += uint64(w.Transferred() - start)
	err := w.Err()
	if err == nil && fromGuest {
		err = w.Flush()
	}
	if err != nil {
		s.abandon()
		s.untake() // the pages that went straight from the guest's memory
		return &Error{Op: "save", Stream: w.Transferred(), Err: err}
	}
	s.keepWritten()
	captured, runs := s.arena.bytes()+s.batches.bytes(), s.whole
	s.endAhead()
	if s.captured || fromGuest {
		s.forgetTaken()
	}
	s.captured, s.whole = false, false
	s.arena.reset()
	clear(s.batches.parts)
	s.batches.parts = s.batches.parts[:0]
	if runs { // a good time
		s.arena.settle(captured)
	}
	s.statsDone = true
	return nil
}

func (s *Saver) forgetTaken() {
	for i := range s.blocks {
		clear(s.blocks[i].taken)
	}
}

// SaveCleanup ends saving: it gives up a capture, frees the arena and, unless
// SaverConfig.Resumable is set, switches the dirty log off. SaveSetup begins anew.
func (s *Saver) SaveCleanup() {
	s.abandon()
	s.keepNone()
	s.batches.rest()
	if s.bad == nil {
		s.arena = newArena(s.cfg.MaxCapture)
		s.batches.parts = nil
	}
	s.resume.asked = false
	if !s.cfg.Resumable {
		s.stopLog()
	}
}

func (s *Saver) stopLog() {
	if s.logging {
		s.logging = false
		// There is nobody to tell, and nothing depends on it.
		_ = s.log.(LogSwitch).StopDirtyLog()
	}
}

// Stats returns the counts of the checkpoint in progress, or of the last one
// from SaveComplete until the next begins. What the initial synchronisation
// sent counts as one, ended by its SaveComplete.
func (s *Saver) Stats() Stats { return s.stats }

// Pages returns Stats().Pages. It makes a Saver a colo.PageCounter.
func (s *Saver) Pages() uint64 { return s.stats.Pages }

// begin starts the counts of a checkpoint with its first record.
func (s *Saver) begin() {
	if s.statsDone {
		s.stats, s.statsDone = Stats{}, false
	}
}

// ready returns why nothing can be saved.
func (s *Saver) ready() error {
	if s.bad != nil {
		return s.bad
	}
	return s.err
}

// saved wraps the writer's error, if there is one.
func (s *Saver) saved(w *qemufile.Writer) error {
	if err := w.Err(); err != nil {
		return &Error{Op: "save", Stream: w.Transferred(), Err: err}
	}
	return nil
}

// sync adds what the dirty log knows to the dirty pages.
func (s *Saver) sync() error {
	s.dirty = 0
	var err error
	for i := range s.blocks {
		b := &s.blocks[i]
		if len(b.mem) > 0 && err == nil {
			if err = s.log.ReadDirty(b.Name, b.dirty); err != nil {
				err = &Error{Op: "dirty log", Block: b.Name, Stream: -1, Err: err}
				s.resume.lost()
			}
			b.dirty.ClearRange(len(b.mem)/PageSize, 64*len(b.dirty))
		}
		s.dirty += b.dirty.Count()
	}
	s.sendDeltas = true
	return err
}
