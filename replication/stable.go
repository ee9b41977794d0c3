package replication

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// stableDisk is a disk, with a record of how much of it is on stable storage. Every change
// of the disk is made by its methods, or reported to wrote, and everything that has to be
// stable is synced by it. Its methods may be called from any goroutine.
//
// Writes are counted when they have ended. A sync makes stable what had been
// counted when it began, so that a flush is answered only when a sync that
// began after the writes before the flush has ended. Flushes that come while
// a sync is under way share the next one.
//
// A sync that fails is the last: the system may have dropped what it could not
// write, and would call the next sync a success. From then on sync returns that
// error.
type stableDisk struct {
	Disk
	name string // the disk's name in errors

	flight flight // the operations that are under way

	done atomic.Uint64 // how many writes have ended; the first stands for earlier ones by others

	// through is shared by the writes of a FUAWriter and exclusive to a sync: a
	// system tells an error once, and the one who is told has to record it
	// before another asks.
	through sync.RWMutex

	mu      sync.Mutex
	ended   sync.Cond // broadcast when a sync has ended
	syncing bool
	stable  uint64 // the writes up to this one are stable
	err     *SyncError
}

// SyncError says that a disk could not make stable what had been written to
// it. It is final: part of that may be gone, though reads may still show it,
// and nothing that the disk says later tells which. Every later flush of the
// disk, and every checkpoint that would depend on it, returns the same error.
type SyncError struct {
	Disk string // which: "disk", "log of pre-images", "active overlay", or the name of a file
	Err  error
}

func (e *SyncError) Error() string {
	return fmt.Sprintf("replication: %s: what was written may be lost: %v", e.Disk, e.Err)
}

// Unwrap returns the cause.
func (e *SyncError) Unwrap() error { return e.Err }

func newStableDisk(d Disk, name string) *stableDisk {
	s := &stableDisk{Disk: d, name: name}
	s.ended.L = &s.mu
	s.wrote() // others may have written, and never have synced
	return s
}

// wrote counts a write that has ended, well or not: what an error leaves on
// the disk is unknown, so that has to become stable too.
func (s *stableDisk) wrote() { s.done.Add(1) }

// ReadAt implements io.ReaderAt.
func (s *stableDisk) ReadAt(p []byte, off int64) (int, error) {
	op, err := s.flight.begin("read")
	if err != nil {
		return 0, err
	}
	n, err := s.Disk.ReadAt(p, off)
	return n, s.flight.end(op, err)
}

// WriteAt implements io.WriterAt.
func (s *stableDisk) WriteAt(p []byte, off int64) (int, error) {
	op, err := s.flight.begin("write")
	if err != nil {
		return 0, err
	}
	n, err := s.Disk.WriteAt(p, off)
	s.wrote()
	return n, s.flight.end(op, err)
}

// WriteZeroes implements [ZeroWriter].
func (s *stableDisk) WriteZeroes(off, n int64) error {
	if _, ok := s.Disk.(ZeroWriter); !ok {
		for n > 0 { // each piece is an operation, since all of them may take long
			c := min(n, int64(len(zeroes)))
			if err := writeFull(s, zeroes[:c], off); err != nil {
				return err
			}
			off, n = off+c, n-c
		}
		return nil
	}
	for { // as above
		c := min(n, zeroAtOnce)
		op, err := s.flight.begin("zero")
		if err != nil {
			return err
		}
		err = WriteZeroes(s.Disk, off, c)
		s.wrote()
		if err = s.flight.end(op, err); err != nil || c == n {
			return err
		}
		off, n = off+c, n-c
	}
}

// zeroAtOnce is how much is zeroed in one operation, since a disk may have to write the zeroes.
const zeroAtOnce = 64 << 20

// trim trims if the disk can; it reports whether that was so.
func (s *stableDisk) trim(off, n int64) (bool, error) {
	t, ok := s.Disk.(Trimmer)
	if !ok {
		return false, nil
	}
	op, err := s.flight.begin("trim")
	if err != nil {
		return true, err
	}
	err = t.Trim(off, n)
	s.wrote()
	return true, s.flight.end(op, err)
}

// WriteFUA implements [FUAWriter]. An error of a disk that writes through counts as that
// of a sync: it may be about earlier writes, and is reported only once.
func (s *stableDisk) WriteFUA(p []byte, off int64) error {
	f, ok := s.Disk.(FUAWriter)
	if !ok {
		if err := writeFull(s, p, off); err != nil {
			return err
		}
		return s.Sync()
	}
	s.through.RLock()
	defer s.through.RUnlock()
	op, err := s.flight.begin("write")
	if err == nil {
		err = f.WriteFUA(p, off)
		s.wrote()
		err = s.flight.end(op, err)
	}
	if err == nil {
		return s.failed()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fail(err)
}

// Sync returns when every write that had ended when it was called is stable.
func (s *stableDisk) Sync() error {
	upTo := s.done.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.err != nil {
			return s.err
		}
		if s.stable >= upTo {
			return nil
		}
		if s.syncing {
			// The sync may have begun before the last of the caller's writes had ended;
			// then one of those who wait begins another.
			s.ended.Wait()
			continue
		}
		s.syncOnce()
	}
}

// syncOnce syncs the disk. The caller holds mu, which is released meanwhile.
func (s *stableDisk) syncOnce() {
	s.syncing = true
	s.mu.Unlock()
	_, through := s.Disk.(FUAWriter)
	if through {
		s.through.Lock()
	}
	began := s.done.Load()
	op, err := s.flight.begin(opFlush)
	if err == nil {
		err = s.flight.end(op, s.Disk.Sync())
	}
	s.mu.Lock()
	if through {
		s.through.Unlock()
	}
	if err != nil {
		s.fail(err)
	} else {
		s.stable = max(s.stable, began)
	}
	s.syncing = false
	s.ended.Broadcast()
}

// fail records the first failed sync, and returns it. The caller holds mu.
func (s *stableDisk) fail(err error) error {
	if s.err == nil {
		if !errors.As(err, &s.err) { // a disk below has named itself in the error
			s.err = &SyncError{Disk: s.name, Err: err}
		}
	}
	return s.err
}

// failed returns the error of a sync that failed, or nil.
func (s *stableDisk) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		return nil // not a nil *SyncError
	}
	return s.err
}

// Extents implements [ExtentReader] with the extents of the disk. What yield does is no
// operation of the disk.
func (s *stableDisk) Extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	op, err := s.flight.begin("extents")
	if err != nil {
		return err
	}
	under := true
	err = Extents(s.Disk, off, n, func(n int64, flags uint32) bool {
		failed := s.flight.end(op, nil)
		under = false
		if failed != nil || !yield(n, flags) {
			return false
		}
		if op, failed = s.flight.begin("extents"); failed != nil {
			return false
		}
		under = true
		return true
	})
	if under {
		return s.flight.end(op, err)
	}
	if e := s.flight.hung.Load(); e != nil {
		return e
	}
	return err
}

// StartSync implements [SyncStarter] if the disk is one.
func (s *stableDisk) StartSync() {
	d, ok := s.Disk.(SyncStarter)
	if !ok {
		return
	}
	if op, err := s.flight.begin(opFlush); err == nil {
		d.StartSync()
		s.flight.end(op, nil)
	}
}

// Grow implements [Grower] if the disk is one.
func (s *stableDisk) Grow(size int64) error {
	op, err := s.flight.begin("grow")
	if err != nil {
		return err
	}
	err = growDisk(s.Disk, size)
	s.wrote()
	return s.flight.end(op, err)
}

// abandon gives up what is under way. Those who wait for a sync of somebody else go on.
func (s *stableDisk) abandon(e *HungError) {
	s.flight.hung.CompareAndSwap(nil, e)
	if a, ok := s.Disk.(Abandoner); ok {
		a.Abandon(e)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail(e)
	s.ended.Broadcast()
}
