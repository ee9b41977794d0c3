package replication

// Export returns the disk that the primary writes, to be served to it (by
// replication/nbd). In state None it is the secondary disk, for the first
// synchronisation. In state Running a write first saves what it replaces;
// after an error, which keeps any checkpoint from succeeding, writes get that
// error. Once replication has stopped, and while a checkpoint runs, changes are refused
// with ErrGated; reads are allowed as long as the state is None or Running.
func (s *Secondary) Export() Disk { return incoming{s} }

type incoming struct{ s *Secondary }

var (
	_ Disk       = incoming{}
	_ Trimmer    = incoming{}
	_ ZeroWriter = incoming{}
)

func (x incoming) Size() int64 { return x.s.size }

func (x incoming) ReadAt(p []byte, off int64) (int, error) {
	s := x.s
	if err := checkRange(off, int64(len(p)), s.size); err != nil {
		return 0, err
	}
	h := s.lockBlocks(off, int64(len(p)), true)
	defer s.locks.unlock(h)
	if st := s.State(); st != None && st != Running {
		return 0, ErrGated
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
		return nil // a hint; the primary forwards what must read as zeroes as such
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
	if err := checkRange(off, n, s.size); err != nil {
		return err
	}
	if s.gated.Load() {
		return ErrGated
	}
	h := s.lockBlocks(off, n, false)
	half, err := s.changeLocked(off, n, write)
	s.locks.unlock(h)
	if half {
		s.tellHalf(s.hidden.name)
	}
	s.tell()
	return err
}

func (s *Secondary) changeLocked(off, n int64, write func() error) (half bool, err error) {
	switch s.State() {
	case None:
		if err := s.keep(off, n); err != nil {
			return false, err
		}
	case Running:
		if s.gated.Load() { // since the caller has looked
			return false, ErrGated
		}
		if s.faulty.Load() {
			// No checkpoint will ever have this write.
			return false, s.Err()
		}
		if half, err = s.saveOld(off, n); err != nil {
			return half, s.latch("pre-image", off, n, err)
		}
	default:
		return false, ErrGated
	}
	if err := write(); err != nil {
		if s.State() == Running {
			err = s.latch("write", off, n, err)
		}
		return half, err
	}
	return half, nil
}

// saveOld copies the blocks that [off, off+n) touches into the hidden
// overlay, those that are not there yet: the first pre-image since the
// checkpoint is the one that counts.
func (s *Secondary) saveOld(off, n int64) (half bool, err error) {
	b0, b1 := blockRange(off, n)
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
// nothing.
func (s *Secondary) saveBlocks(b0, b1 int64) (half bool, err error) {
	buf := buffers.Get().(*[256 << 10]byte)
	defer buffers.Put(buf)
	old := buf[:min(b1*BlockSize, s.size)-b0*BlockSize]
	if err := readFull(s.disk, old, b0*BlockSize); err != nil {
		return false, err
	}
	return s.hidden.put(b0, b1, old)
}
