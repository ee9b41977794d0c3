package replication

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/event"
)

// room counts the room for pre-images on the secondary, as the primary knows it. Each write
// between two Marks takes some of it. A write without room would end replication on the secondary,
// so it waits on the primary, before it is made, for the next Mark.
//
// It is the map of an overlay without contents, and counts as much as the secondary
// counts, or more.
type room struct {
	charged atomic.Pointer[overlay] // nil: the bound is not known; changed with the whole disk locked
	on      bool                    // a Mark has begun an epoch; changed with the whole disk locked
	asked   atomic.Bool             // a checkpoint was asked for in this epoch
	zeroes  int64                   // what a run of blocks of zeroes takes, in bytes; changed with the whole disk locked
	zeroed  int64                   // what such runs have taken, in bytes; guarded by charged's mu
	wakeup
}

// wakeup lets writes wait for room. The zero value is ready.
type wakeup struct {
	mu    sync.Mutex
	freed chan struct{} // closed when waiting writes should try again
}

// nowhere implements slots without keeping any content.
type nowhere struct{}

func (nowhere) grow(uint32)                         {}
func (nowhere) readSlot(uint32, []byte, int) error  { return nil }
func (nowhere) writeSlot(uint32, []byte, int) error { return nil }

// set records bytes as the bound, or that there is none if bytes is not positive, and that
// a run of blocks of zeroes takes zeroes bytes. The whole disk is locked.
func (r *room) set(size, bytes, zeroes int64) {
	r.charged.Store(nil)
	r.on, r.zeroes = false, zeroes
	if bytes > 0 {
		c := newOverlay("hidden", size, bytes, nowhere{})
		c.keepSpare(size)
		r.charged.Store(c)
	}
	r.free()
}

// grow says that the disk has size bytes. The bound is the same, and what has been taken of
// it since the last Mark remains taken. The whole disk is locked.
func (r *room) grow(size int64) {
	if c := r.charged.Load(); c != nil {
		c.grow(size)
		c.keepSpare(size)
	}
}

// marked begins an epoch. The whole disk is locked.
func (r *room) marked() {
	c := r.charged.Load()
	if c == nil {
		return
	}
	c.reset()
	r.on, r.zeroed = true, 0
	r.asked.Store(false)
	r.free()
}

// free has the waiting writes try again.
func (w *wakeup) free() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.freed != nil {
		close(w.freed)
		w.freed = nil
	}
}

// wait returns the channel that free closes.
func (w *wakeup) wait() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.freed == nil {
		w.freed = make(chan struct{})
	}
	return w.freed
}

// drain lets waiting writes use the spare room, until the next Mark.
func (r *room) drain() {
	if c := r.charged.Load(); c != nil {
		c.urgent.Store(true)
		r.free()
	}
}

// take charges a write to [off, off+n), of which blocks that are zero on disk
// take no room but what is needed to say so. The error is ErrFull; half says that half of the room is taken.
// The range is locked.
func (r *room) take(disk Disk, off, n int64) (half bool, err error) {
	b0, b1 := blockRange(off, n)
	c := r.charged.Load()
	// As long as there is plenty, it is not looked whether a block is zero. Where zeroes
	// take something too, some must be left for them then.
	if r.zeroes == 0 || c.usedBytes() < int64(c.max/2)*BlockSize {
		if half, err = c.reserve(b0, b1, true); err == nil {
			return half, nil
		}
	}
	end := min(b1*BlockSize, disk.Size())
	pos := b0 * BlockSize
	buf := buffers.Get().(*[256 << 10]byte)
	defer buffers.Put(buf)
	extentsOrData(disk, pos, end-pos, func(n int64, flags uint32) bool {
		if flags&ExtentZero != 0 {
			err = r.takeZeroes(c, pos/BlockSize, (pos+n+BlockSize-1)/BlockSize)
			pos += n
			return err == nil
		}
		for to := pos + n; pos < to; {
			b := pos / BlockSize
			block := buf[:min(BlockSize, end-b*BlockSize)]
			if err = readFull(disk, block, b*BlockSize); err != nil {
				return false
			}
			if isZero(block) {
				err = r.takeZeroes(c, b, b+1)
			} else {
				_, err = c.reserve(b, b+1, true)
			}
			if err != nil {
				return false
			}
			pos = (b + 1) * BlockSize
		}
		pos = min(pos, end)
		return true
	})
	return true, err
}

// takeData charges a change of [off, off+n), of which nothing is known that the secondary
// has there. The error is ErrFull; half says that half of the room is taken. The range is
// locked.
func (r *room) takeData(off, n int64) (half bool, err error) {
	if !r.on {
		return false, nil
	}
	c := r.charged.Load()
	if c.urgent.Load() {
		return true, ErrFull // what is spare is for guests that are being paused
	}
	b0, b1 := blockRange(off, n)
	return c.reserve(b0, b1, true)
}

// takeZeroes charges blocks [b0, b1), which are zero on disk: for each run of them that is
// not charged yet it charges what the secondary takes to record a run, once for each 64
// blocks and once more for either end.
func (r *room) takeZeroes(c *overlay, b0, b1 int64) error {
	if _, err := c.reserve(b0, b1, false); err != nil || r.zeroes == 0 {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var runs, run int64
	for b := b0; b < b1; b++ {
		if e := c.entry(b); e.slot != 0 || e.zero != 0 {
			run = 0
			continue
		}
		if run++; run <= 2 || run%64 == 0 {
			runs++
		}
	}
	zeroed := r.zeroed + runs*r.zeroes
	need := zeroed/BlockSize - r.zeroed/BlockSize
	if need > c.bound()-int64(c.used) {
		return fmt.Errorf("%w: %s overlay, bound %d bytes", ErrFull, c.name, int64(c.max)*BlockSize)
	}
	r.zeroed = zeroed
	c.used += uint32(need)
	for b := b0; b < b1; b++ {
		if e := c.entry(b); e.slot == 0 {
			e.zero = 1
		}
	}
	return nil
}

// most returns how large a piece of a write may be, so that it never needs more room than
// there is in all.
func (r *room) most() int64 {
	c := r.charged.Load()
	if c == nil {
		return maxForwardZeroes
	}
	return max(min(maxForwardZeroes, (int64(c.max)/2-2*leafCost)*BlockSize), BlockSize)
}

// ever reports whether there is room for a change of [off, off+n) when nothing else is charged.
// If there is none, the write would wait for one Mark after the other. So it is made after the
// first Mark, and then it shows whether the secondary has the room.
func (r *room) ever(off, n int64) bool {
	c := r.charged.Load()
	if c == nil {
		return true
	}
	b0, b1 := blockRange(off, n)
	need := leafCost*((b1-1)/leafBlocks-b0/leafBlocks+1) + b1 - b0
	return need <= int64(c.max-c.max/8) // without what is spare, where some is
}

// awaitRoom waits until there is room for a write, the secondary is given up, or
// ForwarderConfig.Timeout has passed, when it returns false. The caller holds no
// lock.
func (p *Primary) awaitRoom(freed <-chan struct{}) (bool, error) {
	p.askForCheckpoint(true)
	t := time.NewTimer(p.cfg.Forward.timeout())
	defer t.Stop()
	select {
	case <-freed:
		return true, nil
	case <-p.gate.fenced:
		return false, ErrFenced
	case <-t.C:
		return false, nil
	}
}

// Drain implements [Drainer]: writes that wait for room for pre-images may use an eighth
// of it that is kept spare, and so may all writes until the next Mark, since it is not
// known which of them keeps a vCPU from being paused. A write for which that is too little
// waits for that Mark, as it would end replication. So Drain must be followed by a Mark or
// the end of the run: before that, another Drain has no room to give.
func (p *Primary) Drain() { p.room.drain() }

// askForCheckpoint publishes that the secondary's room for pre-images runs short, once in
// an epoch, or that a write waits for room.
func (p *Primary) askForCheckpoint(waits bool) {
	if !p.room.asked.Swap(true) {
		e := p.roomEvent()
		p.cfg.Events.Publish(event.DiskOverlayHalfFull{Disk: e.Disk, Overlay: e.Overlay, Epoch: e.Epoch, Bytes: e.Bytes, Bound: e.Bound})
	}
	if waits {
		p.cfg.Events.Publish(p.roomEvent())
	}
}

func (p *Primary) roomEvent() event.DiskOverlayFull {
	e := event.DiskOverlayFull{Mode: event.ModePrimary, Disk: p.cfg.Name, Overlay: "hidden"}
	if c := p.room.charged.Load(); c != nil {
		e.Bytes, e.Bound = c.usedBytes(), int64(c.max)*BlockSize
	}
	if f := p.link.Load(); f != nil {
		f.mu.Lock()
		e.Epoch = f.marked
		f.mu.Unlock()
	}
	return e
}
