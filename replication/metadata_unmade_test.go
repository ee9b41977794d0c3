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
