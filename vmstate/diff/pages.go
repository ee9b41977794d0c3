package diff

import (
	"fmt"
	"hash/maphash"
	"io"
	"slices"

	"github.com/gocolo/lockstep/vmstate/ram"
)

// A Block is a RAM block.
type Block struct {
	Name   string
	Length uint64 // bytes
	// Came counts the pages that have come, each once. Pages that never came compare as
	// zeros, since that is what a fresh destination has there.
	Came int64
	// Mapped says that the file has zeros where it has no page.
	Mapped bool

	base   int64 // of its contents in the scratch file
	pieces map[uint64]*piece
}

// pieceLen is how many pages a piece is about.
const pieceLen = 512

// piece has a hash for each page: 0 for a page of zeros, and for one that has not come.
type piece struct {
	hash [pieceLen]uint64
	came [pieceLen / 64]uint64
}

// seed makes the hashes of one process comparable. Pages are compared by hashes of 63
// bits: two pages that differ have the same hash once in 2^63 comparisons.
var seed = maphash.MakeSeed()

// records takes the pages of a RAM section.
func (x *reading) records(rec *ram.Record) error {
	switch rec.Kind {
	case ram.KindBlockList, ram.KindMappedBlock:
		return x.list(rec)
	}
	if !rec.Page() || x.cfg.Shape {
		return nil
	}
	b := x.last
	if b == nil || b.Name != rec.Block {
		i, ok := x.names[rec.Block]
		if !ok {
			return fmt.Errorf("offset %d: a page of block %q, which is not listed", rec.Stream, rec.Block)
		}
		b = &x.s.Blocks[i]
		x.last = b
	}
	return x.take(b, rec)
}

// list takes the blocks of a list, of which a stream may have several, with at most
// [ram.MaxBlocks] together.
func (x *reading) list(rec *ram.Record) error {
	x.last = nil
	if x.names == nil {
		x.names = make(map[string]int)
	}
	for _, info := range rec.Blocks {
		i, ok := x.names[info.Name]
		if !ok && len(x.s.Blocks) == ram.MaxBlocks {
			return fmt.Errorf("offset %d: more than %d blocks: %w", rec.Stream, ram.MaxBlocks, ram.ErrBlockList)
		}
		if !ok {
			i = len(x.s.Blocks)
			x.names[info.Name] = i
			b := Block{Name: info.Name, pieces: make(map[uint64]*piece)}
			if i > 0 {
				before := &x.s.Blocks[i-1]
				b.base = before.base + int64(min(before.Length, 1<<50)) + 1<<20
			}
			x.s.Blocks = append(x.s.Blocks, b)
		}
		x.s.Blocks[i].Length = info.Length
		x.s.Blocks[i].Mapped = x.s.Blocks[i].Mapped || rec.Kind == ram.KindMappedBlock
	}
	return nil
}

func (x *reading) take(b *Block, rec *ram.Record) error {
	size := x.walk.Size()
	if rec.PageSize != 0 {
		size = rec.PageSize
	}
	i := rec.Offset / uint64(size)
	p := b.pieces[i/pieceLen]
	if p == nil {
		if x.left < pieceLen {
			if x.left >= 0 {
				x.left = -1
				x.s.Partial = append(x.s.Partial, "memory is too large to be compared in full")
			}
			return nil
		}
		x.left -= pieceLen
		p = new(piece)
		b.pieces[i/pieceLen] = p
	}
	if word, bit := &p.came[i%pieceLen/64], uint64(1)<<(i%64); *word&bit == 0 {
		*word |= bit
		b.Came++
	}
	data := rec.Data
	if rec.Kind != ram.KindPage {
		x.page = slices.Grow(x.page[:0], size)[:size]
		data = x.page
		clear(data)
		if rec.Kind == ram.KindXBZRLE {
			if x.cfg.Scratch == nil {
				return ErrDelta
			}
			if _, err := x.cfg.Scratch.ReadAt(data, b.base+int64(rec.Offset)); err != nil && err != io.EOF {
				return err
			}
		}
		if err := rec.Apply(data); err != nil {
			return err
		}
	}
	p.hash[i%pieceLen] = hash(data)
	if x.cfg.Scratch != nil {
		if _, err := x.cfg.Scratch.WriteAt(data, b.base+int64(rec.Offset)); err != nil {
			return err
		}
	}
	return nil
}

// hash returns the hash of a page, which is 0 only for a page of zeros.
func hash(page []byte) uint64 {
	if page[0] == 0 && !slices.ContainsFunc(page, func(c byte) bool { return c != 0 }) {
		return 0
	}
	return maphash.Bytes(seed, page) | 1
}

// A Range is pages of a block, from First to Last, both of them.
type Range struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// String returns "0x5" or "0x5-0x9".
func (r Range) String() string {
	if r.First == r.Last {
		return fmt.Sprintf("%#x", r.First)
	}
	return fmt.Sprintf("%#x-%#x", r.First, r.Last)
}

// maxRanges bounds the ranges of one block in a Difference.
const maxRanges = 1 << 10

// differ compares the pages that are within both blocks. It returns how many differ, and
// their ranges, at most maxRanges.
func differ(a, b *Block, pageSize int) (n uint64, ranges []Range) {
	keys := make([]uint64, 0, len(a.pieces))
	for k := range a.pieces {
		keys = append(keys, k)
	}
	for k := range b.pieces {
		if a.pieces[k] == nil {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	var none piece
	pages := min(a.Length, b.Length) / uint64(max(pageSize, 1))
	for _, k := range keys {
		pa, pb := a.pieces[k], b.pieces[k]
		if pa == nil {
			pa = &none
		}
		if pb == nil {
			pb = &none
		}
		for j := range pa.hash {
			i := k*pieceLen + uint64(j)
			if pa.hash[j] == pb.hash[j] || i >= pages {
				continue
			}
			n++
			if last := len(ranges) - 1; last >= 0 && ranges[last].Last == i-1 {
				ranges[last].Last = i
			} else if len(ranges) < maxRanges {
				ranges = append(ranges, Range{i, i})
			}
		}
	}
	return n, ranges
}
