package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"sync"
)

// Journal keeps the overlays of a [Secondary] on two devices, so that the
// secondary disk can be brought back to a checkpoint after a crash of the
// host at any moment. It assumes of the devices what one may assume of any
// disk: a sector is written whole or not at all, and Sync makes writes
// stable; those not synced may be lost in any combination.
//
// The hidden device holds a superblock, in two alternating sectors, and a log
// of pre-images. A pre-image is stable in the log before the primary's write
// replaces it. A checkpoint is the write of one superblock with a new epoch
// and a new random nonce, after a sync of the secondary disk; all log records
// carry the nonce, so that this one write voids them together. The active
// device holds the guest's own writes, which only count once a failover has
// made them stable along with a map of them. When several disks share their
// checkpoints, a superblock first says of each that it is prepared; see
// RecoverGroup.
//
// A superblock says of which copy of which disk the journal is, so that it is
// never applied to another, if the disk keeps its own [Metadata], which in turn names
// the journal: a disk that was changed since by a Secondary with another journal or none,
// or by a Primary, is refused too. Of a disk that
// cannot, it has checksums of some blocks at the checkpoint, of places that
// differ between disks: a disk that is another, or was written by somebody else
// after the crash, is refused.
//
// A write for which a device has no room (ENOSPC) ends the run that needed it, but not the use of
// the journal: the next primary may try again, and so may Commit. A sync that fails is final.
//
// A Journal is used by one Secondary.
type Journal struct {
	hidden, active *stableDisk

	mu    sync.Mutex // held while a device is waited for
	super superblock
	err   error // a device that failed once is not trusted again
	// unknown says that the hidden device had no room for the superblock behind super, so that
	// it is not known which of the two counts; see settle.
	unknown bool

	told told // what State and Identity return

	log   *hiddenLog
	files []*File // the files that Close closes

	user *Secondary // the Secondary, if its disk has no place for metadata; otherwise nil
}

// Errors of a [Journal].
var (
	// ErrUnclean: the journal's last user neither stopped nor finished a
	// failover, so that the secondary disk is not that of a checkpoint.
	// Recover makes it so.
	ErrUnclean error = &sentinel{"journal must be recovered first", 0}
	// ErrCorrupt: what should be a journal, or the metadata or the identity of a disk, is
	// not, or no longer, or is of another version of this library.
	ErrCorrupt error = &sentinel{"not valid", 0}
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// superblock is the durable state of a Secondary.
type superblock struct {
	seq      uint64 // of two valid superblocks the one with the higher seq counts
	state    State
	epoch    uint64
	size     uint64 // of the secondary disk
	nonce    [16]byte
	entries  uint64   // in the map of the active device, in state Failover
	entrySum uint32   // checksum of the map
	prepared uint64   // in state Running, the epoch that the disk has been prepared for; 0: none
	id       Identity // of the disk: whose journal it is, and the disk's identity at epoch
	// start names a start of several disks together, and pending says that this one has
	// not been started yet. Both are set before the first disk of a Group is started;
	// pending is cleared when this one is.
	start   ID
	pending bool
	// run names the start that the checkpoint of epoch comes after, if several disks were started
	// together then; zero: it was this one alone, or that is not known. Of disks whose
	// runs differ the same epoch is not the same checkpoint.
	run ID
	// alone says, in states Failover and Done, that not all disks of a Group could be told
	// of the failover, and that the guest has gone on all the same: it cannot be undone.
	alone bool
	// name is the journal's own, at random; zero: it was last used before there were names.
	// Metadata has the name of the journal without which the disk is not used.
	name ID
	// grows is the size that the disk may have instead, since it was being made longer; zero:
	// it was not.
	grows uint64
	// hidden and active are how long the devices are, in bytes, on which the journal was used
	// last; zero: it was before that was recorded. A log that has lost its end is told by it,
	// and the place of the slots on the active device follows from its length.
	hidden, active uint64
	// print is the fingerprint of a disk without a place for Metadata: at epoch or, where
	// a guest may have gone on, at the last change of state.
	print fingerprint
}

const (
	superMagic   = "lockstep journal 5\n"
	superSlot    = 4096 // each of the two has a physical block of its own
	logStart     = 2 * superSlot
	minJournal   = 64 << 10                                                    // of each device
	superPrint   = 24 + 8*4 + 16 + 8 + 4 + 8 + (identityEncoded - 16) + 16 + 4 // where print is
	superName    = superPrint + fingerprintEncoded                             // where name is
	superRun     = superName - 16                                              // where run is, behind the print, if superHasRun is set
	superHasRun  = superPrint - 2
	superGrows   = superName + 16 // where grows is
	superEncoded = superGrows + 8 + 4
	superLengths = superEncoded // where the lengths of the devices and a sum of their own are, unless all that is zero
	superSummed  = superLengths + 16
)

func (b *superblock) encode() []byte {
	p := make([]byte, SectorSize)
	copy(p, superMagic)
	le := binary.LittleEndian
	le.PutUint64(p[24:], b.seq)
	le.PutUint64(p[32:], uint64(b.state))
	le.PutUint64(p[40:], b.epoch)
	le.PutUint64(p[48:], b.size)
	copy(p[56:], b.nonce[:])
	le.PutUint64(p[72:], b.entries)
	le.PutUint32(p[80:], b.entrySum)
	le.PutUint64(p[84:], b.prepared)
	copy(p[92:], b.id.append(nil))
	copy(p[superPrint-20:], b.start[:])
	p[superPrint-4], p[superPrint-3] = bit(b.pending), bit(b.alone)
	copy(p[superPrint:], b.print.append(nil))
	if b.run != (ID{}) {
		p[superHasRun] = 1
		copy(p[superRun:], b.run[:])
	}
	copy(p[superName:], b.name[:])
	le.PutUint64(p[superGrows:], b.grows)
	le.PutUint32(p[superEncoded-4:], crc32.Checksum(p[:superEncoded-4], castagnoli))
	if b.hidden != 0 || b.active != 0 {
		le.PutUint64(p[superLengths:], b.hidden)
		le.PutUint64(p[superLengths+8:], b.active)
		le.PutUint32(p[superSummed:], crc32.Checksum(p[superLengths:superSummed], castagnoli))
	}
	return p
}

func (b *superblock) decode(p []byte) bool {
	le := binary.LittleEndian
	if string(p[:len(superMagic)]) != superMagic ||
		le.Uint32(p[superEncoded-4:]) != crc32.Checksum(p[:superEncoded-4], castagnoli) {
		return false
	}
	b.seq = le.Uint64(p[24:])
	state := le.Uint64(p[32:])
	if state > uint64(Done) || State(state) == FailoverFailed { // which is recorded as Failover
		return false
	}
	b.state = State(state)
	b.epoch = le.Uint64(p[40:])
	b.size = le.Uint64(p[48:])
	copy(b.nonce[:], p[56:])
	b.entries = le.Uint64(p[72:])
	b.entrySum = le.Uint32(p[80:])
	b.prepared = le.Uint64(p[84:])
	copy(b.start[:], p[superPrint-20:])
	b.pending, b.alone = p[superPrint-4] != 0, p[superPrint-3] != 0
	if p[superHasRun] != 0 {
		copy(b.run[:], p[superRun:])
	} else if !b.pending { // before there was a place for run, start stayed until the first checkpoint
		b.run = b.start
	}
	copy(b.name[:], p[superName:])
	b.grows = le.Uint64(p[superGrows:])
	b.hidden, b.active = le.Uint64(p[superLengths:]), le.Uint64(p[superLengths+8:])
	sum := le.Uint32(p[superSummed:])
	if (b.hidden != 0 || b.active != 0 || sum != 0) && sum != crc32.Checksum(p[superLengths:superSummed], castagnoli) {
		return false
	}
	return b.id.decode(p[92:]) && b.print.decode(p[superPrint:], int64(b.size))
}

// OpenJournal opens the journal on two devices, whose sizes bound the
// overlays. Devices that begin with zeroes are a new journal. The caller
// keeps the devices. Errors: those of [CheckDisk], ErrCorrupt, also if a device that the next
// recovery needs has become shorter, or what the device said. It waits for the devices without a bound.
func OpenJournal(hidden, active Disk) (*Journal, error) {
	if err := errors.Join(checkDisk("the hidden device", hidden), checkDisk("the active device", active)); err != nil {
		return nil, err
	}
	return readJournal(hidden, active)
}

// readJournal does what OpenJournal does, also on devices that cannot be written.
func readJournal(hidden, active Disk) (*Journal, error) {
	if err := checkLengths(hidden.Size(), active.Size()); err != nil {
		return nil, err
	}
	j := &Journal{hidden: newStableDisk(hidden, "log of pre-images"), active: newStableDisk(active, "active overlay")}
	blank, found, other := 0, false, error(nil)
	for i := range 2 {
		var p [SectorSize]byte
		if err := readFull(hidden, p[:], int64(i)*superSlot); err != nil {
			return nil, err
		}
		var b superblock
		switch {
		case b.decode(p[:]):
			if !found || b.seq > j.super.seq {
				j.super, found = b, true
			}
		case p == [SectorSize]byte{}:
			blank++
		case other == nil:
			other = ofAnotherVersion("the journal", superMagic, p[:])
		}
	}
	if !found && other != nil {
		return nil, other
	}
	if !found && blank < 2 {
		return nil, fmt.Errorf("%w: no valid superblock", ErrCorrupt)
	}
	if err := j.super.keeps(hidden.Size(), active.Size()); err != nil {
		return nil, err
	}
	j.told.set(&j.super)
	j.log = &hiddenLog{dev: j.hidden, nonce: j.super.nonce, end: logStart, batch: newBatch()}
	return j, nil
}

// attach gives s the overlays that the journal keeps, and the disk's identity if the disk
// itself does not keep one and is the journal's.
func (j *Journal) attach(s *Secondary) error {
	if !j.Clean() {
		return ErrUnclean
	}
	j.mu.Lock()
	if !s.meta.kept() {
		j.user = s
		if b := &j.super; b.id.Copy != (ID{}) && b.isSize(s.size.Load()) {
			err := b.isOf(context.Background(), s.disk, nil)
			if err != nil && !errors.Is(err, ErrIdentity) {
				j.mu.Unlock()
				return err
			}
			s.meta.mu.Lock()
			if err == nil {
				s.meta.id = b.id
			} else if b.id.State == CopyInconsistent { // or it was overwritten as a whole
				s.meta.id.State = CopyInconsistent
			}
			s.meta.mu.Unlock()
		}
	}
	j.super.size, j.super.grows = uint64(s.size.Load()), 0
	j.super.hidden, j.super.active = uint64(j.hidden.Size()), uint64(j.active.Size())
	if j.super.name == (ID{}) {
		j.super.name = newID()
	}
	s.journal = j.super.name
	n := j.activeSlots()
	j.mu.Unlock()
	s.hidden = newOverlay("hidden", s.size.Load(), math.MaxInt64, j.log)
	s.active = newOverlay("active", s.size.Load(), n*BlockSize, deviceSlots{j.active, activeData(n)})
	s.active.solid = true
	s.active.keepSpare(s.size.Load())
	s.stable = j
	return nil
}

// isSize reports whether the disk may have n bytes.
func (b *superblock) isSize(n int64) bool {
	return uint64(n) == b.size || b.grows != 0 && uint64(n) == b.grows
}

// smallDisk is the size below which a disk whose guest went on, and which has changed
// wherever it was looked at, is not taken for another one.
const smallDisk = 4 * fingerprintMax * BlockSize

// isOf returns ErrIdentity if disk, which has no place for metadata, is not the one of b;
// see fingerprint. j has the content that was replaced; nil: none was. The caller holds
// j's mu.
func (b *superblock) isOf(ctx context.Context, disk Disk, j *Journal) error {
	loose := b.id.Writes || b.state != Running && b.state != Done
	atLeast := 0
	switch {
	case j == nil:
	case b.size < smallDisk:
		// A guest has soon rewritten all of it, behind a failover that is to be finished.
		atLeast = fingerprintBlocks + 1
	default: // without recovery a failover would be lost
		atLeast = fingerprintBlocks / 2
	}
	return b.print.check(ctx, disk, int64(b.size), j, loose, atLeast)
}

// sum updates the fingerprint in b by the disk's content. No one else writes the disk: it
// is locked, or not in use. The caller holds mu.
func (j *Journal) sum(b *superblock) {
	if j.user == nil {
		return
	}
	if j.super.state == Running && b.state == Running && b.epoch > 0 {
		changed := func(block int64) bool { return j.user.hidden.lookup(block).held() != 0 }
		b.print.refresh(j.user.disk, int64(b.size), changed)
		return
	}
	b.print.take(j.user.disk, int64(b.size))
}

// superAt returns where the superblock with that sequence number is.
func superAt(seq uint64) int64 { return int64(seq%2) * superSlot }

// store writes b, with the next sequence number, over the older superblock.
// The caller holds mu.
func (j *Journal) store(b superblock) error {
	if j.err != nil {
		return j.err
	}
	b.seq = j.super.seq + 1
	err := writeFull(j.hidden, b.encode(), superAt(b.seq))
	if noRoom(err) {
		j.unknown = true
		return fmt.Errorf("replication: journal: superblock: %w", err)
	}
	if err == nil {
		err = j.hidden.Sync()
	}
	if err != nil {
		// Either superblock may be the valid one, so the nonce may be void, and with it
		// any further record of the log.
		j.err = fmt.Errorf("replication: journal: superblock: %w", err)
		j.log.fail(j.err)
		return j.err
	}
	j.super, j.unknown = b, false
	j.told.set(&b)
	if b.seq == 1 {
		// The other superblock gets its storage now, with zeroes, which are none: a file system that
		// is full later must not keep a failover from being recorded. If this fails, the next
		// store says why.
		writeFull(j.hidden, zeroes[:SectorSize], superAt(b.seq+1))
	}
	return nil
}

// settle makes sure that the superblock in memory is the one that counts, before anything is
// done that depends on it: if there was no room for another, it is written again, in the
// place of that one. The caller holds mu.
func (j *Journal) settle() error {
	if j.err != nil || !j.unknown {
		return j.err
	}
	return j.store(j.super)
}

// failed implements stableState.
func (j *Journal) failed() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.settle(); err != nil {
		return err
	}
	return j.log.failed()
}

// emptied starts the log anew, under the nonce of the last superblock.
func (j *Journal) emptied() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.log.restart(j.super.nonce)
}

// setFailover makes the guest's own writes stable, then a map of them, and then a
// superblock that says that they count.
func (j *Journal) setFailover(active *overlay) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.settle(); err != nil || j.super.state == Failover {
		return err // the map on the device must not change any more
	}
	if err := j.log.failed(); err != nil {
		return err
	}
	b := j.super
	b.state, b.prepared, b.alone = Failover, 0, false
	var err error
	b.entries, b.entrySum, err = j.writeMap(active)
	full := noRoom(err)
	if err == nil {
		err = j.active.Sync()
	}
	if err != nil {
		err = fmt.Errorf("replication: journal: active device: %w", err)
		if !full { // the next one writes the map anew
			j.err = err
		}
		return err
	}
	return j.store(b)
}

// setAlone implements stableState.
func (j *Journal) setAlone() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	b := j.super
	b.alone = true
	return j.storeChanged(b)
}

// storeChanged does what store does, if b is not what is stored. The caller holds mu.
func (j *Journal) storeChanged(b superblock) error {
	if b == j.super {
		return j.settle()
	}
	return j.store(b)
}

func (j *Journal) setDone(id Identity) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.super.state == Done && j.err == nil && !j.unknown {
		return nil
	}
	b := j.super
	b.state, b.prepared, b.id, b.start, b.pending = Done, 0, id, ID{}, false
	j.sum(&b)
	return j.store(b)
}

// setForgotten implements stableState: there is no checkpoint any more.
func (j *Journal) setForgotten(id Identity) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	b := j.super
	b.state, b.epoch, b.prepared, b.id, b.run = None, 0, 0, id, ID{}
	return j.store(b)
}

// setPrepared implements stableState.
func (j *Journal) setPrepared(epoch uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.log.failed(); err != nil {
		return err
	}
	b := j.super
	b.prepared = epoch
	return j.store(b)
}
