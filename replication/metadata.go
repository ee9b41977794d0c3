package replication

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"
	"sync/atomic"
)

// Metadata keeps, durably, the facts about a copy of a disk beside its content: its
// [Identity] and, on a primary, which secondary's copy has what, so that only
// the rest needs to be copied after a restart. Its methods may be called from
// any goroutine.
//
// A raw image has no room for it, so it is in a file beside the image, whose name is
// that of the image with ".lockstep" appended; it is made when there is something to
// record. Where the image is named by a symbolic link it is beside what that leads to: one with two
// hard links is always to be opened by the same name. It belongs to the image by the image's inode
// number and time of birth: an image that was replaced is not taken for the one before. After image
// and file were moved, [File.Rebind] says that they still belong together. A block device has no
// such place beside it: [File.KeepMetadata] names one, which belongs to the device by the name that it has for good (on
// Linux), such as its WWID, its serial number or the UUID of a logical volume. A Disk of another kind has its metadata
// where its Metadata method says, see [MetadataKeeper]; without one it is kept in memory, and the
// copy is unknown to the next process.
//
// The metadata is 8 KiB, two blocks of which the valid one with the higher
// sequence number counts, followed by the write-intent bitmap of a primary.
type Metadata struct {
	access metadataAccess

	mu     sync.Mutex  // never held while the device is waited for
	ended  sync.Cond   // broadcast when busy becomes false
	busy   bool        // a goroutine changes the metadata, and nobody else does
	dev    *stableDisk // nil: in memory, or not made yet
	make   func() (*metadataDevice, error)
	close  func() error
	seq    uint64
	facts          // those on stable storage, but for ahead
	ahead  bool    // id and peer are newer than what stable storage has, see remember
	intent *intent // nil: none is kept
	failed *MetadataError
	unsure bool     // stable storage may have tried and not facts, since there was no room; see store
	tried  Identity // what a write that failed may have left on stable storage; zero: there was none

	lost atomic.Pointer[MetadataError] // the first failure, also of intent; read without mu
}

// facts is what metadata says of a copy.
type facts struct {
	id    Identity
	peer  peerBase
	bound [32]byte // of the image, so that it is not taken for another; zero: not bound
	held  uint64   // see Held
	guard ID       // the name of the journal with which the copy was changed last; zero: it was none
	// restored: Rebind has been told that the copy may be older than others know, and it was inconsistent. The
	// journal can still say what it is.
	restored bool
}

// metadataDevice is what metadata is kept on, and what closes it; nil: nothing does.
type metadataDevice struct {
	Disk
	close func() error
}

// MetadataError says that what is known of a copy could not be written to stable storage.
// It is final: the metadata there is the one before or the one that was being written, and
// the process that has the copy changes it no more. A write for which the device has no room (ENOSPC) is no such
// error: what needed it has failed, and is tried again by whatever needs it next.
type MetadataError struct {
	What string // "metadata" or "write-intent bitmap"
	Err  error
}

func (e *MetadataError) Error() string { return fmt.Sprintf("replication: %s: %v", e.What, e.Err) }

// Unwrap returns the cause.
func (e *MetadataError) Unwrap() error { return e.Err }

// peerBase names the copy of the secondary, and the checkpoint since which its primary has
// accounted for all writes.
type peerBase struct {
	Copy       ID // zero: there is none
	Generation Generation
	Epoch      uint64
}

// MetadataKeeper is a [Disk] that has a place for metadata. A [File] is one.
type MetadataKeeper interface {
	// Metadata returns the disk's metadata, always the same.
	Metadata() (*Metadata, error)
}

const (
	metadataMagic   = "lockstep disk 2\n"
	metadataSlot    = 4096
	metadataHead    = 2 * metadataSlot
	metadataEncoded = 16 + 8 + (identityEncoded - 16) + 40 + 32 + 8 + 16 + 1
)

// OpenMetadata reads the metadata on a device of its own, of at least 8 KiB;
// one that begins with zeroes is that of a blank copy. The caller keeps the
// device. What comes after 8 KiB is for the write-intent bitmap of a primary,
// which wants 512 bytes for each 4 GiB of the guest's disk, and is not kept if
// there is no room. Errors: ErrSize, ErrCorrupt, or what the device said, also as a [WriteChecker].
func OpenMetadata(dev Disk) (*Metadata, error) {
	if err := checkDevice("the device of the metadata", dev); err != nil {
		return nil, err
	}
	return readMetadata(dev)
}

// readMetadata does what OpenMetadata does, also on a device that cannot be written.
func readMetadata(dev Disk) (*Metadata, error) {
	m := newMetadata(nil)
	if err := m.open(dev); err != nil {
		return nil, err
	}
	return m, nil
}

// newMetadata returns the metadata of a copy of which nothing is known, in
// memory until make, if not nil, is called for a device to keep it on.
func newMetadata(make func() (*metadataDevice, error)) *Metadata {
	m := &Metadata{make: make, facts: facts{id: Identity{Copy: newID()}}}
	m.ended.L = &m.mu
	return m
}

// metadataOf returns the metadata of a disk, in memory if it has no place.
func metadataOf(d Disk) (*Metadata, error) {
	if k, ok := d.(MetadataKeeper); ok {
		return k.Metadata()
	}
	return newMetadata(nil), nil
}

func (m *Metadata) open(dev Disk) error {
	if dev.Size() < metadataHead {
		return fmt.Errorf("%w: metadata of %d bytes", ErrSize, dev.Size())
	}
	m.dev = newStableDisk(dev, "metadata")
	blank, found, other := 0, false, error(nil)
	for i := range 2 {
		var p [SectorSize]byte
		if err := readFull(dev, p[:], int64(i)*metadataSlot); err != nil {
			return err
		}
		o, seq, ok := decodeFacts(p[:])
		switch {
		case ok:
			if !found || seq > m.seq {
				m.seq, m.facts, found = seq, o, true
			}
		case p == [SectorSize]byte{}:
			blank++
		case other == nil:
			other = ofAnotherVersion("metadata of a disk", metadataMagic, p[:])
		}
	}
	switch {
	case !found && other != nil:
		return other
	case !found && blank < 2:
		return fmt.Errorf("%w: metadata of a disk", ErrCorrupt)
	}
	return nil
}

// encode returns a sector with m and the sequence number.
func (m *facts) encode(seq uint64) []byte {
	le := binary.LittleEndian
	p := le.AppendUint64([]byte(metadataMagic), seq)
	p = m.id.append(p)
	p = append(p, m.peer.Copy[:]...)
	p = le.AppendUint64(le.AppendUint64(p, m.peer.Generation.Number), m.peer.Generation.Tag)
	p = le.AppendUint64(p, m.peer.Epoch)
	p = append(p, m.bound[:]...)
	p = append(le.AppendUint64(p, m.held), m.guard[:]...)
	p = append(p, bit(m.restored))
	p = append(p, zeroes[:SectorSize-4-len(p)]...)
	return le.AppendUint32(p, crc32.Checksum(p, castagnoli))
}

// decodeFacts reads what encode has written; ok is false if it is not that.
func decodeFacts(p []byte) (m facts, seq uint64, ok bool) {
	le := binary.LittleEndian
	if string(p[:16]) != metadataMagic || le.Uint32(p[SectorSize-4:]) != crc32.Checksum(p[:SectorSize-4], castagnoli) {
		return m, 0, false
	}
	seq = le.Uint64(p[16:])
	if !m.id.decode(p[24:]) {
		return facts{}, 0, false
	}
	p = p[24+identityEncoded-16:]
	copy(m.peer.Copy[:], p)
	m.peer.Generation = Generation{le.Uint64(p[16:]), le.Uint64(p[24:])}
	m.peer.Epoch = le.Uint64(p[32:])
	copy(m.bound[:], p[40:])
	m.held = le.Uint64(p[72:])
	copy(m.guard[:], p[80:])
	m.restored = p[96] != 0
	return m, seq, true
}

// Identity returns the copy's identity, as stable storage has it, or, where a guest is
// being brought away from a disk whose metadata cannot be written
// (PrimaryConfig.Evacuate), as it is. A change that is being written is not in it yet. Neither
// Identity nor Held waits for the device.
func (m *Metadata) Identity() Identity {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.id
}

// Held returns the number that Hold has recorded last, or 0.
func (m *Metadata) Held() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held
}

// Hold records a number of the caller's beside the identity, and returns when that is
// stable. It may be the generation under which an arbiter has given the disk's guest to
// this host, or which this host has followed; this package does not look at it. If Hold
// fails, the metadata is the old one or the new one, and every later change of it fails, unless the error matches
// ENOSPC, after which Hold may be called again. Where the
// device hangs it fails with an error that matches ErrHung, as every change does; see HungError.
func (m *Metadata) Hold(generation uint64) error {
	return m.change(func(f *facts) { f.held = generation })
}

// guardBy records the name of the journal with which the copy is changed from now on (zero:
// without one), so that no other journal is applied to it. It returns when that is stable,
// and does nothing if that name is recorded already.
func (m *Metadata) guardBy(journal ID) error {
	return m.change(func(f *facts) { f.guard = journal })
}

// guardedBy returns the name of the journal with which the copy was changed last, or zero.
func (m *Metadata) guardedBy() ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.guard
}

// kept reports whether the metadata has a place that outlives the process.
func (m *Metadata) kept() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dev != nil || m.make != nil
}

// Outdate records that another copy is newer. No guest can then be started with this one
// by mistake, until it is synchronised or PermitOutdated is given.
func (m *Metadata) Outdate() error {
	return m.update(func(i *Identity, _ *peerBase) { i.State = CopyOutdated })
}

// remember makes a change that could not be made durable, in memory only. The identity
// descends from what a write that failed may have left on stable storage, so that
// whichever of the two is there, a copy that has this one's generation is newer.
func (m *Metadata) remember(change func(*Identity, *peerBase)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.take()
	defer m.give()
	if m.tried != (Identity{}) {
		m.id, m.tried = m.tried, Identity{}
	}
	change(&m.id, &m.peer)
	m.ahead = true
}

// isAhead reports whether the identity is newer than that on stable storage.
func (m *Metadata) isAhead() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ahead
}

// failure returns why the metadata cannot be written any more: a *MetadataError, or nil.
// It does not wait.
func (m *Metadata) failure() error {
	if e := m.lost.Load(); e != nil {
		return e
	}
	return nil // not a nil *MetadataError
}
