package replication

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"slices"
	"time"

	"github.com/gocolo/lockstep/event"
)

// Recover brings disk, the secondary disk of the journal's last user, into the state
// that the journal promises, and makes the journal clean: a disk that was being
// replicated becomes that of its last checkpoint, a failover that was under way is
// finished. It may be interrupted, by a crash too, and repeated. It returns the epoch
// of the checkpoint that the disk is at, and whether a failover has been finished.
// The disks of one guest are recovered together, by RecoverGroup. Errors: ErrSize or
// ErrIdentity if it is not this disk, or the disk was changed since without this
// journal, or ErrCorrupt if the journal contradicts
// itself, or has lost what was stable, and then the disk is left as it is; ctx's, or
// what a device said, also as a [WriteChecker].
//
// Where the disk or the journal hangs it returns an error that matches ErrHung, as a Secondary's methods
// do; see HungError. The journal is to be opened anew then.
func (j *Journal) Recover(ctx context.Context, disk Disk) (epoch uint64, failedOver bool, err error) {
	d := newStableDisk(disk, "disk")
	r, err := recovering(ctx, 0, []journaled{{j, d}}, func() (r outcome, err error) {
		r.epoch, r.failedOver, err = j.recoverAlone(ctx, d)
		return r, err
	})
	return r.epoch, r.failedOver, err
}

// outcome is what a recovery returns.
type outcome struct {
	epoch      uint64
	failedOver bool
}

// journaled is a Recovery whose disk is watched.
type journaled struct {
	journal *Journal
	disk    *stableDisk
}

// recovering returns what do returns, which recovers disks, or an error that matches ErrHung. after is
// that of a Recovery.
func recovering(ctx context.Context, after time.Duration, disks []journaled, do func() (outcome, error)) (result outcome, err error) {
	var devices []*stableDisk
	for _, d := range disks {
		devices = append(devices, d.disk, d.journal.hidden, d.journal.active)
	}
	var w watchdog
	w.init(event.ModeSecondary, "", after, func() []*stableDisk { return devices }, func(error) {})
	var done outcome
	if err = w.call(ctx, func() (err error) { done, err = do(); return err }); errors.Is(err, ErrHung) {
		return result, err // done may still be written
	}
	return done, err
}

func (j *Journal) recoverAlone(ctx context.Context, disk *stableDisk) (epoch uint64, failedOver bool, err error) {
	if j.Clean() {
		_, epoch := j.State()
		return epoch, false, nil
	}
	how := rollBack
	if st, _ := j.State(); st == Failover {
		how = finishFailover
	}
	if epoch, err = j.recover(ctx, disk, how); err != nil {
		return 0, false, err
	}
	return epoch, how == finishFailover, nil
}

// Ways to make an unclean journal clean.
const (
	rollBack       = iota // the disk goes back to the last checkpoint
	rollForward           // the disk stays at the checkpoint that was prepared
	rollToStart           // the disk stays at a start that another disk of the group has made
	finishFailover        // the disk goes to the last checkpoint and gets the guest's own writes since
)

// recover makes an unclean journal clean.
func (j *Journal) recover(ctx context.Context, disk *stableDisk, how int) (epoch uint64, err error) {
	if err := j.check(ctx, disk, how); err != nil {
		return 0, err
	}
	return j.apply(ctx, disk, how)
}

// check returns the error for which a journal that is not clean cannot be applied to disk,
// as far as that can be told before anything is changed.
func (j *Journal) check(ctx context.Context, disk *stableDisk, how int) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return j.err
	}
	if err := checkWrites("the disk", disk.Disk); err != nil {
		return err
	}
	meta, err := metadataOf(disk.Disk)
	if err == nil {
		err = j.belongs(ctx, disk, meta)
	}
	if err != nil {
		return err
	}
	if how == finishFailover {
		err = j.checkMap(ctx, disk.Size())
	}
	if err == nil && how != rollForward && how != rollToStart {
		err = j.log.replay(ctx, func(block, n int64, p []byte) error {
			_, err := preImage(block, n, p, disk.Size())
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("replication: recovery: %w", err)
	}
	return nil
}

// preImage returns how many bytes of a pre-image are on a disk of size bytes, n as a rule;
// or ErrCorrupt.
func preImage(block, n int64, p []byte, size int64) (int64, error) {
	if p == nil && inside(block, 0, 0, size) { // the block is whole, but the disk may end in it
		n = min(n, size-block*BlockSize)
	}
	if !inside(block, 0, n, size) {
		return 0, fmt.Errorf("%w: pre-image of block %d", ErrCorrupt, block)
	}
	return n, nil
}

// apply does what check has said can be done.
func (j *Journal) apply(ctx context.Context, disk *stableDisk, how int) (epoch uint64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return 0, j.err
	}
	b := j.super
	meta, err := metadataOf(disk.Disk)
	if err != nil {
		return 0, err
	}
	switch how {
	case rollForward:
		b.epoch, b.id = b.prepared, b.idForward(meta)
	case rollToStart:
		b.epoch, b.id, b.run = 0, b.idForward(meta), b.start
	default:
		err = j.log.replay(ctx, func(block, n int64, p []byte) error {
			n, err := preImage(block, n, p, disk.Size())
			switch {
			case err != nil:
				return err
			case p == nil:
				return WriteZeroes(disk, block*BlockSize, n)
			}
			return writeFull(disk, p, block*BlockSize)
		})
	}
	if err == nil && how == finishFailover {
		err = j.applyMap(ctx, disk)
	}
	if err == nil {
		err = disk.Sync()
	}
	if lost := disk.failed(); lost != nil {
		j.err = lost // to repeat it would not find what was not written
	}
	if err == nil {
		if b.id.Epoch = b.epoch; how == finishFailover {
			b.id.begin()
			b.id.Writes, b.id.State = true, CopyClean
		}
		// This comes before the journal is marked clean, since a clean journal is not
		// looked at again.
		err = meta.update(func(i *Identity, _ *peerBase) { *i = b.id })
	}
	if err != nil {
		return 0, fmt.Errorf("replication: recovery: %w", err)
	}
	b.state, b.prepared, b.start, b.pending = Done, 0, ID{}, false
	b.size, b.grows = uint64(disk.Size()), 0
	if !meta.kept() {
		b.print.take(disk, int64(b.size))
	}
	return b.epoch, j.store(b)
}

// idForward returns the identity of a disk that goes forward, to a checkpoint that has been prepared or to a
// start, but for its epoch. That is of the primary that has come last, which may be of another generation
// than the checkpoint of b: the metadata has said so since before the journal said that the disk may go
// forward. A disk without a place for metadata keeps the generation of b, so that the next primary compares all of it.
func (b *superblock) idForward(meta *Metadata) Identity {
	id := b.id
	if meta.kept() {
		own := meta.Identity()
		id.Disk, id.Generation, id.History, id.Writes = own.Disk, own.Generation, own.History, false
	}
	return id
}

// belongs returns ErrSize or ErrIdentity if disk is not the journal's. The caller
// holds mu.
func (j *Journal) belongs(ctx context.Context, disk Disk, meta *Metadata) error {
	b := &j.super
	// A disk with metadata may have grown without the journal's knowledge.
	if n := disk.Size(); uint64(n) < b.size || !b.isSize(n) && !meta.kept() {
		return fmt.Errorf("%w: the journal is that of a disk of %d bytes, not %d", ErrSize, b.size, n)
	}
	if !meta.kept() {
		return b.isOf(ctx, disk, j)
	}
	if id := meta.Identity(); b.id.Copy != (ID{}) && id.Copy != b.id.Copy {
		return fmt.Errorf("%w: the journal is that of copy %v (%v), this is copy %v (%v)", ErrIdentity, b.id.Copy, b.id, id.Copy, id)
	}
	if meta.guardedBy() != b.name {
		return fmt.Errorf("%w: the disk has been changed since without the journal, which undoes that no more and may be removed; the disk is %v", ErrIdentity, meta.Identity())
	}
	return nil
}

// Recovery is one disk of a guest, for RecoverGroup.
type Recovery struct {
	Journal *Journal
	Disk    Disk // the secondary disk of the journal's last user

	// HungAfter is how long an operation of the disk or the journal may take before the recovery is
	// given up, as SecondaryConfig.HungAfter. Disks that are recovered together have the longest of all.
	HungAfter time.Duration
}

// RecoverGroup does what [Journal.Recover] does for all disks of a guest, which were a
// [Group], such that they end at one epoch, whatever the Group was doing when the host
// crashed. After a crash in the middle of a checkpoint they all get its epoch if one disk
// had it already, and otherwise the epoch before; in the middle of a start, likewise; in
// the middle of a failover, either all disks get the guest's own writes or none does.
//
// It returns that epoch, and whether a failover has been finished. If there is no such
// epoch, since these are not the disks of one guest, were last started apart, or its Group went on after an error,
// nothing has been changed and the error, which is ErrEpoch, says of each disk where it
// is; nor has anything been changed if the error is ErrSize or ErrIdentity, since a disk
// is not the one of its journal, or ErrCorrupt, since a journal contradicts itself or
// has lost something. Like Recover it may be interrupted and repeated, with all disks.
func RecoverGroup(ctx context.Context, disks []Recovery) (epoch uint64, failedOver bool, err error) {
	of := make([]journaled, len(disks))
	var longest time.Duration
	for i, d := range disks {
		of[i] = journaled{d.Journal, newStableDisk(d.Disk, "disk")}
		if after := cmp.Or(d.HungAfter, DefaultHungAfter); longest >= 0 {
			longest = max(longest, after)
			if after < 0 {
				longest = after
			}
		}
	}
	r, err := recovering(ctx, longest, of, func() (r outcome, err error) {
		r.epoch, r.failedOver, err = recoverGroup(ctx, of)
		return r, err
	})
	return r.epoch, r.failedOver, err
}

func recoverGroup(ctx context.Context, disks []journaled) (epoch uint64, failedOver bool, err error) {
	supers := make([]superblock, len(disks))
	for i, d := range disks {
		d.journal.mu.Lock()
		supers[i] = d.journal.super
		d.journal.mu.Unlock()
		if supers[i].left(d.disk) {
			supers[i].run = ID{}
		}
	}
	epoch, how, err := planRecovery(supers)
	if err != nil {
		return 0, false, err
	}
	for i, b := range supers {
		failedOver = failedOver || b.state == Failover && how[i] == finishFailover
	}
	for i, d := range disks {
		if d.journal.Clean() {
			continue
		}
		if err := d.journal.check(ctx, d.disk, how[i]); err != nil {
			return 0, false, memberError(i, "recover", err)
		}
	}
	for _, i := range recoveryOrder(supers, how) {
		if _, err := disks[i].journal.apply(ctx, disks[i].disk, how[i]); err != nil {
			return 0, false, memberError(i, "recover", err)
		}
	}
	return epoch, failedOver, nil
}

// recoveryOrder returns the disks that have to be recovered, in the order in which that may
// be interrupted. A failover that was not ordered on all disks is undone, and a start that
// was made on one disk is made on all. The disks that do not know of the failover, or that
// have made the start, are the evidence for that, so they come last.
func recoveryOrder(disks []superblock, how []int) []int {
	var running, ordered, starting []int
	for i, b := range disks {
		switch {
		case b.state == Failover:
			ordered = append(ordered, i)
		case b.state == Running && how[i] == rollToStart:
			starting = append(starting, i)
		case b.state == Running:
			running = append(running, i)
		}
	}
	return slices.Concat(ordered, starting, running)
}

// planRecovery decides at which epoch disks with these superblocks meet, and
// how each gets there.
func planRecovery(disks []superblock) (epoch uint64, how []int, err error) {
	how = make([]int, len(disks))
	disks = slices.Clone(disks)
	for i, b := range disks {
		if !b.pending || !slices.ContainsFunc(disks, b.madeBy) {
			continue
		}
		if disks[i].run = b.start; b.state == Running { // what has no checkpoint to go back to stays as it is
			how[i], disks[i].epoch, disks[i].prepared = rollToStart, 0, 0
		}
	}
	var running, ordered bool
	for _, b := range disks {
		running = running || b.state == Running
		ordered = ordered || b.state == Failover
		if b.state == Running || b.state == Failover {
			epoch = max(epoch, b.epoch)
		}
	}
	if !running && !ordered {
		for _, b := range disks {
			epoch = max(epoch, b.epoch)
		}
	}
	// If an interrupted recovery has rolled one disk forward, the others are rolled
	// forward too.
	for _, b := range disks {
		for _, o := range disks {
			if b.state == Running && b.prepared > epoch && o.state == Done && o.epoch == b.prepared {
				epoch = b.prepared
			}
		}
	}
	var errs []error
	for i, b := range disks {
		switch {
		case b.state == Running && slices.ContainsFunc(disks, b.leftBy):
			errs = append(errs, memberError(i, "recover", fmt.Errorf("%w: it is at %d, and the guest went on from there on another disk", ErrEpoch, b.epoch)))
		case b.state != Running && b.state != Failover:
		case slices.ContainsFunc(disks, b.otherRun):
			errs = append(errs, memberError(i, "recover", fmt.Errorf("%w: it is at %d of another start than other disks", ErrEpoch, b.epoch)))
		case how[i] == rollToStart && epoch == 0:
		case b.epoch == epoch && b.state == Failover && !running:
			how[i] = finishFailover
		case b.epoch == epoch:
			how[i] = rollBack
		case b.state == Running && b.prepared == epoch:
			how[i] = rollForward
		default:
			errs = append(errs, memberError(i, "recover", fmt.Errorf("%w: it is at %d, another disk at %d", ErrEpoch, b.epoch, epoch)))
		}
	}
	return epoch, how, errors.Join(errs...)
}

// madeBy reports whether disk o has made the start that is prepared on the disk of b.
func (b *superblock) madeBy(o superblock) bool {
	return b.start != ID{} && o.run == b.start
}

// otherRun reports whether the checkpoint of disk o is known to come after another start than that of b.
func (b *superblock) otherRun(o superblock) bool {
	return b.run != ID{} && o.run != ID{} && b.run != o.run
}

// left reports whether a clean journal says nothing of disk any more, since the disk was changed without it,
// or is being overwritten.
func (b *superblock) left(disk *stableDisk) bool {
	if b.state == Running || b.state == Failover {
		return false
	}
	meta, err := metadataOf(disk.Disk)
	if err != nil || !meta.kept() {
		return err != nil || b.id.State == CopyInconsistent
	}
	return meta.guardedBy() != b.name || meta.Identity().State == CopyInconsistent
}

// leftBy reports whether the guest has left the checkpoint at which b, in state Running,
// still is: it went on with disk o, which may have been changed since.
func (b *superblock) leftBy(o superblock) bool {
	return o.alone && (o.state == Failover || o.state == Done && o.epoch == b.epoch)
}

// inside reports whether n bytes at an offset in a block are on a disk of size bytes. The
// block's number comes from a device.
func inside(block, off, n, size int64) bool {
	return block >= 0 && block < (size+BlockSize-1)/BlockSize && n <= size-block*BlockSize-off
}

// eachOwn calls do for the entries of the map of the guest's own writes. The caller holds
// mu.
func (j *Journal) eachOwn(ctx context.Context, do func(block int64, e blockEntry) error) error {
	if j.super.entries > uint64(j.activeSlots()) {
		return fmt.Errorf("%w: %d entries in the map", ErrCorrupt, j.super.entries)
	}
	m := make([]byte, j.super.entries*mapEntry)
	if err := readFull(j.active, m, 0); err != nil {
		return err
	}
	if crc32.Checksum(m, castagnoli) != j.super.entrySum {
		return fmt.Errorf("%w: map of the active device", ErrCorrupt)
	}
	le := binary.LittleEndian
	for ; len(m) > 0; m = m[mapEntry:] {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := do(int64(le.Uint64(m)), blockEntry{slot: le.Uint32(m[8:]), data: m[12], zero: m[13]}); err != nil {
			return err
		}
	}
	return nil
}

// checkMap returns ErrCorrupt unless the map of the guest's own writes is one of a disk of
// size bytes. The caller holds mu.
func (j *Journal) checkMap(ctx context.Context, size int64) error {
	slots := uint64(j.activeSlots())
	return j.eachOwn(ctx, func(block int64, e blockEntry) error {
		switch n := int64(bits.Len8(e.held())) * SectorSize; {
		case !inside(block, 0, n, size):
			return fmt.Errorf("%w: the guest's write to block %d", ErrCorrupt, block)
		case e.data&e.zero != 0:
			return fmt.Errorf("%w: sectors %#x of block %d are data and zero", ErrCorrupt, e.data&e.zero, block)
		case e.data != 0 && uint64(e.slot) >= slots:
			return fmt.Errorf("%w: block %d is in slot %d of %d", ErrCorrupt, block, e.slot, slots)
		}
		return nil
	})
}

// applyMap writes the guest's own writes to disk. checkMap has said that they can be.
func (j *Journal) applyMap(ctx context.Context, disk Disk) error {
	slots := deviceSlots{j.active, activeData(j.activeSlots())}
	var buf [BlockSize]byte
	return j.eachOwn(ctx, func(block int64, e blockEntry) error {
		for _, part := range []struct {
			mask uint8
			zero bool
		}{{e.data, false}, {e.zero, true}} {
			for from, to := range runs(part.mask) {
				p := buf[:(to-from)*SectorSize]
				clear(p)
				if !part.zero {
					if err := slots.readSlot(e.slot, p, from*SectorSize); err != nil {
						return err
					}
				}
				if err := writeFull(disk, p, block*BlockSize+int64(from)*SectorSize); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
