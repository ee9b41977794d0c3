package protect

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/gocolo/lockstep/replication"
)

// Files with what is kept beside them, and with the journal of a secondary, become longer as images in memory do,
// while they are used and while their host is away.
func TestFilesWithJournalsGrow(t *testing.T) {
	withDisk(t, "", func(t *testing.T, w *world) {
		dir := t.TempDir()
		var open []interface{ Close() error }
		files := func(name string) func(*Config) {
			return func(c *Config) {
				path := filepath.Join(dir, name)
				file, err := replication.OpenFile(path)
				if err != nil {
					file, err = replication.CreateFile(path, diskSize)
				}
				journal, jerr := replication.OpenJournalFiles(path+".journal", 8*diskSize)
				if err := errors.Join(err, jerr); err != nil {
					t.Fatal(err)
				}
				open = append(open, file, journal)
				d, err := NewDisk(DiskConfig{Name: "files", Image: file, Journal: journal})
				if err != nil {
					t.Fatal(err)
				}
				c.Disks = append(c.Disks, d)
			}
		}
		disk := func(h *host) *Disk { return h.job.cfg.Disks[1] }
		b := w.boot("b", false, files("b"))
		a := w.boot("a", true, files("a"))
		a.is(Protected)
		b.is(Following)
		if err := a.job.Grow(t.Context(), "files", grownSize); err != nil {
			t.Fatal(err)
		}
		if _, err := disk(a).WriteAt(sector, grownSize-sectorSize); err != nil {
			t.Error(err)
		}
		w.hearsMore()
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.is(Protected)
		a.is(Following)
		a.halt() // which leaves its journal as a host does that follows
		b.is(Alone)
		if err := errors.Join(open[2].Close(), open[3].Close()); err != nil { // of a
			t.Error(err)
		}
		open = open[:2]
		if err := b.job.Grow(t.Context(), "files", grownSize+diskSize); err != nil {
			t.Error(err)
		}
		a = w.boot("a", false, files("a"))
		b.is(Protected)
		a.is(Following)
		if got := disk(a).Size(); got != grownSize+diskSize {
			t.Errorf("%d bytes", got)
		}
		if err := b.job.Switchover(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.is(Protected)
		got := make([]byte, sectorSize)
		if _, err := disk(a).ReadAt(got, grownSize-sectorSize); err != nil || string(got) != string(sector) {
			t.Errorf("%.8x, %v", got, err)
		}
		a.halt()
		b.halt()
		for _, c := range open {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}
