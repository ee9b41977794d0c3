package replication

import (
	"encoding/binary"
	"errors"
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
// such place beside it: [File.KeepMetadata] names one. A Disk of another kind has its metadata
// where its Metadata method says, see [MetadataKeeper]; without one it is kept in memory, and the
// copy is unknown to the next process.
//
// The metadata is 8 KiB, two blocks of which the valid one with the higher
// sequence number counts, followed by the write-intent bitmap of a primary.
type Metadata struct {
	mu     sync.Mutex
	dev    *stableDisk // nil: in memory, or not made yet
	make   func() (Disk, error)
	close  func() error
	seq    uint64
	id     Identity
	peer   peerBase
	bound  [32]byte // of the image, so that it is not taken for another; zero: not bound
	held   uint64   // see Held
	guard  ID       // the name of the journal with which the copy was changed last; zero: it was none
	ahead  bool     // id and peer are newer than what stable storage has, see remember
	intent *intent  // nil: none is kept
	failed *MetadataError
	flight flight   // its writes that are under way
	tried  Identity // what a write that failed may have left on stable storage; zero: there was none

	lost atomic.Pointer[MetadataError] // the first failure, also of intent; read without mu
}

// MetadataError says that what is known of a copy could not be written to stable storage.
// It is final: the metadata there is the one before or the one that was being written, and
// the process that has the copy changes it no more.
type MetadataError struct {
	What string // "metadata" or "write-intent bitmap"
	Err  error
}

func (e *MetadataError) Error() string { return fmt.Sprintf("replication: %s: %v", e.What, e.Err) }

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
	metadataEncoded = 16 + 8 + (identityEncoded - 16) + 40 + 32 + 8 + 16
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
	m := &Metadata{}
	if err := m.open(dev); err != nil {
		return nil, err
	}
	return m, nil
}

// newMetadata returns the metadata of a copy of which nothing is known, in
// memory until make, if not nil, is called for a device to keep it on.
func newMetadata(make func() (Disk, error)) *Metadata {
	return &Metadata{make: make, id: Identity{Copy: newID()}}
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
		var o Metadata
		switch {
		case o.decode(p[:]):
			if !found || o.seq > m.seq {
				m.seq, m.id, m.peer, m.bound, m.held, m.guard, found = o.seq, o.id, o.peer, o.bound, o.held, o.guard, true
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
	case !found:
		m.id.Copy = newID()
	}
	return nil
}

func (m *Metadata) encode() []byte {
	le := binary.LittleEndian
	p := le.AppendUint64([]byte(metadataMagic), m.seq)
	p = m.id.append(p)
	p = append(p, m.peer.Copy[:]...)
	p = le.AppendUint64(le.AppendUint64(p, m.peer.Generation.Number), m.peer.Generation.Tag)
	p = le.AppendUint64(p, m.peer.Epoch)
	p = append(p, m.bound[:]...)
	p = append(le.AppendUint64(p, m.held), m.guard[:]...)
	p = append(p, zeroes[:SectorSize-4-len(p)]...)
	return le.AppendUint32(p, crc32.Checksum(p, castagnoli))
}

func (m *Metadata) decode(p []byte) bool {
	le := binary.LittleEndian
	if string(p[:16]) != metadataMagic || le.Uint32(p[SectorSize-4:]) != crc32.Checksum(p[:SectorSize-4], castagnoli) {
		return false
	}
	m.seq = le.Uint64(p[16:])
	if !m.id.decode(p[24:]) {
		return false
	}
	p = p[24+identityEncoded-16:]
	copy(m.peer.Copy[:], p)
	m.peer.Generation = Generation{le.Uint64(p[16:]), le.Uint64(p[24:])}
	m.peer.Epoch = le.Uint64(p[32:])
	copy(m.bound[:], p[40:])
	m.held = le.Uint64(p[72:])
	copy(m.guard[:], p[80:])
	return true
}

// Identity returns the copy's identity, as stable storage has it, or, where a guest is
// being brought away from a disk whose metadata cannot be written
// (PrimaryConfig.Evacuate), as it is.
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
// fails, the metadata is the old one or the new one, and every later change of it fails.
func (m *Metadata) Hold(generation uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.held
	if generation == was {
		return nil
	}
	m.held = generation
	err := m.store(m.id, m.peer)
	if err != nil {
		m.held = was
	}
	return err
}

// guardBy records the name of the journal with which the copy is changed from now on (zero:
// without one), so that no other journal is applied to it. It returns when that is stable,
// and does nothing if that name is recorded already.
func (m *Metadata) guardBy(journal ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.guard
	if journal == was {
		return nil
	}
	m.guard = journal
	err := m.store(m.id, m.peer)
	if err != nil {
		m.guard = was
	}
	return err
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

// update changes the metadata, and returns when the change is stable. If it fails, nothing
// has changed in memory, and stable storage has the old metadata or the new; from then on
// every update that would change something fails.
func (m *Metadata) update(change func(*Identity, *peerBase)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	id, peer := m.id, m.peer
	change(&id, &peer)
	if id == m.id && peer == m.peer && !m.ahead && (m.dev != nil || m.make == nil) {
		return nil
	}
	return m.store(id, peer)
}

// remember makes a change that could not be made durable, in memory only. The identity
// descends from what a write that failed may have left on stable storage, so that
// whichever of the two is there, a copy that has this one's generation is newer.
func (m *Metadata) remember(change func(*Identity, *peerBase)) {
	m.mu.Lock()
	defer m.mu.Unlock()
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

// store makes id and peer durable. The caller holds mu.
func (m *Metadata) store(id Identity, peer peerBase) error {
	if m.failed != nil {
		return m.failed
	}
	op, err := m.flight.begin(opUpdate)
	if err == nil {
		err = m.flight.end(op, m.write(id, peer))
	}
	if err != nil && m.failed == nil && errors.Is(err, ErrHung) {
		m.failed, m.tried = &MetadataError{"metadata", err}, id
		m.lost.CompareAndSwap(nil, m.failed)
		return m.failed
	}
	return err
}

// write does what store does. A write that was given up has changed what is kept in memory all the same;
// nothing depends on that any more.
func (m *Metadata) write(id Identity, peer peerBase) error {
	if m.dev == nil && m.make != nil {
		dev, err := m.make()
		if err != nil {
			return fmt.Errorf("replication: metadata: %w", err)
		}
		m.dev, m.make = newStableDisk(dev, "metadata"), nil
	}
	next := &Metadata{seq: m.seq + 1, id: id, peer: peer, bound: m.bound, held: m.held, guard: m.guard}
	if m.dev != nil {
		err := writeFull(m.dev, next.encode(), int64(next.seq%2)*metadataSlot)
		if err == nil {
			err = m.dev.Sync()
		}
		if err != nil {
			m.failed, m.tried = &MetadataError{"metadata", err}, id
			m.lost.CompareAndSwap(nil, m.failed)
			return m.failed
		}
	}
	m.seq, m.id, m.peer, m.ahead = next.seq, id, peer, false
	return nil
}

// shut closes the file with the metadata, if there is one.
func (m *Metadata) shut() error {
	if e := m.flight.hung.Load(); e != nil && !m.mu.TryLock() {
		return e // it is in use until the system answers
	} else if e == nil {
		m.mu.Lock()
	}
	defer m.mu.Unlock()
	if m.close == nil {
		return nil
	}
	err := m.close()
	m.close = nil
	return err
}

// base returns what stable storage says of the secondary's copy.
func (m *Metadata) base() peerBase {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.peer
}

// openIntent returns the write-intent bitmap of a disk of size bytes, or nil if there is no room
// for it yet, or ever. One that was opened before the disk has grown, as the disk of another
// primary, grows too.
func (m *Metadata) openIntent(size int64) (*intent, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.intent != nil && m.intent.size == size {
		return m.intent, nil
	}
	if m.dev == nil || m.dev.Size() < metadataHead+intentBytes(size) {
		m.intent = nil
		return nil, nil
	}
	if m.intent != nil {
		m.intent.grow(size)
		return m.intent, nil
	}
	var err error
	if m.intent, err = openIntent(m.dev, size); err == nil {
		m.intent.lost, m.intent.flight = &m.lost, &m.flight
	}
	return m.intent, err
}

func (m *Metadata) flights() *flight { return &m.flight }

func (m *Metadata) label() string { return "metadata" }

// abandon gives up what is being written. The metadata fails with it.
func (m *Metadata) abandon(e *HungError) {
	m.flight.hung.CompareAndSwap(nil, e)
	m.lost.CompareAndSwap(nil, &MetadataError{"metadata", e})
}
