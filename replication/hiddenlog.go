package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"sync"
	"syscall"
)

// hiddenLog is the log of pre-images on the hidden device of a [Journal]. A
// record is a header of whole sectors, followed by the content of consecutive
// blocks:
//
//	magic u32, sectors u32, seq u64, nonce [16], block u64, data sum u32, header sum u32,
//	settled u64, sum of all before u32
//
// or, with another magic, by nothing: then the blocks, whose number takes the
// place of that of sectors, are zero.
//
// A record counts if its nonce is that of the superblock, its seq is the
// number of records before it, and both sums are right; the first that does
// not count ends the log. The nonce is random and the guest never sees it, so
// that nothing a guest has written passes for a record.
//
// Appending waits until the record is stable. Appends that come while a sync
// is under way share the next one.
//
// If the device has no room for a write, the log ends where it did before, and is appended to
// again when there is room. What the write has left behind that end may be replayed, and does
// no harm: it is the content of blocks that had not been changed since the checkpoint.
type hiddenLog struct {
	dev *stableDisk

	mu      sync.Mutex
	nonce   [16]byte // of the superblock; all records carry it
	seq     uint64   // the number of the next record
	settled uint64   // the records before it are stable
	end     int64    // where the next record goes
	at      int64    // where pending begins
	pending []byte   // records that are to be written, at at
	spare   []byte   // memory for the next pending
	writing bool     // a goroutine writes a batch
	batch   *batch   // of the appends in pending
	err     error
}

// batch is the appends that share a sync.
type batch struct {
	done chan struct{} // closed when the batch is stable, or err is set
	lead chan struct{} // one of the waiters is to write the batch
	err  error
}

func newBatch() *batch { return &batch{done: make(chan struct{}), lead: make(chan struct{}, 1)} }

const (
	recordMagic  = 0x7265636c
	zeroesMagic  = 0x7a65726f
	recordHeader = SectorSize
	recordFields = 4 + 4 + 8 + 16 + 8 + 4 + 4
	recordClaim  = recordFields + 8 // where the sum of what is settled is
	// lookAhead is how many bytes behind a record that does not count the log is searched
	// for a later record which says that the first one was stable. Records that were
	// written at the same time cannot say so, and they take less than this: one connection
	// cannot have as much under way.
	lookAhead = 64 << 20
)

func (l *hiddenLog) grow(uint32)    {}
func (l *hiddenLog) stride() uint32 { return sectorsPerBlock }

// A slot of the log is a sector of the device.

func (l *hiddenLog) readSlot(slot uint32, p []byte, at int) error {
	return readFull(l.dev, p, int64(slot)*SectorSize+int64(at))
}

func (l *hiddenLog) writeSlot(uint32, []byte, int) error {
	panic("internal error: a pre-image is never changed")
}

// restart begins an empty log. Nobody is appending.
func (l *hiddenLog) restart(nonce [16]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nonce, l.seq, l.settled, l.end = nonce, 0, 0, logStart
}

func (l *hiddenLog) usedBytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end - logStart
}

// failed returns the error that ended the use of the device.
func (l *hiddenLog) failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// fail ends the use of the device.
func (l *hiddenLog) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
}

// appendBlocks appends a record with p, the content of the blocks from b0 on,
// and returns its slot when it is stable.
func (l *hiddenLog) appendBlocks(b0 int64, p []byte) (slot uint32, half bool, err error) {
	return l.add(recordMagic, uint32(len(p)/SectorSize), b0, p)
}

// appendZeroes appends a record of n blocks of zeroes, and returns when it is
// stable.
func (l *hiddenLog) appendZeroes(b0, n int64) (half bool, err error) {
	for ; n > 0 && err == nil; b0, n = b0+math.MaxUint32, n-math.MaxUint32 {
		_, half, err = l.add(zeroesMagic, uint32(min(n, math.MaxUint32)), b0, nil)
	}
	return half, err
}

func (l *hiddenLog) add(magic, count uint32, b0 int64, p []byte) (slot uint32, half bool, err error) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return 0, false, l.err
	}
	next := l.end + recordHeader + int64(len(p))
	half = next-logStart >= (l.dev.Size()-logStart)/2
	if next > l.dev.Size() {
		l.mu.Unlock()
		return 0, true, fmt.Errorf("%w: log of pre-images, bound %d bytes", ErrFull, l.dev.Size())
	}
	if len(l.pending) == 0 {
		l.at = l.end
	}
	l.pending = l.appendRecord(l.pending, magic, count, b0, p)
	slot = uint32((l.end + recordHeader) / SectorSize)
	l.end = next
	l.seq++
	b := l.batch
	if l.writing {
		l.mu.Unlock()
		select {
		case <-b.done:
			return slot, half, b.err
		case <-b.lead:
		}
		l.mu.Lock()
	}
	l.writing = true
	p, at, seq := l.pending, l.at, l.seq
	l.pending, l.spare = l.spare[:0], nil
	l.batch = newBatch()
	failed := l.err
	l.mu.Unlock()

	full := false
	if failed == nil {
		failed = writeFull(l.dev, p, at)
		full = noRoom(failed)
		if failed == nil {
			failed = l.dev.Sync()
		}
		if failed != nil {
			failed = fmt.Errorf("replication: journal: log: %w", failed)
		}
	}

	l.mu.Lock()
	l.spare = p
	switch {
	case failed == nil:
		l.settled = seq
	case full && l.err == nil:
		l.takeBack(at, failed)
	case l.err == nil:
		l.err = failed
	}
	if len(l.pending) > 0 {
		l.batch.lead <- struct{}{}
	} else {
		l.writing = false
	}
	l.mu.Unlock()
	b.err = failed
	close(b.done)
	return slot, half, failed
}

// takeBack ends the log at at, where what is settled ends, since the device has no room for
// what follows. Those who wait to append more get err too. The caller holds mu.
func (l *hiddenLog) takeBack(at int64, err error) {
	l.end, l.seq = at, l.settled
	if len(l.pending) > 0 {
		l.pending = l.pending[:0]
		l.batch.err = err
		close(l.batch.done)
		l.batch = newBatch()
	}
}

// noRoom reports whether err says that a device had no room for a write, which it then has not
// made, or only in part. Everything else that was written to it is still there.
func noRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func (l *hiddenLog) appendRecord(buf []byte, magic, count uint32, b0 int64, p []byte) []byte {
	at := len(buf)
	le := binary.LittleEndian
	buf = le.AppendUint32(buf, magic)
	buf = le.AppendUint32(buf, count)
	buf = le.AppendUint64(buf, l.seq)
	buf = append(buf, l.nonce[:]...)
	buf = le.AppendUint64(buf, uint64(b0))
	buf = le.AppendUint32(buf, crc32.Checksum(p, castagnoli))
	buf = le.AppendUint32(buf, crc32.Checksum(buf[at:], castagnoli))
	buf = le.AppendUint64(buf, l.settled)
	buf = le.AppendUint32(buf, crc32.Checksum(buf[at:], castagnoli))
	buf = append(buf, zeroes[:recordHeader-recordClaim-4]...)
	return append(buf, p...)
}

// replay calls apply for the blocks of the log, in order, with n bytes from a block on:
// their content p, or nil for zeroes. It returns ErrCorrupt if the log has lost a record that
// was stable.
func (l *hiddenLog) replay(ctx context.Context, apply func(block, n int64, p []byte) error) error {
	var head [recordHeader]byte
	data := make([]byte, min(int64(len(zeroes)), l.dev.Size()))
	le := binary.LittleEndian
	pos := int64(logStart)
	for seq := uint64(0); ; seq++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if pos+recordHeader > l.dev.Size() {
			return nil
		}
		if err := readFull(l.dev, head[:], pos); err != nil {
			return err
		}
		n := int64(le.Uint32(head[4:])) * SectorSize
		zero := le.Uint32(head[:]) == zeroesMagic
		if zero {
			n = 0
		}
		begin := pos
		pos += recordHeader
		if at, ok := l.recordOf(head[:]); !ok || at != seq || n > int64(len(data)) || pos+n > l.dev.Size() {
			return l.wasSettled(ctx, seq, begin, data)
		}
		if err := readFull(l.dev, data[:n], pos); err != nil {
			return err
		}
		pos += n
		if le.Uint32(head[40:]) != crc32.Checksum(data[:n], castagnoli) {
			return l.wasSettled(ctx, seq, begin, data)
		}
		block := int64(le.Uint64(head[32:]))
		if zero {
			if err := apply(block, int64(le.Uint32(head[4:]))*BlockSize, nil); err != nil {
				return err
			}
		}
		for p := data[:n]; len(p) > 0; block++ {
			c := min(len(p), BlockSize)
			if err := apply(block, int64(c), p[:c]); err != nil {
				return err
			}
			p = p[c:]
		}
	}
}

// recordOf returns the number of the record whose header that is, if it is one of this log.
func (l *hiddenLog) recordOf(head []byte) (seq uint64, ok bool) {
	le := binary.LittleEndian
	magic := le.Uint32(head)
	return le.Uint64(head[8:]), (magic == recordMagic || magic == zeroesMagic) && [16]byte(head[16:32]) == l.nonce &&
		le.Uint32(head[recordFields-4:]) == crc32.Checksum(head[:recordFields-4], castagnoli)
}

// wasSettled returns ErrCorrupt if a record behind pos says that record seq, which should be
// there, was stable. It uses buf.
func (l *hiddenLog) wasSettled(ctx context.Context, seq uint64, pos int64, buf []byte) error {
	le := binary.LittleEndian
	buf = buf[:len(buf)/SectorSize*SectorSize]
	for until := min(pos+lookAhead, l.dev.Size()/SectorSize*SectorSize); pos < until; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), until-pos)]
		if err := readFull(l.dev, p, pos); err != nil {
			return err
		}
		pos += int64(len(p))
		for ; len(p) > 0; p = p[SectorSize:] {
			if [16]byte(p[16:32]) != l.nonce {
				continue // which is nearly all, at little cost
			}
			later, ok := l.recordOf(p)
			if ok && later > seq && le.Uint64(p[recordFields:]) > seq && le.Uint32(p[recordClaim:]) == crc32.Checksum(p[:recordClaim], castagnoli) {
				return fmt.Errorf("%w: record %d of the log of pre-images, which was stable when record %d was made", ErrCorrupt, seq, later)
			}
		}
	}
	return nil
}
