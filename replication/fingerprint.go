package replication

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"slices"
)

// fingerprint has the checksums of some blocks of a disk at a checkpoint. A [Journal]
// keeps one for a disk that has no place for [Metadata], to tell that disk from others of
// its size.
//
// The next checkpoint sums blocks that have changed anew. Until then the log has the
// earlier content of each block that is written. So after a crash at any moment, the
// blocks of which the log has nothing are unchanged.
type fingerprint struct {
	n  int
	at [fingerprintBlocks]fingerprintBlock
}

// fingerprintBlock is the number of a block and its checksum.
type fingerprintBlock struct{ block, sum uint32 }

const (
	fingerprintBlocks = 22
	// Earlier journals have more. The place of those in the superblock is that of superRun now.
	fingerprintMax     = 24
	fingerprintEncoded = 4 + fingerprintMax*8
)

// fixedBlocks are blocks that probably differ from disk to disk: partition tables and
// superblocks of file systems. The last block of the disk is used too.
var fixedBlocks = [...]int64{0, 1, 16, 256, 257, 272}

const spreadBlocks = int64(fingerprintBlocks - len(fixedBlocks) - 1)

// take chooses the blocks, and sums them. A block that cannot be read is left out.
func (f *fingerprint) take(d Disk, size int64) {
	f.n = 0
	blocks := min((size+BlockSize-1)/BlockSize, math.MaxUint32)
	// add chooses block b if it may, and reports whether b is chosen now.
	add := func(b int64, zeroToo bool) bool {
		if b >= blocks {
			return false
		}
		if slices.ContainsFunc(f.at[:f.n], func(o fingerprintBlock) bool { return int64(o.block) == b }) {
			return true
		}
		sum, zero, err := sumBlock(d, b, size)
		if err != nil || zero && !zeroToo {
			return false
		}
		f.at[f.n] = fingerprintBlock{uint32(b), sum}
		f.n++
		return true
	}
	for _, b := range fixedBlocks {
		add(b, true)
	}
	add(blocks-1, true)
	// The other blocks are spread over the disk; those with data are preferred.
	for i := range spreadBlocks {
		from, n := i*blocks/spreadBlocks, max((i+1)*blocks/spreadBlocks-i*blocks/spreadBlocks, 1)
		if !add(from+rand.Int64N(n), false) {
			add(from+rand.Int64N(n), true)
		}
	}
}

// refresh sums the blocks that have changed.
func (f *fingerprint) refresh(d Disk, size int64, changed func(block int64) bool) {
	kept := 0
	for _, b := range f.at[:f.n] {
		if changed(int64(b.block)) {
			sum, _, err := sumBlock(d, int64(b.block), size)
			if err != nil {
				continue
			}
			b.sum = sum
		}
		f.at[kept] = b
		kept++
	}
	f.n = kept
}

// blockLength returns how much of a block is on a disk of size bytes.
func blockLength(block, size int64) int64 { return min(BlockSize, size-block*BlockSize) }

func zeroBlockSum(block, size int64) uint32 {
	return crc32.Checksum(zeroes[:blockLength(block, size)], castagnoli)
}

func sumBlock(d Disk, block, size int64) (sum uint32, zero bool, err error) {
	buf := buffers.Get().(*[256 << 10]byte)
	defer buffers.Put(buf)
	p := buf[:blockLength(block, size)]
	if err := readFull(d, p, block*BlockSize); err != nil {
		return 0, false, err
	}
	return crc32.Checksum(p, castagnoli), isZero(p), nil
}

// check returns ErrIdentity if d is not the disk of the fingerprint. j has the content
// that was replaced since; nil: none was. With loose, the disk's own guest may have
// changed it meanwhile: then one block that is unchanged is enough, and it must be one
// with data if there were any with data. If there are fewer than atLeast, nothing can be
// told and it returns nil.
func (f *fingerprint) check(ctx context.Context, d Disk, size int64, j *Journal, loose bool, atLeast int) error {
	if f.n == 0 {
		return nil // nobody can tell
	}
	var logged [fingerprintBlocks]bool // blocks that are in the log: what the disk has there tells nothing
	if j != nil {
		err := j.log.replay(ctx, func(block, n int64, p []byte) error {
			for i, b := range f.at[:f.n] {
				if at := int64(b.block) - block; at >= 0 && at <= (n-1)/BlockSize {
					logged[i] = true
				}
			}
			return nil
		})
		if err == nil && j.super.state == Failover { // it may have been copied down
			err = j.eachOwn(ctx, func(block int64, _ blockEntry) error {
				for i, b := range f.at[:f.n] {
					logged[i] = logged[i] || int64(b.block) == block
				}
				return nil
			})
		}
		if err != nil {
			return err
		}
	}
	var other *fingerprintBlock
	var all, same, data, sameData int // blocks that were looked at, and those of them with data
	for i, b := range f.at[:f.n] {
		if logged[i] {
			continue
		}
		sum, _, err := sumBlock(d, int64(b.block), size)
		if err != nil {
			return err
		}
		all++
		hasData := b.sum != zeroBlockSum(int64(b.block), size)
		if hasData {
			data++
		}
		switch {
		case sum != b.sum:
			other = &f.at[i]
		case hasData:
			sameData++
			fallthrough
		default:
			same++
		}
	}
	if data > 0 {
		same, all = sameData, data
	}
	if other == nil || loose && (same > 0 || all < atLeast) {
		return nil
	}
	return fmt.Errorf("%w: the disk's block at %d is not what the journal's disk had there",
		ErrIdentity, int64(other.block)*BlockSize)
}

func (f *fingerprint) append(p []byte) []byte {
	le := binary.LittleEndian
	p = le.AppendUint32(p, uint32(f.n))
	for _, b := range f.at[:f.n] {
		p = le.AppendUint32(le.AppendUint32(p, b.block), b.sum)
	}
	return p
}

// decode reads what append has written for a disk of size bytes, and reports whether it is
// well-formed.
func (f *fingerprint) decode(p []byte, size int64) bool {
	le := binary.LittleEndian
	n := le.Uint32(p)
	if n > fingerprintMax {
		return false
	}
	f.n = int(min(n, fingerprintBlocks))
	for i := range f.at[:f.n] {
		b := fingerprintBlock{le.Uint32(p[4+i*8:]), le.Uint32(p[8+i*8:])}
		if int64(b.block)*BlockSize >= size {
			return false
		}
		f.at[i] = b
	}
	return true
}
