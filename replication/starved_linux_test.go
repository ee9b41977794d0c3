package replication

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/gocolo/lockstep/internal/leaks"
)

// What opens an image, its metadata or a journal in a process that has too few descriptors gives
// back those that it got, and works as soon as there are enough.
func TestOpeningDisksWithTooFewDescriptorsLeavesNoneOpen(t *testing.T) {
	dir := t.TempDir()
	image, journal := filepath.Join(dir, "image"), filepath.Join(dir, "journal")
	recorded := func() error {
		d, err := OpenFile(image)
		if err != nil {
			return err
		}
		m, err := d.Metadata()
		if err == nil {
			err = m.change(func(f *facts) { f.id.begin() })
		}
		return errors.Join(err, d.Close())
	}
	for _, c := range []struct {
		name  string
		needs int
		call  func() error
	}{
		{"CreateFile", 2, func() error {
			os.Remove(image)
			d, err := CreateFile(image, 1<<20)
			if err != nil {
				return err
			}
			return d.Close()
		}},
		{"OpenFile", 1, func() error {
			d, err := OpenFile(image)
			if err != nil {
				return err
			}
			return d.Close()
		}},
		{"Metadata", 2, recorded},
		{"Metadata that is made", 3, func() error {
			os.Remove(image + metadataSuffix)
			return recorded()
		}},
		{"OpenJournalFiles", 3, func() error {
			os.Remove(journal + ".active")
			j, err := OpenJournalFiles(journal, 1<<20)
			if err != nil {
				return err
			}
			return j.Close()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if n := leaks.Starve(t, c.call, dir); n < c.needs {
				t.Errorf("it needed %d descriptors, want %d or more", n, c.needs)
			}
		})
	}
}
