package replication

import (
	"bytes"
	"cmp"
)

// Export returns the disk that the primary writes, to be served to it (by
// replication/nbd). In state None it is the secondary disk, for the first
// synchronisation, as long as the copy and its Journal have not failed. In
// state Running a write first saves what it replaces; after an error, which
// keeps any checkpoint from succeeding, writes get that error. Once replication
// has stopped, and while a checkpoint runs, changes are refused with ErrGated;
// reads are allowed as long as the state is None or Running, and no flush of the disk has failed.
func (s *Secondary) Export() Disk { return incoming{s} }

// incoming is the disk that a Secondary's primary writes to.
type incoming struct{ s *Secondary }

var (
	_ Disk       = incoming{}
	_ Trimmer    = incoming{}
	_ ZeroWriter = incoming{}
)

func (x incoming) Size() int64 { return x.s.size.Load() }

func (x incoming) ReadAt(p []byte, off int64) (int, error) {
	s := x.s
	if err := checkRange(off, int64(len(p)), s.size.Load()); err != nil {
		return 0, err
	}
	h := s.lockBlocks(off, int64(len(p)), true)
	defer s.locks.unlock(h)
	if st := s.State(); st != None && st != Running {
		return 0, ErrGated
	}
	if err := s.disk.failed(); err != nil { // it may read as it was before
		return 0, err
	}
	if err := readFull(s.disk, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (x incoming) WriteAt(p []byte, off int64) (int, error) {
	err := x.change(off, int64(len(p)), func() error { return writeFull(x.s.disk, p, off) })
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (x incoming) Trim(off, n int64) error {
	if _, ok := x.s.disk.Disk.(Trimmer); !ok {
		return nil // a trim is a hint; the primary forwards ranges that must read as zeroes otherwise
	}
	return x.change(off, n, func() error { _, err := x.s.disk.trim(off, n); return err })
}

func (x incoming) WriteZeroes(off, n int64) error {
	return x.change(off, n, func() error { return x.s.disk.WriteZeroes(off, n) })
}

// Sync makes what the primary has written stable.
func (x incoming) Sync() error {
	s := x.s
	if st := s.State(); st != None && st != Running {
		return ErrGated
	}
	defer s.tell()
	return s.syncDisk()
}

// change runs write, which changes [off, off+n) of the secondary disk, after
// the old content is safe.
func (x incoming) change(off, n int64, write func() error) error {
	s := x.s
	if err := checkRange(off, n, s.size.Load()); err != nil {
		return err
	}
	if _, err := s.life.admit(); err == ErrGated {
		return ErrGated // without waiting for the checkpoint or failover that shuts the gate
	}
	h := s.lockBlocks(off, n, false)
	half, err := s.changeLocked(off, n, write)
	s.locks.unlock(h)
	if half {
		s.tellHalf(s.hidden.name)
	}
	s.tell()
	if s.ahead.wrote(n) {
		s.ahead.begin(s.disk)
	}
	return err
}

func (s *Secondary) changeLocked(off, n int64, write func() error) (half bool, err error) {
	st, err := s.life.admit()
	switch {
	case err != nil:
		return false, err
	case st == None:
		// A Start that has failed may be on stable storage all the same, which then says
		// that the disk, as it is, is that of a checkpoint.
		if err := cmp.Or(s.copyFailed(), s.stable.failed()); err != nil {
			return false, err
		}
		if err := s.keep(off, n); err != nil {
			return false, err
		}
	default:
		if half, err = s.saveOld(off, n); err != nil {
			return half, s.latch("pre-image", off, n, err)
		}
	}
	if err := write(); err != nil {
		if st == Running {
			err = s.latch("write", off, n, err)
		}
		return half, err
	}
	return half, nil
}

// saveOld copies into the hidden overlay the blocks that [off, off+n) touches and that
// are not there yet: the first pre-image after a checkpoint is the one that counts. It
// does not read the holes of large ranges.
func (s *Secondary) saveOld(off, n int64) (half bool, err error) {
	b0, b1 := blockRange(off, n)
	if n < holesFrom {
		return s.saveRange(b0, b1)
	}
	b, pos := b0, b0*BlockSize
	end := min(b1*BlockSize, s.size.Load())
	extentsOrData(s.disk, pos, end-pos, func(n int64, flags uint32) bool {
		pos += n
		last := pos / BlockSize // whole blocks only; the rest is saved with the next
		if pos == end {
			last = b1
		}
		if flags&ExtentZero == 0 {
			last = min((pos+BlockSize-1)/BlockSize, b1)
		}
		if last <= b {
			return true
		}
		var h bool
		if flags&ExtentZero != 0 {
			h, err = s.saveZeroes(b, last)
		} else {
			h, err = s.saveRange(b, last)
		}
		half, b = half || h, last
		return err == nil
	})
	return half, err
}

// holesFrom is the length of a range, in bytes, from which on its holes are looked for.
const holesFrom = 1 << 20

// saveRange saves the blocks of [b0, b1) that are not saved yet.
func (s *Secondary) saveRange(b0, b1 int64) (half bool, err error) {
	for b := b0; b < b1; b++ {
		if s.hidden.lookup(b).held() != 0 {
			continue
		}
		c := b + 1
		for c < b1 && c-b < int64(len(zeroes))/BlockSize && s.hidden.lookup(c).held() == 0 {
			c++
		}
		h, err := s.saveBlocks(b, c)
		half = half || h
		if err != nil {
			return half, err
		}
		b = c - 1
	}
	return half, nil
}

// saveBlocks copies the blocks [b0, b1), of which the hidden overlay holds
// nothing. Those of zeroes take no room.
func (s *Secondary) saveBlocks(b0, b1 int64) (half bool, err error) {
	if able, half, err := s.hidden.fill(s.disk, s.size.Load(), b0, b1); able {
		return half, err
	}
	buf := buffers.Get().(*[256 << 10]byte)
	defer buffers.Put(buf)
	old := buf[:min(b1*BlockSize, s.size.Load())-b0*BlockSize]
	if err := readFull(s.disk, old, b0*BlockSize); err != nil {
		return false, err
	}
	for b0 < b1 {
		c, zero := b0+1, isZero(firstBlocks(old, 1))
		for c < b1 && isZero(firstBlocks(old[(c-b0)*BlockSize:], 1)) == zero {
			c++
		}
		p := firstBlocks(old, c-b0)
		var h bool
		if zero {
			h, err = s.hidden.putZeroes(b0, c, s.size.Load())
		} else {
			h, err = s.hidden.put(b0, c, p)
		}
		if half = half || h; err != nil {
			return half, err
		}
		b0, old = c, old[len(p):]
	}
	return half, nil
}

// saveZeroes saves the blocks of [b0, b1) that are not saved yet. All of these
// blocks are zero.
func (s *Secondary) saveZeroes(b0, b1 int64) (half bool, err error) {
	for b := b0; b < b1; b++ {
		if s.hidden.lookup(b).held() != 0 {
			continue
		}
		c := b + 1
		for c < b1 && s.hidden.lookup(c).held() == 0 {
			c++
		}
		h, err := s.hidden.putZeroes(b, c, s.size.Load())
		if half = half || h; err != nil {
			return half, err
		}
		b = c - 1
	}
	return half, nil
}

// sectorsAt returns the sectors that block b of a disk of size bytes has: all, but at its
// end.
func sectorsAt(b, size int64) uint8 {
	return uint8(1<<(min(BlockSize, size-b*BlockSize)/SectorSize) - 1)
}

func firstBlocks(p []byte, n int64) []byte { return p[:min(int64(len(p)), n*BlockSize)] }

func isZero(p []byte) bool {
	for len(p) > len(zeroes) {
		if !bytes.Equal(p[:len(zeroes)], zeroes[:]) {
			return false
		}
		p = p[len(zeroes):]
	}
	return bytes.Equal(p, zeroes[:len(p)])
}
