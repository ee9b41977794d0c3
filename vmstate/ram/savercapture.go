package ram

import (
	"encoding/binary"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Idler is an optional method of a DirtyLog: it says how many CPUs a paused guest
// leaves idle, which copy its memory meanwhile (SaverConfig.CaptureWorkers).
type Idler interface {
	IdleCPUs() int
}

// A capture is split into batches of so many bytes at most, of which some go into each
// chunk of the arena. Each has its own place there, so that whoever has time takes the next
// one, and what is sent is the same bytes in the same order, however many took part.
const batchSize = firstChunk

// apart is the offset at which a batch begins in its place in the arena. Without it, the
// lower 12 bits of the address to which a page is copied would be a few bytes behind
// those of the address from which it is copied; a processor that compares only these
// bits then takes what it is to read for what it has just written, and waits.
const apart = PageSize / 2

// fewestPages are worth another worker, which has to be woken.
const fewestPages = 90

// pageRef is a dirty page.
type pageRef struct{ block, page int32 }

// batches is a capture by several workers.
type batches struct {
	saver *Saver
	list  []pageRef
	each  int           // pages in a batch, but for the last
	parts [][]byte      // the place of each batch, and then what it became; empty: this capture is the arena's own
	ready atomic.Bool   // list is whole; helpers are woken before
	left  atomic.Uint64 // batches nobody has taken: the first, and in the upper half the end
	zero  atomic.Uint64 // how many of the pages were zeros
	hands hands
	group sync.WaitGroup // helpers that may still be about to wake up
	help  func()         // what a helper runs
}

// hands counts the helpers that copy. A helper that comes when all is copied is turned
// away: a guest that stands still does not wait for a thread to wake up that has nothing
// left to do.
type hands struct {
	n    atomic.Int32  // those that copy, less handsClosed when no more may
	last chan struct{} // of one place: the last has left since the close
}

const handsClosed = 1 << 20

// open lets helpers in. Nobody is inside.
func (h *hands) open() {
	if h.last == nil {
		h.last = make(chan struct{}, 1)
	}
	h.n.Store(0)
}

// enter reports whether the helper may take part; it then calls leave.
func (h *hands) enter() bool {
	for {
		n := h.n.Load()
		if n < 0 {
			return false
		}
		if h.n.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (h *hands) leave() {
	if h.n.Add(-1) == -handsClosed {
		h.last <- struct{}{}
	}
}

// close turns away who comes later, and waits for those inside. They have a batch each to
// finish, which is sooner done than a thread is woken.
func (h *hands) close() {
	if h.n.Add(-handsClosed) == -handsClosed {
		return
	}
	for range 1 << 14 {
		if h.n.Load() == -handsClosed {
			break
		}
	}
	<-h.last
}

// workers returns how many goroutines copy.
func (s *Saver) workers() int {
	n := s.cfg.CaptureWorkers
	if n == 0 {
		n = 1
		if i, ok := s.log.(Idler); ok {
			n += i.IdleCPUs()
		}
	}
	return min(n, runtime.GOMAXPROCS(0), runtime.NumCPU())
}

// trial finds out whether helpers make a capture shorter. On a host whose CPUs are busy
// a helper that was woken waits for a CPU, and the capture waits for the helper.
type trial struct {
	cost [2]time.Duration // of a page, alone and together, as last seen; 0: not known
	left int              // captures until the dearer way is tried again
}

// trials has one trial for each size of a capture, in powers of two: whether helpers pay
// depends on how much there is to copy while they wake up.
type trials [17]trial

func (t *trials) of(pages int) *trial { return &t[min(bits.Len(uint(pages)), len(t)-1)] }

// trialEvery is how many captures go the cheaper way before the other is tried again.
const trialEvery = 64

// together reports whether the next capture is to have helpers.
func (t *trial) together() bool {
	cheaper := t.cost[1] == 0 || t.cost[0] != 0 && t.cost[1] <= t.cost[0]
	if t.left--; t.left > 0 {
		return cheaper
	}
	t.left = trialEvery
	return !cheaper || t.cost[1] == 0
}

// saw records how long a capture of so many pages took.
func (t *trial) saw(together bool, pages int, took time.Duration) {
	way := 0
	if together {
		way = 1
	}
	each := max(took/time.Duration(pages), 1)
	if old := t.cost[way]; old != 0 {
		each = (3*old + each) / 4
	}
	t.cost[way] = each
}

// captureTogether copies the dirty pages for Capture with the help of other goroutines.
// It returns false, and has done nothing, if that does not pay (few pages) or may not
// be: with differences, each of which depends on the cache of all, or with more pages
// than there is room for.
func (s *Saver) captureTogether() bool {
	b := &s.batches
	const each = (batchSize - apart) / maxRecord
	if s.deltas != nil || s.dirty < max(fewestPages, 2*each) {
		return false
	}
	workers := s.workers()
	if s.cfg.CaptureWorkers == 0 && workers > 1 && !s.trial.of(s.dirty).together() {
		return false
	}
	count := (s.dirty + each - 1) / each
	if workers < 2 || count > s.arena.limit/batchSize {
		return false
	}
	b.rest()
	s.arena.prepare(count * batchSize)
	if b.help == nil {
		b.saver = s
		b.help = func() {
			defer b.group.Done()
			for n := 1; !b.ready.Load(); n++ {
				if n%1024 == 0 {
					runtime.Gosched()
				}
			}
			if b.hands.enter() {
				b.work(true)
				b.hands.leave()
			}
		}
	}
	b.each, b.list, b.parts = each, b.list[:0], b.parts[:0]
	b.ready.Store(false)
	b.hands.open()
	b.left.Store(uint64(count) << 32)
	b.zero.Store(0)
	helpers := min(workers, count) - 1
	b.group.Add(helpers)
	for range helpers {
		go b.help()
	}
	for bi := range s.blocks {
		sb := &s.blocks[bi]
		for wi, word := range sb.dirty {
			if word == 0 {
				continue
			}
			for m := word; m != 0; m &= m - 1 {
				b.list = append(b.list, pageRef{int32(bi), int32(wi<<6 | bits.TrailingZeros64(m))})
			}
			sb.dirty[wi] = 0
			sb.taken[wi] |= word
			sb.send(wi, word)
		}
	}
	for _, chunk := range s.arena.chunks {
		for ; len(chunk) >= batchSize && len(b.parts) < count; chunk = chunk[batchSize:] {
			b.parts = append(b.parts, chunk[:batchSize:batchSize])
		}
	}
	b.ready.Store(true)
	b.work(false)
	b.hands.close()
	s.stats.Pages += uint64(len(b.list))
	s.stats.ZeroPages += b.zero.Load()
	s.last = int(b.list[len(b.list)-1].block)
	return true
}

// rest waits until every helper that the last capture has woken has ended, also those that
// came too late to help.
func (b *batches) rest() { b.group.Wait() }

// work takes batches until there are no more. Helpers take the last ones first, so that
// each goes on where it was, in the guest's memory and in the arena, and finds there, in
// its own cache, what it had in hand the last time.
func (b *batches) work(helper bool) {
	for {
		n, ok := b.take(helper)
		if !ok {
			return
		}
		b.parts[n] = b.batch(n)
	}
}

// take takes the first batch that is left, or the last.
func (b *batches) take(last bool) (n int, ok bool) {
	for {
		old := b.left.Load()
		first, end := uint32(old), uint32(old>>32)
		if first >= end {
			return 0, false
		}
		if last {
			end--
			n = int(end)
		} else {
			n = int(first)
			first++
		}
		if b.left.CompareAndSwap(old, uint64(end)<<32|uint64(first)) {
			return n, true
		}
	}
}

// batch copies batch n into its place in the arena, and returns what it became.
func (b *batches) batch(n int) []byte {
	s := b.saver
	place := b.parts[n][apart:]
	first := n * b.each
	last := int32(s.last)
	if first > 0 {
		last = b.list[first-1].block
	}
	list := b.list[first:min(first+b.each, len(b.list))]
	zeros := b.zeros(list)
	at, zero := 0, uint64(0)
	for i, p := range list {
		sb := &s.blocks[p.block]
		off := int(p.page) * PageSize
		page := sb.mem[off : off+PageSize : off+PageSize]
		flags, isZeroPage := uint64(flagPage), zeros>>(i&63)&1 != 0 && isZero(page)
		if isZeroPage {
			flags = flagZero
		}
		at += recordHead(place[at:], sb.Name, uint64(off)|flags, last == p.block)
		last = p.block
		if isZeroPage {
			place[at] = 0
			at++
			zero++
			continue
		}
		at += copy(place[at:at+PageSize], page)
	}
	if zero > 0 {
		b.zero.Add(zero)
	}
	return place[:at:at]
}

// zeros says which of a batch's pages begin with zeros, in a bit for each of 64, so that
// all of them are fetched at once; see zeroHeads.
func (b *batches) zeros(list []pageRef) (zeros uint64) {
	for i, p := range list {
		head := binary.NativeEndian.Uint64(b.saver.blocks[p.block].mem[int(p.page)*PageSize:])
		zeros |= (^(head | -head) >> 63) << (i & 63)
	}
	return zeros
}

// bytes returns how many bytes were captured.
func (b *batches) bytes() (n int) {
	for _, p := range b.parts {
		n += len(p)
	}
	return n
}
