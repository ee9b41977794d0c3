package replication

import (
	"os"
	"path/filepath"
	"testing"
)

// An image that is opened by a symbolic link, and then by its name, would otherwise be taken for the
// one that it was before.
func TestAnImageHasOneAccountByWhateverLinkItIsOpened(t *testing.T) {
	dir := t.TempDir()
	image, link := filepath.Join(dir, "image"), filepath.Join(dir, "link")
	f, err := CreateFile(image, testSize)
	must(t, err)
	must(t, f.Close())
	must(t, os.Symlink("image", link))
	hold := func(name string, n uint64) {
		t.Helper()
		f, err := OpenFile(name)
		must(t, err)
		defer f.Close()
		m, err := f.Metadata()
		must(t, err)
		if m.Held() != n-1 {
			t.Errorf("%s has what was recorded as %d, want %d", filepath.Base(name), m.Held(), n-1)
		}
		must(t, m.Hold(n))
	}
	hold(link, 1)
	hold(image, 2)
	hold(link, 3)
	byName, err := ReadIdentity(image)
	must(t, err)
	byLink, err := ReadIdentity(link)
	must(t, err)
	if byName != byLink || byName.Copy == (ID{}) {
		t.Errorf("it is %v by its name, and %v by a link", byName, byLink)
	}

	// It is moved, and a link is left in its place.
	moved := filepath.Join(dir, "moved")
	must(t, os.Rename(image, moved))
	must(t, os.Symlink("moved", image))
	hold(image, 4)
	if i, err := ReadIdentity(image); err != nil || i != byName {
		t.Errorf("after the move it is %v, %v", i, err)
	}
}
