package standby

import (
	"fmt"
	"math"

	"github.com/gocolo/lockstep/internal/mapping"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// image is the guest's memory: one copy of it, and beside it the pages of the
// checkpoint that is being received.
type image struct {
	blocks []block
	index  map[string]int
	total  uint64 // bytes of all blocks

	pages     arena
	staged    int  // pages that have a slot
	committed bool // what is staged counts, and waits for settle
	last      int  // index of the block last found: records come in runs
}

// block is a RAM block of the guest, with the pages that a checkpoint has staged for it.
type block struct {
	name string
	mem  []byte
	data ram.Bitmap // pages of mem that may hold something else than zeros
	has  ram.Bitmap // pages that are staged
	slot []uint32   // where; valid if has says so
}

// zeroSlot stands for a staged page of zeros.
const zeroSlot = ^uint32(0)

func newImage(list []ram.BlockInfo, total, maxRAM, maxStaged uint64) (*image, error) {
	if total > maxRAM {
		return nil, fmt.Errorf("%w: %d bytes of memory, at most %d", ErrTooLarge, total, maxRAM)
	}
	m := &image{index: make(map[string]int, len(list)), total: total, pages: arena{max: maxStaged / ram.PageSize}}
	for i, b := range list {
		if b.Length%ram.PageSize != 0 {
			m.close()
			return nil, fmt.Errorf("%w: block %q of %d bytes", ErrBlocks, b.Name, b.Length)
		}
		if b.Length > math.MaxInt {
			m.close()
			return nil, fmt.Errorf("%w: block %q of %d bytes, more than a process of this machine has", ErrTooLarge, b.Name, b.Length)
		}
		mem, err := mapping.New(int(b.Length))
		if err != nil {
			m.close()
			return nil, err
		}
		n := len(mem) / ram.PageSize
		m.blocks = append(m.blocks, block{
			name: b.Name, mem: mem, data: ram.NewBitmap(n), has: ram.NewBitmap(n), slot: make([]uint32, n),
		})
		m.index[b.Name] = i
	}
	return m, nil
}

// same reports an error if list is not the one that the image was made from.
func (m *image) same(list []ram.BlockInfo) error {
	if len(list) != len(m.blocks) {
		return fmt.Errorf("%w: %d blocks, not %d", ErrBlocks, len(list), len(m.blocks))
	}
	for i := range list {
		if b := &m.blocks[i]; list[i].Name != b.name || list[i].Length != uint64(len(b.mem)) {
			return fmt.Errorf("%w: %q of %d bytes where %q of %d was", ErrBlocks, list[i].Name, list[i].Length, b.name, len(b.mem))
		}
	}
	return nil
}

// find returns the block and page of a record. A Walker has checked both
// against the block list.
func (m *image) find(rec *ram.Record) (*block, int, error) {
	if m.last >= len(m.blocks) || m.blocks[m.last].name != rec.Block {
		i, ok := m.index[rec.Block]
		if !ok {
			return nil, 0, ram.ErrUnknownBlock
		}
		m.last = i
	}
	b := &m.blocks[m.last]
	if rec.Offset >= uint64(len(b.mem)) {
		return nil, 0, ram.ErrOffset
	}
	return b, int(rec.Offset / ram.PageSize), nil
}

// load puts the page of a record into the image at once, in the initial migration, before
// there is a guest.
func (m *image) load(rec *ram.Record) error {
	b, i, err := m.find(rec)
	if err != nil {
		return err
	}
	if rec.Kind == ram.KindZero && rec.Fill == 0 {
		b.zero(i)
		return nil
	}
	b.data.Set(i)
	return rec.Apply(b.page(i))
}

// stage keeps a record's page beside the image.
func (m *image) stage(rec *ram.Record) error {
	b, i, err := m.find(rec)
	if err != nil {
		return err
	}
	fresh := !b.has.Has(i)
	if rec.Kind == ram.KindZero && rec.Fill == 0 {
		switch {
		case fresh:
			b.has.Set(i)
			m.staged++
			b.slot[i] = zeroSlot
		case b.slot[i] != zeroSlot: // a slot is kept, so that none is used twice
			clear(m.pages.page(b.slot[i]))
		}
		return nil
	}
	if fresh || b.slot[i] == zeroSlot {
		n, err := m.pages.take()
		if err != nil {
			return err
		}
		if rec.Kind == ram.KindXBZRLE { // a difference to what the peer thinks is here
			switch {
			case !fresh || !b.data.Has(i):
				clear(m.pages.page(n))
			default:
				copy(m.pages.page(n), b.page(i))
			}
		}
		b.slot[i] = n
		if fresh {
			b.has.Set(i)
			m.staged++
		}
	}
	return rec.Apply(m.pages.page(b.slot[i]))
}

// settle moves the committed pages into the image. For each page it calls before, if that is
// not nil, before it replaces the page, and seen afterwards.
func (m *image) settle(before, seen func(block, page int)) {
	if !m.committed {
		return
	}
	m.each(func(bi, i int) {
		b := &m.blocks[bi]
		if before != nil {
			before(bi, i)
		}
		if s := b.slot[i]; s == zeroSlot {
			b.zero(i)
		} else {
			copy(b.page(i), m.pages.page(s))
			b.data.Set(i)
		}
		seen(bi, i)
	})
	m.drop()
}

// drop forgets what is staged.
func (m *image) drop() {
	if m.staged > 0 {
		for i := range m.blocks {
			clear(m.blocks[i].has)
		}
	}
	m.staged, m.committed = 0, false
	m.pages.used = 0
}

// each calls fn for every staged page, in ascending order.
func (m *image) each(fn func(block, page int)) {
	if m.staged == 0 {
		return
	}
	for bi := range m.blocks {
		has := m.blocks[bi].has
		for i := has.Next(0); i >= 0; i = has.Next(i + 1) {
			fn(bi, i)
		}
	}
}

func (m *image) close() error {
	if m == nil {
		return nil
	}
	err := m.pages.free()
	for i := range m.blocks {
		if e := mapping.Free(m.blocks[i].mem); err == nil {
			err = e
		}
	}
	m.blocks, m.index, m.staged = nil, nil, 0
	return err
}

func (b *block) page(i int) []byte {
	return b.mem[i*ram.PageSize : (i+1)*ram.PageSize : (i+1)*ram.PageSize]
}

// zero fills a page with zeros. It does not touch a page that never held anything else, so
// memory that the guest has not used takes none here either.
func (b *block) zero(i int) {
	if b.data.Has(i) {
		clear(b.page(i))
		b.data.Clear(i)
	}
}

// arena is memory for staged pages. It grows as they come and is kept for the
// next checkpoint.
type arena struct {
	chunks [][]byte
	used   uint32 // slots of the table that are taken
	peak   uint32
	max    uint64 // pages that the image may have
}

// chunkPages is 8 MB, which has whole huge pages in it wherever it begins. It
// costs address space; memory is taken as pages come.
const chunkPages = 2048

func (a *arena) take() (uint32, error) {
	if uint64(a.used) >= min(a.max, uint64(zeroSlot)) {
		return 0, fmt.Errorf("%w: a checkpoint of more than %d pages", ErrTooLarge, a.max)
	}
	if int(a.used/chunkPages) == len(a.chunks) {
		c, err := mapping.New(chunkPages * ram.PageSize)
		if err != nil {
			return 0, err
		}
		huge(c)
		a.chunks = append(a.chunks, c)
	}
	a.used++
	a.peak = max(a.peak, a.used)
	return a.used - 1, nil
}

func (a *arena) page(n uint32) []byte {
	off := n % chunkPages * ram.PageSize
	return a.chunks[n/chunkPages][off : off+ram.PageSize : off+ram.PageSize]
}

// bytes returns the most memory that was used so far.
func (a *arena) bytes() uint64 { return uint64(a.peak) * ram.PageSize }

func (a *arena) free() error {
	var first error
	for _, c := range a.chunks {
		if err := mapping.Free(c); first == nil {
			first = err
		}
	}
	a.chunks, a.used = nil, 0
	return first
}
