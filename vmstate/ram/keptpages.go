package ram

import "math/bits"

// A page is kept if the log is to leave it writable. To decide that, each page has a count:
// a checkpoint before which the page was written adds one, a checkpoint before which it was
// not takes two, and a checkpoint for which the log cannot tell, since the page was
// writable all the time, changes nothing. A page is kept from a count of keeping.after on. From
// then on each write that is seen sets its count to the highest, so that it is kept until four
// checkpoints in turn, of those that can tell, were without a write. A guest that is slow because
// of its faults writes a page before every second checkpoint only: if such a page were not kept,
// the guest would never become faster.
const (
	defaultKeepAfter = 4
	maxKeepAfter     = 7 // what the counts have room for
)

// keepTries is in how many checkpoints each kept page is protected once, to see whether it
// is still written.
const keepTries = 16

// KeepStats counts pages that the dirty log leaves writable ([DirtyKeeper]). Idle of Tried is
// about the share of Pages that are copied, and sent, for nothing.
type KeepStats struct {
	Pages uint64 `json:"pages"` // pages that are writable now, and so reported whether they are written or not
	Tried uint64 `json:"tried"` // so far, how often a page that is to be kept was protected, so that a write was seen
	Idle  uint64 `json:"idle"`  // how often no write came before the next checkpoint
}

// keeping finds the pages that are written before most checkpoints, and has the log leave
// them writable.
type keeping struct {
	log   DirtyKeeper // nil: it keeps none
	after int         // less than 1: none is to be kept
	round int         // counts checkpoints: it says which sixteenth of the kept pages is tried
	named bool        // the log was told of pages that it may leave writable, and not since to leave none
	stats KeepStats
}

// keptPages counts, for each page of one block, the checkpoints in turn before which it was
// written.
type keptPages struct {
	counts [3]Bitmap // in three bits for each page
	known  Bitmap    // pages with a count
	kept   Bitmap    // pages to be kept
	pass   Bitmap    // of them, those that the log is told to leave writable: the others are tried
	open   Bitmap    // pages that the last reading of the log has left writable
	told   bool      // the log leaves some writable
}

// newKeeping returns a keeping for log. after is the KeepAfter of a configuration.
func newKeeping(log DirtyLog, after int) keeping {
	k := keeping{after: min(after, maxKeepAfter)}
	if after == 0 {
		k.after = defaultKeepAfter
	}
	k.log, _ = log.(DirtyKeeper)
	return k
}

// on reports whether the log can leave pages writable and the configuration
// wants that.
func (k *keeping) on() bool { return k.log != nil && k.after > 0 }

// equal returns the pages, a bit for each, whose counts in the three words of c
// are n.
func equal(c *[3]uint64, n int) uint64 {
	differ := uint64(0)
	for i, w := range c {
		differ |= w ^ -(uint64(n) >> i & 1)
	}
	return ^differ
}

// atLeast returns the pages whose counts are n or more.
func atLeast(c *[3]uint64, n int) (more uint64) {
	same := ^uint64(0)
	for i := 2; i >= 0; i-- {
		if n>>i&1 != 0 {
			same &= c[i]
		} else {
			more |= same & c[i]
			same &^= c[i]
		}
	}
	return more | same
}

// add adds one to the counts of the pages in up, none of which may be 7.
func add(c *[3]uint64, up uint64) {
	for i, w := range c {
		c[i] = w ^ up
		up &= w
	}
}

// raise makes the counts of the pages in up the highest.
func raise(c *[3]uint64, up uint64) {
	for i := range c {
		c[i] |= up
	}
}

// take takes two from the counts of the pages in down, or one from a count of
// 1.
func take(c *[3]uint64, down uint64) {
	borrow := down &^ c[1]
	none := borrow &^ c[2]
	c[1] ^= down
	c[2] ^= borrow
	for i := range c {
		c[i] &^= none
	}
}

// release has the log leave no page of a block writable, whoever has told it to, and
// forgets the counts. The next ReadDirty reports the pages that were kept.
func (k *keeping) release(block string, p *keptPages) {
	if k.log == nil {
		return
	}
	k.log.KeepDirty(block, nil)
	k.named, k.stats.Pages = false, 0
	p.forget()
}

func (p *keptPages) forget() {
	for i := range p.counts {
		clear(p.counts[i])
	}
	clear(p.known)
	clear(p.kept)
	clear(p.pass)
	clear(p.open)
	p.told = false
}

// next begins the counting for a checkpoint.
func (k *keeping) next() {
	k.round++
	k.stats.Pages = 0
}

// note counts the pages of a block that were written before a checkpoint, and tells the
// log which pages it may leave writable until the next. It allocates at the first call
// only.
func (k *keeping) note(block string, p *keptPages, written Bitmap) {
	if !k.on() {
		return
	}
	if p.known == nil {
		pages := 64 * len(written)
		for i := range p.counts {
			p.counts[i] = NewBitmap(pages)
		}
		p.known, p.kept, p.pass, p.open = NewBitmap(pages), NewBitmap(pages), NewBitmap(pages), NewBitmap(pages)
	}
	try := uint64(0x0001000100010001) << (k.round % keepTries)
	some, open := uint64(0), 0
	for i, w := range written {
		known := p.known[i]
		if w|known == 0 {
			continue
		}
		c := [3]uint64{p.counts[0][i], p.counts[1][i], p.counts[2][i]}
		seen := ^p.open[i]
		take(&c, known&^w)
		add(&c, w&seen&^equal(&c, maxKeepAfter))
		raise(&c, w&seen&atLeast(&c, k.after))
		p.counts[0][i], p.counts[1][i], p.counts[2][i] = c[0], c[1], c[2]
		known = c[0] | c[1] | c[2]
		kept := p.kept[i]
		k.stats.Tried += uint64(bits.OnesCount64(kept & seen))
		k.stats.Idle += uint64(bits.OnesCount64(kept &^ w))
		kept = kept&known | atLeast(&c, k.after)
		p.open[i] = w & p.pass[i]
		p.known[i], p.kept[i], p.pass[i] = known, kept, kept&^try
		some |= kept
		open += bits.OnesCount64(p.open[i])
	}
	if some == 0 && !p.told {
		return
	}
	if p.told = k.log.KeepDirty(block, p.pass); !p.told {
		p.forget() // and asks again when as many checkpoints have come
		return
	}
	k.named = true
	k.stats.Pages += uint64(open)
}
