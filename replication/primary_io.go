package replication

import (
	"cmp"
	"context"
	"errors"
	"math"

	"github.com/gocolo/lockstep/event"
)

// Size implements [Disk].
func (p *Primary) Size() int64 { return p.size.Load() }

// ReadAt reads the local disk.
func (p *Primary) ReadAt(b []byte, off int64) (n int, err error) {
	begin := p.io.read.begin()
	n, err = p.local.ReadAt(b, off)
	p.io.read.end(begin, int64(n), err)
	p.tellIO(event.IORead, err)
	return n, err
}

// WriteAt writes the local disk and forwards. It may wait for room in the
// window, or in what is held.
func (p *Primary) WriteAt(b []byte, off int64) (int, error) {
	n, begin := int64(len(b)), p.io.write.begin()
	err := p.pieces(off, n, maxForward, func(off, n int64) error {
		part := b[:n]
		b = b[n:]
		_, _, err := p.write(part, off, n, false, func() error { return writeFull(p.local, part, off) })
		return err
	})
	err = p.gate.answer(err)
	p.io.write.end(begin, n, err)
	p.tellIO(event.IOWrite, err)
	if err != nil {
		return 0, err
	}
	return int(n), nil
}

// WriteFUA writes, and returns when the write is stable on both sides, or on this side if
// it is held for the other.
func (p *Primary) WriteFUA(b []byte, off int64) error {
	n, begin := int64(len(b)), p.io.write.begin()
	err := p.pieces(off, n, math.MaxInt64, func(off, n int64) error {
		part := b[:n]
		b = b[n:]
		f, seq, err := p.write(part, off, n, true, func() error { return p.local.WriteFUA(part, off) })
		if err == nil && f != nil {
			f.answered(context.Background(), seq) // Err returns its error
		}
		return err
	})
	err = p.gate.answer(err)
	p.io.write.end(begin, n, err)
	p.tellIO(event.IOWrite, err)
	return err
}

// WriteZeroes zeroes a range on both sides.
func (p *Primary) WriteZeroes(off, n int64) error {
	begin := p.io.write.begin()
	err := p.pieces(off, n, maxForwardZeroes, func(off, n int64) error {
		_, _, err := p.write(nil, off, n, false, func() error { return p.local.WriteZeroes(off, n) })
		return err
	})
	err = p.gate.answer(err)
	p.io.write.end(begin, n, err)
	p.tellIO(event.IOWrite, err)
	return err
}

// pieces divides a request that is larger than most, or than the secondary has room for. A
// Mark may come between two pieces.
func (p *Primary) pieces(off, n, most int64, do func(off, n int64) error) error {
	if err := checkRange(off, n, p.size.Load()); err != nil {
		return err
	}
	if n > BlockSize {
		most = min(most, p.room.most())
	}
	for {
		c := min(n, most)
		if err := do(off, c); err != nil || c == n {
			return err
		}
		off, n = off+c, n-c
	}
}

// Trim does what WriteZeroes does, which may give storage back. Otherwise the trimmed
// range could have different contents on the two disks.
func (p *Primary) Trim(off, n int64) error { return p.WriteZeroes(off, n) }

// write writes to the local disk, accounts for that, and forwards it.
func (p *Primary) write(b []byte, off, n int64, fua bool, local func() error) (*Forwarder, uint64, error) {
	if err := checkRange(off, n, p.size.Load()); err != nil {
		return nil, 0, err
	}
	if p.resumed.Load() {
		if err := p.resumeAlone(); err != nil {
			p.tellFailed()
			return nil, 0, err
		}
	}
	f, seq, half, err := p.writeLocked(b, off, n, fua, false, local)
	for err == errNoRoom {
		freed := p.room.wait()
		if f, seq, half, err = p.writeLocked(b, off, n, fua, false, local); err != errNoRoom {
			break // room was freed in between
		}
		again, fenced := p.awaitRoom(freed)
		if fenced != nil {
			return nil, 0, fenced
		}
		if !again || !p.room.ever(off, n) {
			f, seq, half, err = p.writeLocked(b, off, n, fua, true, local)
		}
	}
	if err != nil {
		p.tellFailed()
	}
	if half && !p.room.asked.Load() {
		p.askForCheckpoint(false)
	}
	if f != nil && p.ahead.wrote(n) {
		select {
		case p.due <- struct{}{}:
		default:
		}
	}
	return f, seq, err
}

// errNoRoom says that nothing has been written, because the secondary has no room for
// pre-images.
var errNoRoom = errors.New("replication: no room for pre-images")

func (p *Primary) writeLocked(b []byte, off, n int64, fua, force bool, local func() error) (_ *Forwarder, _ uint64, half bool, _ error) {
	h, align := p.lockBlocks(off, n)
	defer p.locks.unlock(h)
	if p.room.on && !force && p.linked() {
		var err error
		if half, err = p.room.take(p.local, off, n); errors.Is(err, ErrFull) {
			return nil, 0, true, errNoRoom
		}
	}
	if err := p.peer.begin(off, n); err != nil {
		return nil, 0, half, err // before anything is written
	}
	failed := local()
	f := p.link.Load()
	if f == nil {
		return nil, 0, half, failed
	}
	if failed != nil {
		// The content after an error is unknown. The guest may read what is there now, so
		// the secondary must have the same.
		b = make([]byte, n)
		if err := readFull(p.local, b, off); err != nil {
			p.peer.dirty.Set(off, n)
			f.breakOff(&BrokenError{Op: "write", Off: off, Len: n, Err: failed})
			return nil, 0, half, failed
		}
	}
	if (off|n)&(align-1) == 0 {
		return f, p.forward(f, b, off, n, fua), half, failed
	}
	seq, err := p.forwardBlocks(f, b, off, n, align, fua)
	if err != nil {
		p.peer.dirty.Set(off, n)
		f.breakOff(&BrokenError{Op: "write", Off: off, Len: n, Err: err})
		return nil, 0, half, failed
	}
	return f, seq, half, failed
}

// lockBlocks locks the blocks of the secondary that a range touches, and returns their
// length.
func (p *Primary) lockBlocks(off, n int64) (*rangeHold, int64) {
	for {
		align := p.align.Load()
		from, to := off&^(align-1), (off+n+align-1)&^(align-1)
		h := p.locks.lock(from, to-from, false)
		if p.align.Load() == align {
			return h, align
		}
		p.locks.unlock(h) // another Remote was attached meanwhile
	}
}

// forward sends a write, but for what Synchronise has still to copy, and returns the number
// of its last part. The range is locked.
func (p *Primary) forward(f *Forwarder, b []byte, off, n int64, fua bool) (seq uint64) {
	for n > 0 {
		c, dirty := p.peer.dirty.run(off, n)
		var part []byte
		if b != nil {
			part, b = b[:c], b[c:]
		}
		if !dirty {
			s, err := f.send(part, off, c, fua)
			if err != nil {
				p.peer.dirty.Set(off, c)
			}
			seq = max(seq, s)
		}
		off, n = off+c, n-c
	}
	return seq
}

// forwardBlocks does what forward does for a write that is no multiple of the secondary's
// blocks, all of which are locked: the first and the last are sent as the local disk has
// them now. The error is that of reading them.
func (p *Primary) forwardBlocks(f *Forwarder, b []byte, off, n, align int64, fua bool) (seq uint64, err error) {
	block := make([]byte, align)
	for n > 0 {
		from := off &^ (align - 1)
		c := min(n, from+align-off)
		if c == align { // up to the last whole block
			c = n &^ (align - 1)
			part := b
			if b != nil {
				part = b[:c]
			}
			seq = max(seq, p.forward(f, part, off, c, fua))
		} else {
			if err := readFull(p.local, block, from); err != nil {
				return seq, err
			}
			seq = max(seq, p.forward(f, block, from, align, fua))
		}
		if b != nil {
			b = b[c:]
		}
		off, n = off+c, n-c
	}
	return seq, nil
}

// linked reports whether writes are being forwarded.
func (p *Primary) linked() bool {
	f := p.link.Load()
	return f != nil && f.Err() == nil
}

// syncLocal makes the local disk stable. A failure is final, and published once. The
// caller holds no lock.
func (p *Primary) syncLocal() error {
	err := p.local.Sync()
	p.tellFailed()
	return err
}

// LocalErr returns why the local copy is not to be trusted any more: a *SyncError of the
// disk, or a *MetadataError, both of which are final; or nil. It does not wait for I/O,
// and any goroutine may call it.
func (p *Primary) LocalErr() error { return cmp.Or(p.local.failed(), p.meta.failure()) }

// tellFailed publishes that the local disk, or its metadata, has failed, once each. The caller holds no lock.
func (p *Primary) tellFailed() {
	p.lost.tell(p.local, p.meta, p.cfg.Events, event.ModePrimary, p.cfg.Name)
}

// localFailed returns what Err returns when the local disk is not to be trusted,
// or nil. It returns nil too while the guest is being brought away from that
// disk.
func (p *Primary) localFailed() error {
	if p.evacuates.Load() {
		return nil
	}
	if err := p.local.failed(); err != nil {
		return &BrokenError{Op: "local flush", Err: err}
	}
	if err := p.meta.failure(); err != nil {
		return &BrokenError{Op: "local metadata", Err: err}
	}
	return nil
}

// Sync makes the guest's writes stable on both sides; those that are held, on this side
// only. A failure of the secondary is not the guest's error.
//
// An error is a *SyncError, and final: every later Sync fails, every Mark and Checkpoint
// too, but for those of an evacuation (PrimaryConfig.Evacuate), and an
// event.DiskFailed is published. The guest goes on with reads and writes that the local
// disk still serves, and each flush tells it of the error. It gets no data from the
// secondary, whose writes since the last checkpoint would not outlive a failover. The
// other side has a good copy, that of the last checkpoint, so a host that wants the guest
// to go on does so there.
func (p *Primary) Sync() error {
	var err error
	begin := p.io.flush.begin()
	if f := p.link.Load(); f == nil || f.Err() != nil {
		err = p.syncLocal()
	} else {
		f.flush(context.Background(), false, func() error { err = p.syncLocal(); return nil })
	}
	err = p.gate.answer(err)
	p.io.flush.end(begin, 0, err)
	return err
}
