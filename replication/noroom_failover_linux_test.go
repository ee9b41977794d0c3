package replication

import (
	"path/filepath"
	"syscall"
	"testing"
)

// The superblocks have their storage since the journal was first used, so that all that a failover
// records fits.
func TestAFailoverNeedsNoRoomForASuperblock(t *testing.T) {
	for checkpoints := range uint64(2) {
		p, _, s, disk, dir := pairWithSmallFileSystem(t)
		protectFirst(t, p, s)
		fillUp(t, filepath.Join(dir, "full"))
		for epoch := range checkpoints {
			checkpointBoth(t, p, s, epoch+1)
		}
		must(t, s.Stop(t.Context(), true))
		want(t, "the disk", disk, 0x11, 0, testSize)
	}
}

// What the guest has written is on the active device when it has been answered. A failover beside
// a full file system needs no more than a map of it, and the records that say what has happened.
func TestAFailoverNeedsNoRoomForTheMapOfTheGuestsWrites(t *testing.T) {
	dir := smallFileSystem(t, "4m")
	local := newFake(testSize, 0x11)
	p, err := NewPrimary(local, PrimaryConfig{Overwrite: true})
	must(t, err)
	j, err := OpenJournalFiles(filepath.Join(dir, "journal"), 64<<20) // with a map of some pages
	must(t, err)
	defer func() { must(t, j.Close()) }()
	disk, err := CreateFile(filepath.Join(dir, "image"), testSize)
	must(t, err)
	defer func() { must(t, disk.Close()) }()
	s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
	must(t, err)
	protectFirst(t, p, s)
	checkpointBoth(t, p, s, 1)
	write(t, s, 0x44, BlockSize, 2*BlockSize)
	fillUp(t, filepath.Join(dir, "full"))
	must(t, s.Stop(t.Context(), true))
	want(t, "the checkpoint", disk, 0x11, 0, BlockSize)
	want(t, "the guest's writes", disk, 0x44, BlockSize, 2*BlockSize)
	if id := disk.meta.Identity(); id.State != CopyClean || !id.Writes {
		t.Errorf("the copy is %v", id)
	}
	write(t, s, 0x55, 0, BlockSize)
	must(t, s.Sync())
}

func TestAJournalWithoutRoomForAFailoverIsRefused(t *testing.T) {
	dir := smallFileSystem(t, "64k")
	_, err := OpenJournalFiles(filepath.Join(dir, "journal"), 64<<20)
	wantErr(t, "a journal of 256 KiB of map", err, syscall.ENOSPC)
}

func TestARecordOfAFailoverNeedsNoRoomBesideAnImage(t *testing.T) {
	dir := smallFileSystem(t, "1m")
	image, err := CreateFile(filepath.Join(dir, "image"), 16<<30) // sparse
	must(t, err)
	defer func() { must(t, image.Close()) }()
	m, err := image.Metadata()
	must(t, err)
	must(t, m.Hold(1))
	fillUp(t, filepath.Join(dir, "full"))
	must(t, m.Hold(2))
	p, err := NewPrimary(image, PrimaryConfig{InSync: true})
	must(t, err)
	must(t, p.meta.intent.ensure(0, 1))
	must(t, p.meta.intent.ensure(12<<30, 1)) // in another page
}
