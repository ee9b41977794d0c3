package replication

import "errors"

// Flags of an extent. They are those of the metadata context base:allocation
// of the NBD protocol, so that one passes through a server as it is.
const (
	ExtentHole = 1 << 0 // there is no storage behind it
	ExtentZero = 1 << 1 // it reads as zeroes
)

// ExtentReader is a disk, or a [Remote], that knows which of its parts are holes.
type ExtentReader interface {
	// Extents calls yield with one extent after another, of n bytes and with
	// the flags above, that together cover [off, off+n) from off on, until
	// yield returns false. Neighbours may have the same flags. The flags of
	// an extent are those of some moment between the call and yield: a caller
	// who acts on them keeps writers out. The error is errors.ErrUnsupported,
	// with nothing yielded, where the other side cannot tell.
	Extents(off, n int64, yield func(n int64, flags uint32) bool) error
}

// Extents calls d.Extents if d has that method and supports it. Otherwise it yields the
// range as one extent of data.
func Extents(d any, off, n int64, yield func(n int64, flags uint32) bool) error {
	if x, ok := d.(ExtentReader); ok {
		if err := x.Extents(off, n, yield); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	if n > 0 {
		yield(n, 0)
	}
	return nil
}

// extentsOrData calls yield as Extents does. If d returns an error, it yields the rest of
// the range as data: reading that part will show what is wrong.
func extentsOrData(d any, off, n int64, yield func(n int64, flags uint32) bool) {
	more := true
	err := Extents(d, off, n, func(m int64, flags uint32) bool {
		off, n = off+m, n-m
		more = yield(m, flags)
		return more
	})
	if err != nil && more && n > 0 {
		yield(n, 0)
	}
}

var (
	_ ExtentReader = (*File)(nil)
	_ ExtentReader = (*Primary)(nil)
	_ ExtentReader = (*Secondary)(nil)
	_ ExtentReader = incoming{}
	_ ExtentReader = diskRemote{}
)

// Extents implements [ExtentReader] with the file system's knowledge. Where it has none,
// as for a block device, Extents yields the whole range as data.
func (d *File) Extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	if err := checkRange(off, n, d.size.Load()); err != nil {
		return err
	}
	for end := off + n; off < end; {
		if err := d.abandoned.Load(); err != nil {
			return *err
		}
		next, hole, err := fileExtent(d.f, off, end)
		if err != nil {
			return err
		}
		var flags uint32
		if hole {
			flags = ExtentHole | ExtentZero
		}
		if !yield(next-off, flags) {
			return nil
		}
		off = next
	}
	return nil
}

// Extents implements [ExtentReader] with the extents of the local disk.
func (p *Primary) Extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	return Extents(p.local, off, n, yield)
}

// DirtyExtents yields, as [Bitmap.Extents] does, the parts that the secondary does not
// have, and that Synchronise would copy; see [Primary.Dirty].
func (p *Primary) DirtyExtents(off, n int64, yield func(n int64, flags uint32) bool) error {
	return p.lacking().extents(off, n, yield)
}

// Extents implements [ExtentReader]. In state Done it yields the extents of the
// disk. Before that, overlays lie over the disk, and it yields the whole range
// as data.
func (s *Secondary) Extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	if err := checkRange(off, n, s.size.Load()); err != nil {
		return err
	}
	switch s.State() {
	case None:
		return ErrNotRunning
	case Done:
		return Extents(s.disk, off, n, yield)
	}
	return Extents(nil, off, n, yield)
}

// Extents implements [ExtentReader] with the extents of the secondary disk.
func (x incoming) Extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	if err := checkRange(off, n, x.s.size.Load()); err != nil {
		return err
	}
	if st := x.s.State(); st != None && st != Running {
		return ErrGated
	}
	return Extents(x.s.disk, off, n, yield)
}

func (r diskRemote) Extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	return Extents(r.d, off, n, yield)
}

// BitmapDirty is the flag of an extent of a [Bitmap] whose bits are set.
const BitmapDirty = 1 << 0

// Extents yields the parts of [off, off+n) within which the bits are all set, with
// BitmapDirty, or all clear.
func (b *Bitmap) Extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	return union{b.bits.Load()}.extents(off, n, yield)
}
