package replication

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// smallFileSystem returns a directory with a file system of its own, of so many bytes, until the end of the test.
func smallFileSystem(t *testing.T, bytes string) string {
	t.Helper()
	require.Outside(t, require.NetNS) // a mount takes the same rights
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size="+bytes); err != nil {
		require.Missing(t, require.NetNS, err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// fillUp writes a file until its file system has no room.
func fillUp(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	must(t, err)
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	wantErr(t, "filling the file system up", err, syscall.ENOSPC)
}

// pairWithSmallFileSystem makes both sides of a disk. The secondary's journal is on a small file system, in dir.
func pairWithSmallFileSystem(t *testing.T) (p *Primary, local *fakeDisk, s *Secondary, disk *fakeDisk, dir string) {
	t.Helper()
	dir = smallFileSystem(t, "2m")
	local, disk = newFake(testSize, 0x11), newFake(testSize, 0)
	p, err := NewPrimary(local, PrimaryConfig{Overwrite: true})
	must(t, err)
	j, err := OpenJournalFiles(filepath.Join(dir, "journal"), 16<<20)
	must(t, err)
	t.Cleanup(func() { must(t, j.Close()) })
	s, err = NewSecondary(disk, SecondaryConfig{Journal: j})
	must(t, err)
	return p, local, s, disk, dir
}

func TestAFullFileSystemUnderAJournalEndsNoMoreThanTheRun(t *testing.T) {
	ctx := context.Background()
	p, local, s, disk, dir := pairWithSmallFileSystem(t)
	full := filepath.Join(dir, "full")

	// The superblocks have room.
	fillUp(t, full)
	protectFirst(t, p, s)
	must(t, os.Remove(full))
	checkpointBoth(t, p, s, 1)
	checkpoint := bytes.Clone(disk.data)

	// There is no room for a pre-image.
	fillUp(t, full)
	var err error
	for err == nil { // a page of a file may have some room left
		_, err = s.Export().WriteAt(bytes.Repeat([]byte{0x22}, testSize), 0)
	}
	wantErr(t, "a write without room for what it replaces", err, syscall.ENOSPC)
	wantBytes(t, "what the guest sees", read(t, s, 0, testSize), checkpoint, 0)
	must(t, p.Stop(ctx, true))
	write(t, p, 0x33, 0, half)
	must(t, os.Remove(full))
	protectFirst(t, p, s)
	checkpointBoth(t, p, s, 1)
	wantBytes(t, "the copy", disk.data, local.data, 0)

	// What the guest writes has found room, and the map of it has its own.
	write(t, s, 0x44, 0, BlockSize)
	fillUp(t, full)
	must(t, s.Stop(ctx, true))
	want(t, "the guest's write", disk, 0x44, 0, BlockSize)
	want(t, "the rest", disk, 0x33, BlockSize, half-BlockSize)
}
