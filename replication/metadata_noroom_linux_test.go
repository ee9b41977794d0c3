package replication

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A file of metadata that was copied sparsely has no storage for what is written next.
func TestAFullFileSystemUnderSparseMetadataEndsNothing(t *testing.T) {
	dir := smallFileSystem(t, "1m")
	name := filepath.Join(dir, "image")
	image, err := CreateFile(name, 4*intentRegion)
	must(t, err)
	m, err := image.Metadata()
	must(t, err)
	must(t, m.update(func(i *Identity, _ *peerBase) { i.Disk, i.State = newID(), CopyClean }))
	must(t, image.Close())
	meta, err := os.OpenFile(name+metadataSuffix, os.O_RDWR, 0)
	must(t, err)
	const keepSize, punchHole = 1, 2
	const first = metadataSlot // the metadata of the number 1 is in the second slot
	must(t, syscall.Fallocate(int(meta.Fd()), keepSize|punchHole, 0, first))
	must(t, syscall.Fallocate(int(meta.Fd()), keepSize|punchHole, metadataHead, 4096))
	must(t, meta.Close())
	full := filepath.Join(dir, "full")
	fillUp(t, full)

	image, err = OpenFile(name)
	must(t, err)
	defer func() { must(t, image.Close()) }()
	m, err = image.Metadata()
	must(t, err)
	wantErr(t, "metadata without room", m.Hold(1), syscall.ENOSPC)
	p, err := NewPrimary(image, PrimaryConfig{Overwrite: true})
	must(t, err)
	wantErr(t, "a mark without room", p.meta.intent.ensure(0, 1), syscall.ENOSPC)
	must(t, p.LocalErr())
	must(t, os.Remove(full))
	must(t, m.Hold(2))
	must(t, p.meta.intent.ensure(0, 1))
	if n := m.Held(); n != 2 {
		t.Errorf("%d is held", n)
	}
}
