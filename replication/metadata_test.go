package replication

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// keptDisk is a fakeDisk that keeps its metadata, on another.
type keptDisk struct {
	*fakeDisk
	meta *Metadata
}

func (d *keptDisk) Metadata() (*Metadata, error) { return d.meta, nil }

// reopened returns a disk as the next process finds it, with its metadata on dev.
func reopened(t testing.TB, d, dev *fakeDisk) *keptDisk {
	t.Helper()
	m, err := OpenMetadata(dev)
	if err != nil {
		t.Fatal(err)
	}
	return &keptDisk{d, m}
}

func newMetaDevice(size int64) *fakeDisk {
	return newPoweredFake(make([]byte, metadataHead+intentBytes(size)))
}

func TestMetadataIsOfTheImageThatItWasMadeFor(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("files are not told apart here")
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "image")
	open := func(name string) *File {
		t.Helper()
		d, err := CreateFile(name, testSize)
		must(t, err)
		return d
	}
	d := open(name)
	m, err := d.Metadata()
	must(t, err)
	if _, err := os.Stat(name + metadataSuffix); err == nil {
		t.Error("there is a file though there is nothing to record")
	}
	must(t, m.update(func(i *Identity, _ *peerBase) { *i = lineage(1)[0] }))
	id := m.Identity()
	if got, err := ReadIdentity(name); err != nil || got != id {
		t.Errorf("while it is in use: %v, %v", got, err)
	}
	must(t, m.Hold(7))
	must(t, d.Close())
	d = open(name)
	m, err = d.Metadata()
	must(t, err)
	if m.Identity() != id || m.Held() != 7 {
		t.Errorf("the next process reads %v, and that %d is held, want %v, and 7", m.Identity(), m.Held(), id)
	}
	must(t, d.Close())

	must(t, os.Rename(name, name+".old"))
	d = open(name)
	m, err = d.Metadata()
	must(t, err)
	if got := m.Identity(); got.Disk != (ID{}) || got.Copy == id.Copy {
		t.Errorf("a new image under the old name is taken for %v", got)
	}
	must(t, d.Close())
	_, err = ReadIdentity(name)
	wantErr(t, "status of a replaced image", err, ErrIdentity)

	must(t, os.Rename(name+metadataSuffix, name+".old"+metadataSuffix)) // the old image, and its file beside it
	if got, err := ReadIdentity(name + ".old"); err != nil || got != id {
		t.Errorf("the old image is %v, %v", got, err)
	}
	moved := filepath.Join(dir, "copy")
	content, err := os.ReadFile(name + ".old" + metadataSuffix)
	must(t, err)
	must(t, os.WriteFile(moved+metadataSuffix, content, 0o600))
	d = open(moved)
	must(t, d.Rebind())
	m, err = d.Metadata()
	must(t, err)
	if m.Identity() != id {
		t.Errorf("an image that was bound to its metadata again is %v", m.Identity())
	}
	must(t, d.Close())
}

func TestMetadataIsOldOrNewAfterAPowerCut(t *testing.T) {
	for at := range 6 {
		dev := newMetaDevice(testSize)
		d := reopened(t, newFake(testSize, 0), dev)
		must(t, d.meta.update(func(i *Identity, _ *peerBase) { *i = lineage(1)[0] }))
		before := d.meta.Identity()
		dev.power = &power{left: at}
		err := d.meta.update(func(i *Identity, _ *peerBase) { i.begin() })
		after := before
		for seed := range uint64(8) {
			m, errOpen := OpenMetadata(dev.cutPower(rand.New(rand.NewPCG(seed, 0))))
			must(t, errOpen)
			after = m.Identity()
			if err == nil && after == before {
				t.Fatalf("power fails after %d operations: an update that was answered is gone", at)
			}
			if after != before && (after.History[0] != before.Generation || after.Disk != before.Disk) {
				t.Fatalf("power fails after %d operations: %v", at, after)
			}
		}
	}
}
