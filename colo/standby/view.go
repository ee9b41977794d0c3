package standby

import (
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// View shows a Copy in the state of one checkpoint. Later checkpoints do not wait for its
// reader: a page that one of them replaces, and that was not read yet, is copied aside
// first. It serves one Put, from any goroutine; Close ends it.
type View struct {
	g     *Copy
	epoch uint64
	blob  []byte // the device state with its EOF
	text  []byte // the JSON of the stream's description

	// Guarded by g.mu.
	block, page int // the next to be read; those before it are not kept
	aside       arena
	kept        []aside // for each block, the pages that were put aside
	put         bool    // Put was called
	err         error   // why it cannot be read any more
}

// aside has the pages of a block that the view has copied, because the image no longer has them
// as they were.
type aside struct {
	has  ram.Bitmap
	slot []uint32 // where; valid if has says so
}

// NewView returns a view of the last whole checkpoint, or [ErrNothing]. At most max
// bytes of pages are copied aside for it; a checkpoint that would need more ends the
// view, see [ErrStale], and counts all the same. Closing the Copy ends it, too.
func (g *Copy) NewView(max uint64) (*View, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.born {
		return nil, ErrNothing
	}
	g.settle()
	text, err := g.desc.of(&g.cur)
	if err != nil {
		return nil, err
	}
	v := &View{g: g, epoch: g.epoch, blob: append([]byte(nil), g.cur.blob...), text: text, aside: arena{max: max / ram.PageSize}}
	for i := range g.img.blocks {
		n := len(g.img.blocks[i].mem) / ram.PageSize
		v.kept = append(v.kept, aside{has: ram.NewBitmap(n), slot: make([]uint32, n)})
	}
	if g.views == nil {
		g.views = make(map[*View]bool)
	}
	g.views[v] = true
	return v, nil
}

// Epoch returns the number of the checkpoint; 0 is the initial migration.
func (v *View) Epoch() uint64 { return v.epoch }

// keep copies a page aside that is about to be replaced. g.mu is held.
func (v *View) keep(b *block, block, page int) {
	k := &v.kept[block]
	switch {
	case block < v.block || block == v.block && page < v.page || k.has.Has(page):
		return
	case !b.data.Has(page):
		k.slot[page] = zeroSlot
	default:
		n, err := v.aside.take()
		if err != nil {
			v.end(fmt.Errorf("%w: %d bytes are not enough", ErrStale, v.aside.max*ram.PageSize))
			return
		}
		copy(v.aside.page(n), b.page(page))
		k.slot[page] = n
	}
	k.has.Set(page)
}

// end frees the pages that were copied aside. g.mu is held.
func (v *View) end(why error) {
	if v.err == nil {
		v.err = why
	}
	delete(v.g.views, v)
	v.aside.free() // of mappings of its own, which cannot fail
	v.kept = nil
}

// Close frees the pages that were copied aside. A Put that runs ends with an error. It
// may be called more than once.
func (v *View) Close() error {
	v.g.mu.Lock()
	defer v.g.mu.Unlock()
	v.end(ErrStale)
	return nil
}

// viewPages is how many pages are read at a time, with the Copy locked.
const viewPages = 64

// Put writes the view as [Copy.Put] writes the guest, and flushes w. Its errors are
// w's, [ErrStale] if more has changed than the view may keep, it was closed or this is
// not the first Put, and [ErrNothing] if the Copy was closed. What was written before such an
// error is no whole stream.
func (v *View) Put(w *qemufile.Writer) error {
	g := v.g
	g.mu.Lock()
	err := v.err
	if err == nil && v.put {
		err = fmt.Errorf("%w: it was read before, and does not keep that", ErrStale)
	}
	v.put = true
	var blocks []ram.BlockInfo
	var total uint64
	var id uint32
	if err == nil {
		blocks, total, id = g.blockList(), g.img.total, g.ram.ID
		v.block, v.page = 0, 0
		g.putHead(w, blocks, total)
	}
	g.mu.Unlock()
	if err != nil {
		return err
	}
	buf := make([]byte, viewPages*ram.PageSize)
	for bi := range blocks {
		rec := ram.Record{Block: blocks[bi].Name}
		for at, n := 0, int(blocks[bi].Length/ram.PageSize); at < n; at += viewPages {
			count := min(viewPages, n-at)
			data, err := v.read(bi, at, count, buf)
			if err != nil {
				return err
			}
			for i := range count {
				rec.Offset = uint64(at+i) * ram.PageSize
				rec.Kind, rec.Data = ram.KindZero, nil
				if data&(1<<i) != 0 {
					rec.Kind, rec.Data = ram.KindPage, buf[i*ram.PageSize:(i+1)*ram.PageSize]
				}
				rec.Put(w, ram.Format{})
				rec.Continue = true
			}
			if err := w.Flush(); err != nil { // buf is used again
				return err
			}
		}
	}
	g.putEOS(w, id)
	w.WriteRef(v.blob)
	vmstate.PutDescription(w, v.text)
	return w.Flush()
}

// read copies pages from one on, and says in a bit of each whether it holds data.
func (v *View) read(bi, from, count int, buf []byte) (data uint64, err error) {
	g := v.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if v.err != nil {
		return 0, v.err
	}
	b, k := &g.img.blocks[bi], &v.kept[bi]
	for i := range count {
		var page []byte
		switch n := from + i; {
		case k.has.Has(n) && k.slot[n] != zeroSlot:
			page = v.aside.page(k.slot[n])
		case !k.has.Has(n) && b.data.Has(n):
			page = b.page(n)
		default:
			continue
		}
		data |= 1 << i
		copy(buf[i*ram.PageSize:], page)
	}
	v.block, v.page = bi, from+count
	return data, nil
}
