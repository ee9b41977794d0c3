package replication

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"
)

const sumSize = sha256.Size

// Sums is a read-only disk whose content is the SHA-256 checksums of the chunks of another
// disk: 32 bytes for each ChunkSize bytes, in order, and zeroes up to a whole sector. A
// sum is computed when it is read, except that of a hole, which is known. A primary that
// reads it, exported beside the disk, finds the differences without reading the whole disk
// over the network.
type Sums struct {
	d Disk
}

var _ Disk = (*Sums)(nil)

// NewSums returns the checksums of d. Reading them reads d.
func NewSums(d Disk) *Sums { return &Sums{d} }

// Size implements [Disk].
func (s *Sums) Size() int64 {
	n := (s.d.Size() + ChunkSize - 1) / ChunkSize * sumSize
	return (n + SectorSize - 1) / SectorSize * SectorSize
}

// ReadAt implements io.ReaderAt.
func (s *Sums) ReadAt(p []byte, off int64) (int, error) {
	return s.ReadContext(context.Background(), p, off)
}

// ReadContext does what ReadAt does, and ends early, with ctx's error, when ctx ends: a read of
// 32 MiB reads 64 GiB of the disk. An nbd.Export calls it in the place of ReadAt, so that the
// read ends with the connection of the client that asked.
func (s *Sums) ReadContext(ctx context.Context, p []byte, off int64) (int, error) {
	if err := checkRange(off, int64(len(p)), s.Size()); err != nil {
		return 0, err
	}
	clear(p)
	buf := make([]byte, ChunkSize)
	chunks := chunkSums{d: s.d, end: min((off+int64(len(p))+sumSize-1)/sumSize*ChunkSize, s.d.Size())}
	for pos := off / sumSize * sumSize; pos < off+int64(len(p)); pos += sumSize {
		at := pos / sumSize * ChunkSize
		if at >= s.d.Size() {
			break
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		sum, err := chunks.at(at, buf)
		if err != nil {
			return 0, err
		}
		if pos < off {
			copy(p, sum[off-pos:])
		} else {
			copy(p[pos-off:], sum[:])
		}
	}
	return len(p), nil
}

// zeroSum is the sum of a whole chunk of zeroes.
var zeroSum = sync.OnceValue(func() [sumSize]byte { return sha256.Sum256(zeroes[:ChunkSize]) })

// chunkSums computes the sums of the chunks of a disk, one after another up to
// end. Holes are not read.
type chunkSums struct {
	d    Disk
	end  int64
	zero int64 // up to where the disk is known to be zero, from the last look at it
	data int64 // up to where it is known to have data
}

func (c *chunkSums) at(off int64, buf []byte) (sum [sumSize]byte, err error) {
	n := min(ChunkSize, c.d.Size()-off)
	if off >= max(c.zero, c.data) {
		if c.zero = off + zeroPrefix(c.d, off, c.end-off); c.zero < off+n {
			extentsOrData(c.d, off, c.end-off, func(m int64, flags uint32) bool {
				if flags&ExtentZero != 0 && m >= ChunkSize {
					return false
				}
				c.data = max(c.data, off) + m
				return true
			})
		}
	}
	if n == ChunkSize && off+n <= c.zero {
		return zeroSum(), nil
	}
	if err := readFull(c.d, buf[:n], off); err != nil {
		return sum, err
	}
	return sha256.Sum256(buf[:n]), nil
}

// WriteAt fails.
func (s *Sums) WriteAt([]byte, int64) (int, error) {
	return 0, fmt.Errorf("%w: checksums are only read", ErrRange)
}

// Sync does nothing.
func (s *Sums) Sync() error { return nil }

// MismatchError says where two disks differ that should not.
type MismatchError struct {
	Off, Len int64 // the first chunk that differs
	Bytes    int64 // length of all chunks found to differ
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("replication: the disks differ in %d bytes, first in the %d at %d", e.Bytes, e.Len, e.Off)
}

// Verify compares local with the checksums that [Sums] yields of another disk
// of the same size, and returns the chunks that differ. It reads sums, which
// may be a connection to them, step by step, and ends early with ctx's error.
// Both disks should stand still, or what is written meanwhile may appear to
// differ.
func Verify(ctx context.Context, local Disk, sums io.ReaderAt) (*Bitmap, error) {
	differ := NewBitmap(local.Size())
	buf := make([]byte, copyStep)
	for off := int64(0); off < local.Size(); off += copyStep {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		hole := zeroPrefix(local, off, min(holeStep, local.Size()-off))
		if hole -= hole % copyStep; hole > 0 { // with nothing to be read
			if err := compareZeroes(sums, off, hole, differ.Set); err != nil {
				return nil, err
			}
			off += hole - copyStep
			continue
		}
		step := buf[:min(copyStep, local.Size()-off)]
		if err := readFull(local, step, off); err != nil {
			return nil, err
		}
		if err := compareSums(sums, off, step, func(at, n int64) { differ.Set(at, n) }); err != nil {
			return nil, err
		}
	}
	return differ, nil
}

// Preflight compares some chunks, spread over the disk with its first and last among
// them, and returns a *MismatchError if any differs: a cheap way to notice that the wrong
// image was taken, before its owner's promise that both are in sync is believed. Only
// Verify is certain.
func Preflight(ctx context.Context, local Disk, sums io.ReaderAt, chunks int) error {
	total := (local.Size() + ChunkSize - 1) / ChunkSize
	n := min(int64(max(chunks, 2)), total)
	buf := make([]byte, ChunkSize)
	var bad MismatchError
	for i := range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		off := int64(0)
		if n > 1 {
			off = i * (total - 1) / (n - 1) * ChunkSize
		}
		chunk := buf[:min(ChunkSize, local.Size()-off)]
		if err := readFull(local, chunk, off); err != nil {
			return err
		}
		err := compareSums(sums, off, chunk, func(at, n int64) {
			if bad.Bytes == 0 {
				bad.Off, bad.Len = at, n
			}
			bad.Bytes += n
		})
		if err != nil {
			return err
		}
	}
	if bad.Bytes > 0 {
		return &bad
	}
	return nil
}

// compareSums compares p, the content of chunks from off on, with their sums
// and calls differ for each chunk that is not the same.
func compareSums(sums io.ReaderAt, off int64, p []byte, differ func(off, n int64)) error {
	var theirs chunkTable
	if err := theirs.read(sums, off, len(p)); err != nil {
		return err
	}
	theirs.compare(off, p, differ)
	return nil
}

// chunkTable has the sums of as many chunks as are compared at a time.
type chunkTable [copyStep / ChunkSize][sumSize]byte

// read reads the sums of the n bytes from off on, with which a chunk begins.
func (t *chunkTable) read(sums io.ReaderAt, off int64, n int) error {
	var table [len(t) * sumSize]byte
	theirs := table[:(n+ChunkSize-1)/ChunkSize*sumSize]
	if err := readFull(sums, theirs, off/ChunkSize*sumSize); err != nil {
		return fmt.Errorf("replication: checksums: %w", err)
	}
	for i := range theirs[:len(theirs)/sumSize] {
		t[i] = [sumSize]byte(theirs[i*sumSize:])
	}
	return nil
}

// isSum reports whether sum is that of p, a chunk. The other disk may have grown already where p is the last chunk, and
// not a whole one: then it has zeroes behind p.
func isSum(sum [sumSize]byte, p []byte) bool {
	if sha256.Sum256(p) == sum {
		return true
	}
	if len(p) == ChunkSize {
		return false
	}
	h := sha256.New()
	h.Write(p)
	for n := len(p); n+SectorSize <= ChunkSize; n += SectorSize {
		h.Write(zeroes[:SectorSize])
		if [sumSize]byte(h.Sum(nil)) == sum {
			return true
		}
	}
	return false
}

// compare compares p, the content from off on, with the sums that were read, and calls differ for
// each chunk that is not the same.
func (t *chunkTable) compare(off int64, p []byte, differ func(off, n int64)) {
	for i := 0; len(p) > 0; i++ {
		c := min(len(p), ChunkSize)
		if !isSum(t[i], p[:c]) {
			differ(off, int64(c))
		}
		off, p = off+int64(c), p[c:]
	}
}
