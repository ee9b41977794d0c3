package replication

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event"
)

// buffers are for pre-images and for copying overlays down.
var buffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// blockRange returns the blocks that [off, off+n) touches.
func blockRange(off, n int64) (b0, b1 int64) {
	return off / BlockSize, (off + n + BlockSize - 1) / BlockSize
}

// lockBlocks locks the blocks that [off, off+n) touches.
func (s *Secondary) lockBlocks(off, n int64, shared bool) *rangeHold {
	b0, b1 := blockRange(off, n)
	return s.locks.lock(b0*BlockSize, (b1-b0)*BlockSize, shared)
}

// Size implements [Disk].
func (s *Secondary) Size() int64 { return s.size.Load() }

// ReadAt reads what the secondary's guest sees: its own writes since the last
// checkpoint, over the disk of the last checkpoint. In state None the error
// is ErrNotRunning.
func (s *Secondary) ReadAt(p []byte, off int64) (read int, err error) {
	n, begin := int64(len(p)), s.io.read.begin()
	defer func() {
		s.io.read.end(begin, int64(read), err)
		s.tellIO(event.IORead, err)
	}()
	if err := checkRange(off, n, s.size.Load()); err != nil {
		return 0, err
	}
	h := s.lockBlocks(off, n, true)
	defer s.locks.unlock(h)
	switch s.State() {
	case None:
		err = ErrNotRunning
	case Done:
		err = readFull(s.disk, p, off)
	default:
		err = s.readLayers(p, off, s.active)
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// readLayers reads from active, else the hidden overlay, else the disk. A nil
// active is an empty one. The range is locked.
func (s *Secondary) readLayers(p []byte, off int64, active *overlay) error {
	if (active == nil || active.empty()) && s.hidden.empty() {
		return readFull(s.disk, p, off)
	}
	end := off + int64(len(p))
	below := int64(-1) // where the part begins that has to be read from the disk
	readBelow := func(until int64) error {
		if below < 0 || below == until {
			return nil
		}
		err := readFull(s.disk, p[below-off:until-off], below)
		below = -1
		return err
	}
	for b := off / BlockSize; b*BlockSize < end; b++ {
		start := b * BlockSize
		var own blockEntry
		if active != nil {
			own = active.lookup(b)
		}
		old := s.hidden.lookup(b)
		for from := 0; from < sectorsPerBlock; {
			src := source(own, old, from)
			to := from + 1
			for to < sectorsPerBlock && source(own, old, to) == src {
				to++
			}
			lo := max(start+int64(from)*SectorSize, off)
			hi := min(start+int64(to)*SectorSize, end)
			from = to
			if lo >= hi {
				continue
			}
			if src == fromDisk {
				if below < 0 {
					below = lo
				}
				continue
			}
			err := readBelow(lo)
			if err == nil {
				dst := p[lo-off : hi-off]
				switch src {
				case fromActive:
					err = active.store.readSlot(own.slot-1, dst, int(lo-start))
				case fromHidden:
					err = s.hidden.store.readSlot(old.slot-1, dst, int(lo-start))
				case fromNothing:
					clear(dst)
				}
			}
			if err != nil {
				return err
			}
		}
	}
	return readBelow(end)
}

// Where the content of a sector comes from.
const (
	fromDisk = iota
	fromActive
	fromHidden
	fromNothing // nowhere: it is zero
)

func source(own, old blockEntry, sector int) int {
	bit := uint8(1) << sector
	switch {
	case own.zero&bit != 0:
		return fromNothing
	case own.data&bit != 0:
		return fromActive
	case old.zero&bit != 0:
		return fromNothing
	case old.data&bit != 0:
		return fromHidden
	}
	return fromDisk
}

// WriteAt is a write of the secondary's guest. In state Running it goes to
// the active overlay. If that has no room, it waits for a checkpoint; the error is
// ErrFull, and nothing is written, if none comes in time, see FullTimeout and
// Drain, or if it is larger than the overlay. In state None, and after a Stop without failover, the
// error is ErrNotRunning. Otherwise it goes to the disk, except where that would later be overwritten
// by an overlay.
func (s *Secondary) WriteAt(p []byte, off int64) (int, error) {
	if err := s.guestWrite(p, off, int64(len(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteZeroes is a write of zeroes by the secondary's guest; whole sectors of
// zeroes take no room in the overlay but in its map.
func (s *Secondary) WriteZeroes(off, n int64) error { return s.guestWrite(nil, off, n) }

// Trim does what WriteZeroes does. The primary's guest reads zeroes from a trimmed range,
// see [Primary.Trim], and the two guests must not differ.
func (s *Secondary) Trim(off, n int64) error { return s.guestWrite(nil, off, n) }

// guestWrite writes p, or n zeroes if it is nil.
func (s *Secondary) guestWrite(p []byte, off, n int64) (err error) {
	if err := checkRange(off, n, s.size.Load()); err != nil {
		return err
	}
	begin, length := s.io.write.begin(), n
	defer func() {
		if s.State() != Running {
			err = s.gate.answer(err)
		}
		s.io.write.end(begin, length, err)
		s.tellIO(event.IOWrite, err)
	}()
	half, err := s.tryGuestWrite(p, off, n)
	if half {
		s.tellHalf(s.active.name)
	}
	var until time.Time
	for errors.Is(err, ErrFull) {
		freed, urgent := s.full.wait(), s.active.urgent.Load()
		if _, err = s.tryGuestWrite(p, off, n); !errors.Is(err, ErrFull) {
			break // room was freed in between
		}
		switch s.State() {
		case Running:
			err = s.awaitCheckpoint(freed, urgent, off, n, p != nil || !aligned(off, n), &until, err)
		case Failover, FailoverFailed:
			// No checkpoint will make room any more, but Commit will.
			err = s.commitAll(context.Background())
		default: // it has just ended: the disk is written, or nothing is
			_, err = s.tryGuestWrite(p, off, n)
			return err
		}
		if err != nil {
			break
		}
		_, err = s.tryGuestWrite(p, off, n)
	}
	return err
}

func aligned(off, n int64) bool { return off%SectorSize == 0 && n%SectorSize == 0 }

func (s *Secondary) tryGuestWrite(p []byte, off, n int64) (half bool, err error) {
	h := s.lockBlocks(off, n, false)
	defer s.locks.unlock(h)
	switch s.State() {
	case None:
		return false, ErrNotRunning
	case Running:
		return s.writeActive(p, off, n)
	case Done:
		if !s.life.tookOver() {
			return false, ErrNotRunning
		}
		return false, s.writeDisk(p, off, n)
	}
	// Parts that an overlay holds would be overwritten when it is copied
	// down (perhaps again, after a crash); they go to the overlay.
	end := off + n
	for off < end {
		b := off / BlockSize
		held := s.belongsInOverlay(b)
		next := (b + 1) * BlockSize
		for next < end && s.belongsInOverlay(next/BlockSize) == held {
			next += BlockSize
		}
		c := min(next, end) - off
		var part []byte
		if p != nil {
			part, p = p[:c], p[c:]
		}
		if held {
			_, err = s.writeActive(part, off, c)
			s.life.fallBehind(off, c)
		} else {
			err = s.writeDisk(part, off, c)
		}
		if err != nil {
			return false, err
		}
		off += c
	}
	return false, nil
}

func (s *Secondary) belongsInOverlay(b int64) bool {
	return !s.life.overlaysCount() || s.active.lookup(b).held()|s.hidden.lookup(b).held() != 0
}

func (s *Secondary) writeDisk(p []byte, off, n int64) error {
	if p == nil {
		return s.disk.WriteZeroes(off, n)
	}
	return writeFull(s.disk, p, off)
}

// writeActive writes p, or n zeroes if it is nil, to the active overlay. The
// range is locked.
func (s *Secondary) writeActive(p []byte, off, n int64) (half bool, err error) {
	if n == 0 {
		return false, nil
	}
	b0, b1 := blockRange(off, n)
	if half, err = s.active.reserve(b0, b1, p != nil || !aligned(off, n)); err != nil {
		return half, err
	}
	end := off + n
	for b := b0; b < b1; b++ {
		start := b * BlockSize
		lo, hi := max(start, off), min(start+BlockSize, end)
		var part []byte
		if p != nil {
			part = p[lo-off : hi-off]
		}
		if err := s.writeActiveBlock(b, part, lo, hi); err != nil {
			return half, err
		}
	}
	return half, nil
}

// writeActiveBlock writes [lo, hi), which is inside of block b.
func (s *Secondary) writeActiveBlock(b int64, p []byte, lo, hi int64) error {
	start := b * BlockSize
	from, to := int(lo-start)/SectorSize, int(hi-start+SectorSize-1)/SectorSize
	mask := uint8(1<<to - 1<<from)
	if lo%SectorSize != 0 || hi%SectorSize != 0 {
		// Where the guest writes a part of a sector, the rest of the sector is copied
		// first.
		buf := buffers.Get().(*[256 << 10]byte)
		defer buffers.Put(buf)
		at := start + int64(from)*SectorSize
		whole := buf[:(to-from)*SectorSize]
		if err := s.readLayers(whole, at, s.active); err != nil {
			return err
		}
		if p == nil {
			clear(whole[lo-at : hi-at])
		} else {
			copy(whole[lo-at:], p)
		}
		p, lo = whole, at
	}
	if p == nil {
		s.active.hold(b, 0, mask)
		return nil
	}
	if err := s.active.store.writeSlot(s.active.lookup(b).slot-1, p, int(lo-start)); err != nil {
		return fmt.Errorf("replication: active overlay: %w", err)
	}
	s.active.hold(b, mask, 0)
	return nil
}

// Sync is a flush by the secondary's guest. While replication runs, its
// writes are worth nothing without its memory, so there is nothing to make
// stable. In a failover it makes the guest's writes stable by committing
// them.
func (s *Secondary) Sync() (err error) {
	begin := s.io.flush.begin()
	defer func() { s.io.flush.end(begin, 0, err) }()
	defer s.tell()
	switch s.State() {
	case None:
		return ErrNotRunning
	case Running:
		return nil
	case Done:
		err = s.syncDisk()
	default:
		err = s.commitAll(context.Background())
	}
	return s.gate.answer(err)
}
