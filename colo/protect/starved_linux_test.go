package protect_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/failover/sharedfile"
	"github.com/gocolo/lockstep/internal/leaks"
	"github.com/gocolo/lockstep/replication"
)

// What a host opens before its job begins: its port, the record of who goes on, and a disk with a journal. (A page
// is tried in package watch.)
func TestAHostThatLacksADescriptorLeavesNothingOpen(t *testing.T) {
	dir := t.TempDir()
	for name, call := range map[string]func() error{
		"a port": func() error {
			p, err := protect.Listen("127.0.0.1:0", protect.PortConfig{Insecure: true})
			if err != nil {
				return err
			}
			return p.Close()
		},
		"an arbiter": func() error {
			_, err := sharedfile.New(filepath.Join(dir, "arbiter"))
			return err
		},
		"a disk": func() error {
			image, err := replication.CreateFile(filepath.Join(dir, "image"), 1<<20)
			if err != nil {
				return err
			}
			journal, err := replication.OpenJournalFiles(filepath.Join(dir, "journal"), 1<<20)
			if err != nil {
				return errors.Join(err, image.Close())
			}
			_, err = protect.NewDisk(protect.DiskConfig{Name: "disk", Image: image, Journal: journal})
			return errors.Join(err, journal.Close(), image.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			if n := leaks.Starve(t, call, dir); n == 0 {
				t.Error("it needs no descriptor")
			}
		})
	}
}
