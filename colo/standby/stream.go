package standby

import (
	"encoding/json"
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// Put writes the last whole checkpoint as a complete migration stream: header,
// configuration, memory, device sections, description. A QEMU of the same
// machine takes it with -incoming, and so does every reader of package vmstate.
// It flushes w and returns its error, or [ErrNothing].
//
// The guest does not change meanwhile: a checkpoint that comes waits. See
// [Copy.NewView] for one that it need not wait for.
func (g *Copy) Put(w *qemufile.Writer) error { return g.PutFresh(w, nil) }

// PutFresh does what [Copy.Put] does, for a QEMU that was just started, most of whose
// memory is still zeros. Of the pages that are zeros in the checkpoint it writes only those
// that may be something else there: a QEMU looks at each page that it is sent, and 8 GB are
// two million.
//
// used returns which pages those are: for a block with that many pages of [ram.PageSize] a
// bitmap of that length, which PutFresh changes, or nil for all pages if it does not know. It
// is called once for each block, after what comes before the pages has been flushed
// and before any page is written. So it may wait until the QEMU has read that, and thus has put
// into its memory whatever it does by itself. The Copy is locked meanwhile; used
// must not call its methods.
func (g *Copy) PutFresh(w *qemufile.Writer, used func(block string, pages int) ram.Bitmap) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.born {
		return ErrNothing
	}
	g.settle()
	g.putHead(w, g.blockList(), g.img.total)
	told := make([]ram.Bitmap, len(g.img.blocks))
	if used != nil {
		if err := w.Flush(); err != nil {
			return err
		}
		for i := range g.img.blocks {
			b := &g.img.blocks[i]
			told[i] = used(b.name, len(b.mem)/ram.PageSize)
			if told[i] != nil && len(told[i]) != len(b.data) { // of another length
				told[i] = nil
			}
		}
	}
	for i := range g.img.blocks {
		if err := g.img.blocks[i].put(w, told[i]); err != nil {
			return err
		}
	}
	g.putEOS(w, g.ram.ID)

	w.WriteRef(g.cur.blob) // with its EOF
	text, err := g.desc.of(&g.cur)
	if err != nil {
		return err
	}
	vmstate.PutDescription(w, text)
	return w.Flush()
}

// putHead writes a stream up to where the pages come. g.mu is held.
func (g *Copy) putHead(w *qemufile.Writer, blocks []ram.BlockInfo, total uint64) {
	vmstate.PutFileHeader(w)
	if !g.bare.configuration {
		vmstate.PutConfiguration(w, g.conf)
	}
	h := g.ram
	h.Type = vmstate.SectionStart
	h.Put(w)
	list := ram.Record{Kind: ram.KindBlockList, Total: total, Blocks: blocks}
	list.Put(w, ram.Format{})
	g.putEOS(w, h.ID)
	h.Type = vmstate.SectionEnd
	h.Put(w)
}

func (g *Copy) putEOS(w *qemufile.Writer, id uint32) {
	eos := ram.Record{Kind: ram.KindEOS}
	eos.Put(w, ram.Format{})
	if !g.bare.footers {
		vmstate.PutFooter(w, id)
	}
}

// put writes the pages of a block. Zero pages are written too, unless used is given
// and does not have them: a QEMU has firmware in some blocks before it is told what
// they hold.
func (b *block) put(w *qemufile.Writer, used ram.Bitmap) error {
	pages := len(b.mem) / ram.PageSize
	if used == nil {
		used = ram.NewBitmap(pages)
		used.SetRange(0, pages)
	}
	used.Or(b.data)
	rec := ram.Record{Block: b.name}
	for i, n := used.Next(0), 0; i >= 0 && i < pages; i, n = used.Next(i+1), n+1 {
		rec.Offset = uint64(i) * ram.PageSize
		rec.Kind, rec.Data = ram.KindZero, nil
		if b.data.Has(i) {
			rec.Kind, rec.Data = ram.KindPage, b.page(i)
		}
		rec.Put(w, ram.Format{})
		rec.Continue = true
		if n%1024 == 0 && w.Err() != nil {
			break
		}
	}
	return w.Err()
}

// description is the description of the devices in the initial migration.
type description struct {
	pageSize int64
	devices  []json.RawMessage // the descriptions of the devices, as in VMDesc.Devices
	parsed   *vmstate.VMDesc
}

func (d *description) parse(text []byte, parsed *vmstate.VMDesc) error {
	var top struct {
		PageSize int64             `json:"page_size"`
		Devices  []json.RawMessage `json:"devices"`
	}
	if err := json.Unmarshal(text, &top); err != nil {
		return fmt.Errorf("%w: %w", vmstate.ErrDescription, err)
	}
	if parsed == nil || len(top.Devices) != len(parsed.Devices) {
		return fmt.Errorf("%w: %d devices", vmstate.ErrDescription, len(top.Devices))
	}
	d.pageSize, d.devices, d.parsed = top.PageSize, top.Devices, parsed
	return nil
}

// of returns the description of a state. A section that has another shape than in the
// initial migration, because a subsection came or went, is described as a buffer of its
// length, as QEMU describes devices whose fields it does not know.
func (d *description) of(s *state) ([]byte, error) {
	raw := make(map[*vmstate.DeviceDesc]json.RawMessage, len(d.devices))
	for i := range d.parsed.Devices {
		raw[&d.parsed.Devices[i]] = d.devices[i]
	}
	text := fmt.Appendf(nil, `{"page_size": %d, "devices": [`, d.pageSize)
	for i, sec := range s.sections {
		if i > 0 {
			text = append(text, ", "...)
		}
		if sec.desc != nil && sec.desc.Len() == int64(len(sec.body)) {
			text = append(text, raw[sec.desc]...)
			continue
		}
		name, err := json.Marshal(sec.Name)
		if err != nil {
			return nil, err
		}
		text = fmt.Appendf(text, `{"name": %s, "instance_id": %d, "size": %d, "fields": [{"name": "data", "size": %d, "type": "buffer"}]}`,
			name, sec.Instance, len(sec.body), len(sec.body))
	}
	return append(text, "]}"...), nil
}
