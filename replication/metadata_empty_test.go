package replication

import (
	"os"
	"path/filepath"
	"testing"
)

// A host that was lost, or found its file system full, while it made the file beside an
// image leaves it empty, or blank. Nothing was recorded in it yet, so the image is as
// without one.
func TestAMetadataFileOfNothingIsNone(t *testing.T) {
	for how, content := range map[string][]byte{"empty": nil, "blank": make([]byte, metadataHead+SectorSize)} {
		t.Run(how, func(t *testing.T) { testMetadataOfNothing(t, content) })
	}
}

func testMetadataOfNothing(t *testing.T, content []byte) {
	name := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(name, make([]byte, BlockSize), 0o600))
	must(t, os.WriteFile(name+metadataSuffix, content, 0o600))
	if i, err := ReadIdentity(name); err != nil || i != (Identity{}) {
		t.Errorf("read from outside: %v, %v", i, err)
	}
	d, err := OpenFile(name)
	must(t, err)
	defer d.Close()
	p, err := NewPrimary(d, PrimaryConfig{Overwrite: true})
	must(t, err)
	must(t, p.Attach(DiskRemote(newFake(BlockSize, 0))))
	if i, err := ReadIdentity(name); err != nil || i != p.Identity() || i.Disk == (ID{}) {
		t.Errorf("what was recorded then: %v, %v; it is %v", i, err, p.Identity())
	}
}
