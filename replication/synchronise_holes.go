package replication

import (
	"fmt"
	"io"

	"github.com/gocolo/lockstep/event"
)

// holeStep is how many bytes of a hole Synchronise handles at a time.
const holeStep = 64 << 20

// nextStep returns what Synchronise does next, from pos on: some dirty chunks,
// and whether they seem to be a hole of the local disk. n is 0 where no more is
// dirty.
func (p *Primary) nextStep(pos int64) (start, n int64, hole bool) {
	start, n = p.peer.dirty.next(pos, copyStep)
	if n == 0 {
		return start, 0, false
	}
	zero := zeroPrefix(p.local, start, min(holeStep, p.size.Load()-start))
	switch {
	case zero >= ChunkSize || zero == n && zero > 0:
		if start+zero < p.size.Load() {
			zero -= zero % ChunkSize // start is that of a chunk
		}
		_, n = p.peer.dirty.next(start, holeStep)
		return start, min(n, zero), true
	case n > ChunkSize:
		// A hole behind it is for the next step.
		data := int64(0)
		extentsOrData(p.local, start, n, func(m int64, flags uint32) bool {
			if flags&ExtentZero != 0 && m >= ChunkSize {
				return false
			}
			data += m
			return true
		})
		n = min(n, max(ChunkSize, (data+ChunkSize-1)/ChunkSize*ChunkSize))
	}
	return start, n, false
}

// zeroPrefix returns how many bytes at the beginning of [off, off+n) are known to be zero
// without reading them.
func zeroPrefix(d any, off, n int64) (zero int64) {
	extentsOrData(d, off, n, func(m int64, flags uint32) bool {
		if flags&ExtentZero == 0 {
			return false
		}
		zero += m
		return true
	})
	return zero
}

// copyHole makes [start, start+n), dirty chunks that are a hole of the local
// disk, zero on the secondary where they are not; nothing of them is read on
// either side if the secondary can tell. It reports false, having done nothing,
// if a guest has written there since.
func (p *Primary) copyHole(f *Forwarder, cfg *SyncConfig, start, n int64, done *event.DiskSyncProgress) (bool, error) {
	// As in copyRun, no write waits for what the other side says.
	differ := [][2]int64{{start, n}}
	if !p.onTheWay(f, start, n) {
		var err error
		if differ, err = notZero(f, cfg, start, n); err != nil {
			return false, err
		}
	}
	h := p.locks.lock(start, n, false)
	defer p.locks.unlock(h)
	if zeroPrefix(p.local, start, n) < n {
		return false, nil
	}
	p.peer.copying(start, n)
	done.Same += n
	for _, d := range differ {
		if _, err := f.send(nil, d[0], d[1], false); err != nil {
			p.peer.dirty.Set(start, n)
			return false, err
		}
		done.Same -= d[1]
		done.Copied += d[1]
	}
	return true, nil
}

// notZero returns the parts of a range that are not known to be zero on the
// secondary.
func notZero(f *Forwarder, cfg *SyncConfig, start, n int64) (differ [][2]int64, err error) {
	align, err := alignOf(f.remote, f.remote.Size())
	if err != nil {
		return nil, err
	}
	pos := start
	extentsOrData(f.remote, start, n, func(m int64, flags uint32) bool {
		if flags&ExtentZero == 0 {
			differ = appendBlocks(differ, pos, m, max(align, BlockSize), start+n)
		}
		pos += m
		return true
	})
	if err := f.Err(); err != nil {
		return nil, err // that is why it could not tell
	}
	if cfg.Sums == nil {
		return differ, nil
	}
	// Parts with storage on the secondary may be zero all the same.
	var left [][2]int64
	for _, d := range differ {
		err := compareZeroes(cfg.Sums, d[0], d[1], func(off, n int64) { left = append(left, [2]int64{off, n}) })
		if err != nil {
			return nil, err
		}
	}
	return left, nil
}

// appendBlocks appends the blocks that [off, off+n) touches, up to end, but for those that the
// last of ranges has. So another side that tells of every byte by itself costs neither memory
// nor requests.
func appendBlocks(ranges [][2]int64, off, n, block, end int64) [][2]int64 {
	from, to := off&^(block-1), min((off+n+block-1)&^(block-1), end)
	if k := len(ranges) - 1; k >= 0 {
		if last := &ranges[k]; from <= last[0]+last[1] {
			last[1] = to - last[0]
			return ranges
		}
	}
	return append(ranges, [2]int64{from, to - from})
}

// compareZeroes calls differ for each part of a range that is, by the sums of its
// whole chunks, not zero.
func compareZeroes(sums io.ReaderAt, off, n int64, differ func(off, n int64)) error {
	table := make([]byte, min(n, holeStep)/ChunkSize*sumSize)
	for n > 0 {
		lead := min((ChunkSize-off%ChunkSize)%ChunkSize, n)
		if lead > 0 { // no whole chunk
			differ(off, lead)
			off, n = off+lead, n-lead
			continue
		}
		chunks := min(n/ChunkSize, int64(len(table)/sumSize))
		if chunks == 0 {
			differ(off, n)
			return nil
		}
		theirs := table[:chunks*sumSize]
		if err := readFull(sums, theirs, off/ChunkSize*sumSize); err != nil {
			return fmt.Errorf("replication: checksums: %w", err)
		}
		for ; len(theirs) > 0; theirs = theirs[sumSize:] {
			if [sumSize]byte(theirs) != zeroSum() {
				differ(off, ChunkSize)
			}
			off, n = off+ChunkSize, n-ChunkSize
		}
	}
	return nil
}
