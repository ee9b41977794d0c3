package replication

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A File whose metadata has a place where no file can be made, as in a directory that cannot
// be written, is refused when its session begins, on either side.
func TestAFileBesideWhichNothingCanBeMadeFailsWhenItIsAttachedOrStarted(t *testing.T) {
	dir := t.TempDir()
	place := filepath.Join(dir, "none", "there")
	open := func(name string) *File {
		t.Helper()
		d, err := CreateFile(filepath.Join(dir, name), testSize)
		must(t, err)
		t.Cleanup(func() { d.Close() })
		must(t, d.KeepMetadata(place))
		return d
	}
	refused := func(why string, err error) {
		t.Helper()
		if failed := (*os.PathError)(nil); !errors.As(err, &failed) || failed.Path != place {
			t.Errorf("%s: %v", why, err)
		}
	}

	p, err := NewPrimary(open("a"), PrimaryConfig{Overwrite: true})
	must(t, err)
	refused("the primary is attached", p.Attach(DiskRemote(newFake(testSize, 0))))
	s, err := NewSecondary(open("b"), SecondaryConfig{})
	must(t, err)
	refused("the secondary is started", s.Start(context.Background()))
}

// A file that cannot be asked who it is, for its descriptor is bad or its file system does not
// answer, is not taken for another one, which would make its metadata void.
func TestAFileThatCannotBeAskedWhoItIsKeepsItsMetadata(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	d, err := CreateFile(name, testSize)
	must(t, err)
	m, err := d.Metadata()
	must(t, err)
	must(t, m.update(func(i *Identity, _ *peerBase) { i.Disk = newID() }))
	want := m.Identity()
	must(t, d.Close())
	for _, place := range []string{"", name + metadataSuffix} {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		must(t, err)
		d, err := NewFile(f)
		must(t, err)
		must(t, d.KeepMetadata(place))
		must(t, f.Close())
		if _, err := d.Metadata(); err == nil {
			t.Errorf("metadata at %q of a file that nobody can ask", place)
		}
		if d.Rebind() == nil {
			t.Errorf("a file that nobody can ask is bound to the metadata at %q", place)
		}
	}
	got, err := ReadIdentity(name)
	must(t, err)
	if got != want {
		t.Errorf("it was %v, and is %v", want, got)
	}
}
