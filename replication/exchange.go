package replication

import (
	"fmt"
	"io"
	"time"
)

// Identified is a [Remote] whose other side knows the identity of its copy. Both methods
// block for up to a round trip.
type Identified interface {
	// Identity returns the identity of the copy on the other side.
	Identity() (Identity, error)
	// Adopt tells the other side the disk and generation of which it is to be a copy from
	// now on. Overwrite in the Identity says that any copy may be overwritten. Otherwise a
	// copy of another disk, or a newer one, is refused, and nothing changes.
	Adopt(Identity) error
}

// IdentityDisk is a disk of one block by which a primary reads and sets the [Identity] of
// a [Secondary]. It is served beside the Export, as [Sums] is, and so the protocol needs
// no addition. Reading the first sector reads the identity; writing it calls Adopt.
type IdentityDisk struct{ s *Secondary }

var _ Disk = IdentityDisk{}

// NewIdentityDisk returns the disk with the identity of s.
func NewIdentityDisk(s *Secondary) IdentityDisk { return IdentityDisk{s} }

// Size implements [Disk].
func (d IdentityDisk) Size() int64 { return BlockSize }

// ReadAt implements io.ReaderAt.
func (d IdentityDisk) ReadAt(p []byte, off int64) (int, error) {
	if err := checkRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	block := make([]byte, BlockSize)
	copy(block, encodeIdentity(d.s.Identity()))
	return copy(p, block[off:]), nil
}

// WriteAt hands an identity to the Secondary's Adopt. It must be whole: one
// sector, at 0, or a block that begins with it.
func (d IdentityDisk) WriteAt(p []byte, off int64) (int, error) {
	if err := checkRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	if off != 0 || len(p) < SectorSize {
		return 0, fmt.Errorf("%w: an identity is written whole", ErrRange)
	}
	i, err := decodeIdentity(p)
	if err == nil {
		err = d.s.Adopt(i)
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Sync does nothing: an identity that was taken is stable already.
func (d IdentityDisk) Sync() error { return nil }

// WithIdentity returns remote as an [Identified]. d is a connection to an [IdentityDisk]
// that the other side serves. The Close of the result closes remote and, if d is an
// io.Closer, d; Abort does the same for each of the two that is no [Aborter], and waits as
// long as that takes.
func WithIdentity(remote Remote, d interface {
	io.ReaderAt
	io.WriterAt
}) Remote {
	return identifiedRemote{remote, d, &part{of: d}}
}

// identifiedRemote is a Remote whose identity is read and written through a disk.
type identifiedRemote struct {
	Remote
	d interface {
		io.ReaderAt
		io.WriterAt
	}
	part *part // d
}

func (r identifiedRemote) Identity() (Identity, error) {
	p := make([]byte, SectorSize)
	if err := readFull(r.d, p, 0); err != nil {
		return Identity{}, fmt.Errorf("replication: identity of the secondary: %w", err)
	}
	return decodeIdentity(p)
}

// Extents implements [ExtentReader] if the Remote does.
func (r identifiedRemote) Extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	return Extents(r.Remote, off, n, yield)
}

func (r identifiedRemote) Adopt(i Identity) error {
	if err := writeFull(r.d, encodeIdentity(i), 0); err != nil {
		return fmt.Errorf("replication: the secondary refuses to be a copy of %v: %w", i, err)
	}
	return nil
}

// Push implements [Pusher] if the Remote does.
func (r identifiedRemote) Push() {
	if p, ok := r.Remote.(Pusher); ok {
		p.Push()
	}
}

// Moved implements [Mover] if the Remote does. For another Remote it returns the zero
// time, as nothing is known.
func (r identifiedRemote) Moved() (t time.Time) {
	if m, ok := r.Remote.(Mover); ok {
		t = m.Moved()
	}
	return t
}

// Align implements [Aligner] if the Remote does.
func (r identifiedRemote) Align() int64 {
	if a, ok := r.Remote.(Aligner); ok {
		return a.Align()
	}
	return 1
}

// CheckWrites implements [WriteChecker] if the Remote does.
func (r identifiedRemote) CheckWrites() error {
	if c, ok := r.Remote.(WriteChecker); ok {
		return c.CheckWrites()
	}
	return nil
}

func (r identifiedRemote) Close() error {
	err := r.Remote.Close()
	r.part.Close()
	return err
}

// Abort implements [Aborter].
func (r identifiedRemote) Abort() {
	abort(r.Remote)
	r.part.abort()
}

// Identity implements [Identified] where the disk in this process does.
func (r diskRemote) Identity() (Identity, error) {
	if d, ok := r.d.(Identified); ok {
		return d.Identity()
	}
	return Identity{}, nil
}

// Adopt implements [Identified], and does nothing for a disk that does not.
func (r diskRemote) Adopt(i Identity) error {
	if d, ok := r.d.(Identified); ok {
		return d.Adopt(i)
	}
	return nil
}

func (x incoming) Identity() (Identity, error) { return x.s.Identity(), nil }

func (x incoming) Adopt(i Identity) error { return x.s.Adopt(i) }
