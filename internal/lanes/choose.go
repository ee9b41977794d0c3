package lanes

import (
	"time"

	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// way is one of the ways in which pages are sent: as they are, or compressed.
type way uint8

const (
	plain  way = 0
	packed way = 1
	ways       = 2
)

func (w way) other() way { return w ^ 1 }

// outcome has the measurements of one packet that was sent.
type outcome struct {
	way    way
	pages  int           // with contents; 0: nothing is known
	wire   int           // bytes on the lane
	made   time.Duration // copying the pages, and compressing them
	wrote  time.Duration // writing the result
	before load          // of the lane, from its packet before
}

// load says how full the buffer of a lane's connection is.
type load uint8

const (
	idle load = iota // it had nothing
	fed              // making a packet took longer than writing it
	full             // writing took longer: its buffer is full
)

// load returns the load of the lane after this packet.
func (o *outcome) load() load {
	if o.wrote >= o.made {
		return full
	}
	return fed
}

// chooser finds out for each page whether compressing it pays. It measures, in each
// packet, what either way costs the lane's goroutine, how much compression leaves, and
// how fast the lane takes what is written. A lane writes one packet while the kernel
// still sends the one before, so that a way costs the longer of the two: what makes the
// bytes, or what sends them. The way that is not taken is tried now and then, so that
// the whole is slowed by a fiftieth at most.
//
// Where compression pays in general, a page that looks random, or whose packet came out
// so large that it did not pay, goes as it is, the next times that it is sent: 4 times
// at first, then 8, up to 64. It belongs to one goroutine, and has no clock.
type chooser struct {
	made  [ways]float64 // ns for a byte of pages
	ratio float64       // of bytes on the lane to bytes of pages, where they were compressed
	wire  float64       // ns that a lane needs to take a byte
	sure  bool          // wire was measured, and is no mere bound
	best  way           // the way that costs less, as far as is known
	seen  [ways]bool    // the way has been measured

	lanes  int // how many there are
	left   int // pages until the other way is tried
	trying int // pages that are still to go that way

	blocks map[string]*[]mark // the marks of the pages, by block
	block  string             // the block that the pages are of
	pages  *[]mark            // the marks of block
}

// mark records how often in a row compressing one page has not paid.
type mark struct {
	skip  uint8 // times that it goes plain before it is tried again
	level uint8 // how often in turn it was not worth it
}

const (
	// firstSkip and maxLevel say how often a page goes plain that did not shrink.
	firstSkip = 4
	maxLevel  = 4
	// absorbs is how many bytes a lane's buffer may take at once: twice unsentBytes, since
	// the kernel no longer counts the bytes that it has given to the device.
	absorbs = 2 * unsentBytes
	// fewest is how many pages a packet has that says how fast the lane is.
	fewest = 32
	// least and most are how many pages lie between two trials of the other way.
	least, most = 32 * multifd.MaxPages, 1024 * multifd.MaxPages
	// trialShare is the share of the time that trials may take.
	trialShare = 50
	// enough is the share of the present cost that the other way may cost to be taken: the
	// gain must be more than the measurements vary by.
	enough = 0.9
)

func newChooser(lanes int) *chooser {
	return &chooser{lanes: lanes, best: packed, left: multifd.MaxPages, blocks: map[string]*[]mark{}}
}

// way returns how a page goes.
func (c *chooser) way(block string, offset uint64, page []byte) way {
	w := c.best
	if c.trying == 0 {
		if c.left--; c.left < 0 {
			c.trying, c.left = c.trial(), c.pause()
		}
	}
	if c.trying > 0 {
		w = c.best.other()
	}
	if w == packed && !c.worth(c.mark(block, offset), page) {
		return plain
	}
	if c.trying > 0 {
		c.trying--
	}
	return w
}

// worth reports whether a page is to be compressed, where that pays in general.
func (c *chooser) worth(m *mark, page []byte) bool {
	switch {
	case m.skip > 0:
		m.skip--
	case random(page):
		m.shrank(false)
	default:
		return true
	}
	return false
}

// shrank records in the mark of a page whether compressing it has paid.
func (m *mark) shrank(yes bool) {
	if yes {
		*m = mark{}
		return
	}
	m.skip = firstSkip << m.level
	m.level = min(m.level+1, maxLevel)
}

// mark returns a page's mark.
func (c *chooser) mark(block string, offset uint64) *mark {
	if c.pages == nil || c.block != block {
		c.block, c.pages = block, c.blocks[block]
		if c.pages == nil {
			c.pages = new([]mark)
			c.blocks[block] = c.pages
		}
	}
	i := int(offset / ram.PageSize)
	for i >= len(*c.pages) {
		*c.pages = append(*c.pages, mark{})
	}
	return &(*c.pages)[i]
}

// saw learns from the outcome of a packet with pages of a block.
func (c *chooser) saw(o outcome, block string, offsets []uint64) {
	if o.pages == 0 {
		return
	}
	bytes := float64(o.pages * ram.PageSize)
	first := !c.seen[o.way]
	c.seen[o.way] = true
	towards(&c.made[o.way], float64(o.made)/bytes, first)
	ratio := float64(o.wire) / bytes
	if o.way == packed {
		towards(&c.ratio, ratio, first)
	}
	if o.pages >= fewest {
		c.sawWire(o)
	}
	if !c.seen[plain] || !c.seen[packed] {
		return
	}
	if o.way == packed {
		yes := c.cost(packed, ratio) <= enough*c.cost(plain, 1)
		for _, off := range offsets {
			c.mark(block, off).shrank(yes)
		}
	}
	if other := c.best.other(); c.cost(other, c.ratio) < enough*c.cost(c.best, c.ratio) {
		c.best, c.trying, c.left = other, 0, c.pause()
	}
}

// sawWire learns how fast a lane is, from the time between the ends of two packets.
// That is what the lane needed for the second one, if its buffer was full at both.
// Otherwise there are bounds: it needed all the time of the writing at least, if that
// has filled the buffer; and at most all the time, for what the buffer cannot have taken.
func (c *chooser) sawWire(o outcome) {
	bytes, all := float64(o.wire), float64(o.made+o.wrote)
	now := o.load()
	if now == full && o.before == full {
		// Something may have held it up, but nothing makes a lane faster than it is.
		each := all / bytes
		towards(&c.wire, each, !c.sure || each < c.wire/2)
		c.sure = true
		if c.best == packed {
			c.left = max(c.left, least) // no trial is needed to know it
		}
		return
	}
	if o.before != full {
		bytes -= absorbs
	}
	if c.wire > 0 && bytes > 0 && all/bytes < c.wire {
		towards(&c.wire, all/bytes, false)
	}
	if each := float64(o.wrote) / float64(o.wire); now == full && each > c.wire {
		towards(&c.wire, each, c.wire == 0)
	}
}

// cost returns the time that a byte of pages costs a lane, in ns, if ratio bytes go over the
// lane for it.
func (c *chooser) cost(w way, ratio float64) float64 {
	if w == plain {
		return max(c.made[plain], c.wire)
	}
	return max(c.made[packed], ratio*c.wire)
}

// trial returns how many pages go the other way to try it: as many as each lane needs to
// have its buffer full, and then to be measured, or to learn what compression does.
func (c *chooser) trial() int {
	if c.best == plain {
		return multifd.MaxPages
	}
	return 2 * c.lanes * multifd.MaxPages
}

// pause returns how many pages go before the other way is tried again.
func (c *chooser) pause() int {
	if !c.seen[plain] || !c.seen[packed] {
		return least
	}
	dearer := c.cost(c.best.other(), c.ratio) / max(c.cost(c.best, c.ratio), 1e-3)
	return int(min(max(dearer*trialShare*float64(c.trial()), least), most))
}

// towards moves a mean a quarter of the way to what was seen now.
func towards(mean *float64, now float64, first bool) {
	if first {
		*mean = now
		return
	}
	*mean += (now - *mean) / 4
}

// random reports whether a page looks as if it had no order: of 256 bytes from all over
// it, noise has some 162 different ones, text and code at most 100.
func random(page []byte) bool {
	var seen [256]bool
	n := 0
	// An odd step meets each byte of records of 2, 4, 8 ... bytes in turn.
	for at := 0; at < 256*15 && at < len(page); at += 15 {
		if b := page[at]; !seen[b] {
			seen[b] = true
			n++
		}
	}
	return n >= 140
}
