package replication

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"slices"
	"syscall"
)

// ID names a guest's disk, or one copy of it, at random. The zero ID names
// nothing.
type ID [16]byte

func newID() (id ID) {
	rand.Read(id[:])
	return id
}

// String returns 32 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Generation names a part of a disk's history during which the same side wrote it. A new
// one begins when a secondary has taken over, when a primary goes on without its
// secondary, and when a guest is given a copy that another side wrote. Number counts them; Tag is
// random, so that the generations of two sides that both went on alone differ. DRBD's generation
// identifiers are the model.
type Generation struct {
	Number, Tag uint64
}

// String returns the number and the tag.
func (g Generation) String() string { return fmt.Sprintf("%d-%016x", g.Number, g.Tag) }

func (g Generation) next() Generation {
	var b [8]byte
	rand.Read(b[:])
	return Generation{g.Number + 1, binary.LittleEndian.Uint64(b[:])}
}

// CopyState says whether a guest may be given a copy of a disk, and if not,
// why.
type CopyState uint8

// The states of a copy.
const (
	// CopyClean: the copy equals the disk at its generation and epoch, or, where a guest
	// writes it, the disk as it is now.
	CopyClean CopyState = iota
	// CopyInconsistent: the copy equals the disk at no moment. It is being copied, or a
	// primary was writing it when its host was lost; its Journal, if it has one, makes it
	// clean.
	CopyInconsistent
	// CopyOutdated: another copy is known to be newer.
	CopyOutdated
)

// String returns the state in a word, such as "outdated".
func (s CopyState) String() string {
	names := [...]string{"clean", "inconsistent", "outdated"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// historyLength is how many generations before its own a copy remembers.
const historyLength = 6

// Identity names the disk of a guest and one copy of it, and says how far that copy
// is in the disk's history. Two sides exchange their identities when they are
// joined.
type Identity struct {
	Disk       ID // of the guest's disk, the same for all copies; zero: a blank copy, or unknown
	Copy       ID // tells this copy from all others
	Generation Generation
	History    [historyLength]Generation // those before, newest first; zero: none
	// Epoch is the last checkpoint, in this generation, that the copy has. It
	// is durable with a Journal; without, it is that of when the copy was last
	// stopped or begun.
	Epoch uint64
	State CopyState
	// Writes: a guest writes this copy, or did when it was last used: it is a
	// primary's, or was promoted.
	Writes bool
	// Overwrite: whoever keeps the copy says that it may be overwritten,
	// whatever it is.
	Overwrite bool

	// These are sent to the other side, and not stored:
	instance ID     // see lifecycle; a primary gives back that which it has been told
	room     int64  // for pre-images, in bytes; zero: not known
	zeroes   uint32 // what a run of blocks of zeroes takes of room, in bytes, at most BlockSize
}

// String returns the identity as one line of text. It has the epoch only where the copy is,
// or was, that of a checkpoint: a guest's copy is ahead of every checkpoint, and which one an
// inconsistent copy can be brought back to, a running Secondary or the Journal knows.
func (i Identity) String() string {
	if i.Disk == (ID{}) {
		return "of no known disk"
	}
	role := "a copy"
	if i.Writes {
		role = "the guest's copy"
	}
	s := fmt.Sprintf("disk %v, %s, %v, generation %v", i.Disk, role, i.State, i.Generation)
	if !i.Writes && (i.State != CopyInconsistent || i.Epoch > 0) {
		s += fmt.Sprintf(", epoch %d", i.Epoch)
	}
	return s
}

// begin begins the next generation.
func (i *Identity) begin() {
	copy(i.History[1:], i.History[:])
	i.History[0] = i.Generation
	i.Generation, i.Epoch = i.Generation.next(), 0
}

// descends reports whether o's generation is i's own or in i's history.
func (i *Identity) descends(o Identity) bool {
	return i.Generation == o.Generation || o.Generation != (Generation{}) && slices.Contains(i.History[:], o.Generation)
}

// forgot reports whether o's generation is from before those that i remembers.
func (i *Identity) forgot(o Identity) bool {
	oldest := i.History[historyLength-1]
	return oldest != (Generation{}) && o.Generation.Number < oldest.Number
}

// whyDiverged says why of two copies none is known to come from the other.
func whyDiverged(a, b Identity) string {
	if a.forgot(b) || b.forgot(a) {
		return fmt.Sprintf("one is older than the %d generations that the other remembers, so that both sides may have gone on alone", historyLength)
	}
	return "both sides have gone on alone"
}

// Newest says which of two copies of one disk has the newest state of its
// guest, -1 for a, 1 for b, and 0 if they are equals, as far as stable storage
// tells; what a primary's process keeps in memory does not matter. It is for
// hosts that both come up after both were down, before either lets its guest
// run.
//
// The error is ErrIdentity if they are copies of different disks, and
// ErrDiverged if both guests went on, so that neither has what the other has, or if one copy is so
// old that the other does not tell (see ErrDiverged).
// An inconsistent copy is never the newest, and two of them are ErrInconsistent.
func Newest(a, b Identity) (int, error) {
	if a.Disk == (ID{}) || b.Disk == (ID{}) || a.Disk != b.Disk {
		return 0, fmt.Errorf("%w: %v, and %v", ErrIdentity, a, b)
	}
	switch {
	case a.State == CopyInconsistent && b.State == CopyInconsistent:
		return 0, ErrInconsistent
	case b.State == CopyInconsistent:
		return -1, nil
	case a.State == CopyInconsistent:
		return 1, nil
	case !a.descends(b) && !b.descends(a):
		return 0, fmt.Errorf("%w: %s: %v, and %v", ErrDiverged, whyDiverged(a, b), a, b)
	case a.Generation != b.Generation && a.descends(b):
		return -1, nil
	case a.Generation != b.Generation:
		return 1, nil
	case a.State == CopyOutdated && b.State != CopyOutdated:
		return 1, nil
	case b.State == CopyOutdated && a.State != CopyOutdated:
		return -1, nil
	case a.Writes != b.Writes: // the other is that of a checkpoint
		if a.Writes {
			return -1, nil
		}
		return 1, nil
	case a.Epoch != b.Epoch:
		if a.Epoch > b.Epoch {
			return -1, nil
		}
		return 1, nil
	}
	return 0, nil
}

// Errors of copies that cannot be joined or used.
var (
	// ErrIdentity: a copy is of another guest's disk, or of none that is known, and
	// nobody has said that it may be overwritten. Over NBD it is EPERM, and so is
	// ErrDiverged.
	ErrIdentity error = &sentinel{"not a copy of this disk", syscall.EPERM}
	// ErrDiverged: two copies of one disk whose guests both went on. A copy remembers six generations
	// before its own: where another one is of an older generation, nobody can tell, and the error says so.
	ErrDiverged error = &sentinel{"the copies have diverged", syscall.EPERM}
	// ErrInconsistent: the copy equals the disk at no moment of its history, so no guest
	// can use it.
	ErrInconsistent error = &sentinel{"the copy is inconsistent", 0}
	// ErrOutdated: another copy is newer. EPERM.
	ErrOutdated error = &sentinel{"the copy is outdated", syscall.EPERM}
)

// An Identity is encoded in a sector: magic [16], then the fields in their
// order, little endian, the process that has the copy [16], its room for
// pre-images u64 and what zeroes take of it u32, and at the end a checksum of all before.

const (
	identityMagic   = "lockstep copy 1\n"
	identityEncoded = 16 + 16 + 16 + 16 + historyLength*16 + 8 + 4
)

func (i *Identity) append(p []byte) []byte {
	le := binary.LittleEndian
	p = append(append(p, i.Disk[:]...), i.Copy[:]...)
	for _, g := range append([]Generation{i.Generation}, i.History[:]...) {
		p = le.AppendUint64(le.AppendUint64(p, g.Number), g.Tag)
	}
	p = le.AppendUint64(p, i.Epoch)
	return append(p, byte(i.State), bit(i.Writes), bit(i.Overwrite), 0)
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// decode reads what append has written, and reports whether it is well-formed.
func (i *Identity) decode(p []byte) bool {
	le := binary.LittleEndian
	copy(i.Disk[:], p)
	copy(i.Copy[:], p[16:])
	p = p[32:]
	get := func() (g Generation) {
		g.Number, g.Tag = le.Uint64(p), le.Uint64(p[8:])
		p = p[16:]
		return g
	}
	i.Generation = get()
	for k := range i.History {
		i.History[k] = get()
	}
	i.Epoch = le.Uint64(p)
	i.State, i.Writes, i.Overwrite = CopyState(p[8]), p[9] != 0, p[10] != 0
	return i.State <= CopyOutdated && p[9] <= 1 && p[10] <= 1
}

// encodeIdentity returns a sector with i.
func encodeIdentity(i Identity) []byte {
	p := i.append([]byte(identityMagic))
	p = append(p, zeroes[:SectorSize-4-len(p)]...)
	copy(p[identityEncoded:], i.instance[:])
	binary.LittleEndian.PutUint64(p[identityEncoded+16:], uint64(i.room))
	binary.LittleEndian.PutUint32(p[identityEncoded+24:], i.zeroes)
	return binary.LittleEndian.AppendUint32(p, crc32.Checksum(p, castagnoli))
}

// decodeIdentity reads a sector. A sector of zeroes is a copy of no disk.
func decodeIdentity(p []byte) (i Identity, err error) {
	if len(p) < SectorSize {
		return i, fmt.Errorf("%w: identity of %d bytes", ErrCorrupt, len(p))
	}
	p = p[:SectorSize]
	if [SectorSize]byte(p) == [SectorSize]byte{} {
		return i, nil
	}
	if err := ofAnotherVersion("the identity of a copy", identityMagic, p); err != nil {
		return Identity{}, err
	}
	if string(p[:16]) != identityMagic || binary.LittleEndian.Uint32(p[SectorSize-4:]) != crc32.Checksum(p[:SectorSize-4], castagnoli) || !i.decode(p[16:]) {
		return Identity{}, fmt.Errorf("%w: identity of a copy", ErrCorrupt)
	}
	copy(i.instance[:], p[identityEncoded:])
	i.room = int64(binary.LittleEndian.Uint64(p[identityEncoded+16:]))
	i.zeroes = binary.LittleEndian.Uint32(p[identityEncoded+24:])
	if i.room < 0 || i.zeroes > BlockSize {
		return Identity{}, fmt.Errorf("%w: identity of a copy", ErrCorrupt)
	}
	return i, nil
}
