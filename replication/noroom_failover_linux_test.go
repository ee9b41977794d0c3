package replication

import (
	"path/filepath"
	"syscall"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// The superblocks have their storage since the journal was first used, so that all that a failover
// records fits.
func TestAFailoverNeedsNoRoomForASuperblock(t *testing.T) {
	require.Outside(t, require.NetNS) // a mount takes the same rights
	for checkpoints := range uint64(2) {
		dir := t.TempDir()
		if err := syscall.Mount("none", dir, "tmpfs", 0, "size=2m"); err != nil {
			require.Missing(t, require.NetNS, err)
		}
		defer syscall.Unmount(dir, syscall.MNT_DETACH)
		local := newFake(testSize, 0x11)
		p, err := NewPrimary(local, PrimaryConfig{Overwrite: true})
		must(t, err)
		j, err := OpenJournalFiles(filepath.Join(dir, "journal"), 16<<20)
		must(t, err)
		defer func() { must(t, j.Close()) }()
		disk := newFake(testSize, 0)
		s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
		must(t, err)
		protectFirst(t, p, s)
		fillUp(t, filepath.Join(dir, "full"))
		for epoch := range checkpoints {
			checkpointBoth(t, p, s, epoch+1)
		}
		must(t, s.Stop(t.Context(), true))
		want(t, "the disk", disk, 0x11, 0, testSize)
	}
}
