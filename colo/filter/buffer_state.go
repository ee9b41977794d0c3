package filter

import (
	"encoding/binary"
	"fmt"

	"github.com/gocolo/lockstep/vmstate"
)

// Entry returns the entry under which the Buffer is registered in a vmstate.Registry.
// instance is the number of the NIC within the guest.
func (b *Buffer) Entry(instance uint32) vmstate.Entry { return BacklogEntry(instance) }

// BacklogEntry returns the entry of the section that a Buffer loads, and that a Buffer or
// a [Backlog] saves: packets that have not left.
func BacklogEntry(instance uint32) vmstate.Entry {
	return vmstate.Entry{Name: "lockstep-net-buffer", Instance: instance, Version: 1, MinVersion: 1}
}

// A Backlog has the packets that were sent before the mark and have not left, for a primary
// without a Buffer to save in its place. The secondary loads them into a Buffer. The
// owner of a Backlog fills it anew for each checkpoint, and uses it on the goroutine that
// saves.
type Backlog struct{ m image }

// Reset empties the Backlog and keeps its memory.
func (l *Backlog) Reset() { l.m = image{data: l.m.data[:0]} }

// Add appends a copy of p.
func (l *Backlog) Add(p []byte) { l.m.add(p) }

// Save writes the section. A Backlog has no method VMState, since it does not load.
func (l *Backlog) Save(f *vmstate.Fields) {
	f.Uint32("frames", &l.m.frames)
	f.Uint32("size", &l.m.size)
	f.Bytes("data", l.m.data)
}

// An image is packets back to back, each behind its be32 length.
type image struct {
	frames uint32
	size   uint32
	data   []byte
}

// frame returns the packet that begins at i.
func (m *image) frame(i int) []byte {
	n := int(binary.BigEndian.Uint32(m.data[i:]))
	return m.data[i+4 : i+4+n : i+4+n]
}

// left returns how many bytes there are from i on.
func (m *image) left(i int) int { return len(m.data) - i }

func (m *image) add(p []byte) {
	m.data = binary.BigEndian.AppendUint32(m.data, uint32(len(p)))
	m.data = append(m.data, p...)
	m.frames++
	m.size = uint32(len(m.data))
}

// check checks that the image is divided into whole packets of valid lengths.
func (m *image) check() error {
	data, n := m.data, uint32(0)
	for ; len(data) > 0; n++ {
		if len(data) < 4 {
			return fmt.Errorf("packet %d: %w: its length is cut", n, ErrFrame)
		}
		switch k := binary.BigEndian.Uint32(data); {
		case k > MaxFrame:
			return fmt.Errorf("packet %d: %w: %d bytes", n, ErrFrameTooBig, k)
		case k == 0, int(k) > len(data)-4:
			return fmt.Errorf("packet %d: %w: %d bytes where %d are left", n, ErrFrame, k, len(data)-4)
		default:
			data = data[4+k:]
		}
	}
	if n != m.frames {
		return fmt.Errorf("%w: %d packets where %d were announced", ErrFrame, n, m.frames)
	}
	return nil
}

// maxImage returns the greatest length of an image, in bytes. It is twice the limit: one
// limit for inherited packets that have not left, one for the guest's own since.
func (b *Buffer) maxImage() int { return 2 * b.cfg.Limit }

// PreSave gathers every packet that was sent before the last mark (without a
// session: ever) and has not been written. (A vmstate.PreSaver.)
func (b *Buffer) PreSave() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := image{data: b.saved.data[:0]}
	if b.mode != rolledBack {
		for i := b.at; i < len(b.inherits.data); {
			p := b.inherits.frame(i)
			m.add(p)
			i += 4 + len(p)
		}
	}
	upto := b.taken
	if b.mode == holding {
		upto = b.freed
		if k := len(b.marks); k > 0 {
			upto = b.marks[k-1].before
		}
	}
	b.own.each(int(upto.n-b.gone.n), m.add)
	b.saved = m
	if len(m.data) > b.maxImage() {
		return fmt.Errorf("%w: %d bytes to save, at most %d", ErrFull, len(m.data), b.maxImage())
	}
	return nil
}

// VMState names the packets that have not left. (A vmstate.Device.)
//
// Loading touches nothing but a staging area, which becomes what the guest
// inherits in PostLoad, that is when the checkpoint is committed; a load that
// is rolled back leaves the Buffer as it was. What is loaded is bounded by
// twice the Limit and checked packet by packet: it fails with
// vmstate.ErrBounds, [ErrFrameTooBig] or [ErrFrame].
func (b *Buffer) VMState(f *vmstate.Fields) {
	m := &b.saved
	if f.Loading() {
		m = &b.staged
	}
	f.Uint32("frames", &m.frames)
	f.Uint32("size", &m.size)
	f.Bytes("data", vmstate.Resize(f, &m.data, uint64(m.size), b.maxImage()))
	if f.Loading() && f.Err() == nil {
		if err := m.check(); err != nil {
			f.Fail(&Error{Op: "load", Offset: -1, Err: err})
		}
	}
}

// PostLoad makes what was loaded the packets that the guest inherits, in the
// place of those of the last commit. From now on nothing leaves until a
// Failover. (A vmstate.PostLoader.)
func (b *Buffer) PostLoad(uint32) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mode != rolledBack {
		b.mode, b.next = rolledBack, 0
	}
	if b.flying == inherited {
		b.flying = orphaned
	}
	b.inherits, b.at = b.staged, 0
	b.staged = image{}
	return nil
}
