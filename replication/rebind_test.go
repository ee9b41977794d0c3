package replication

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// An image that was restored is older than the other side believes: all of it is compared.
func TestARestoredImageIsNotTakenForTheOneThatItWas(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("files are not told apart here")
	}
	for _, c := range []struct {
		restored string
		journal  bool // the secondary had one, and is used without it then
	}{{"local", false}, {"disk", false}, {"disk", true}} {
		restored := c.restored
		dir := t.TempDir()
		file := func(name string) *File {
			f, err := CreateFile(filepath.Join(dir, name), 4<<20)
			must(t, err)
			return f
		}
		files := []string{restored, restored + metadataSuffix}
		backUp := func(from, to string) {
			for _, name := range files {
				p, err := os.ReadFile(filepath.Join(dir, name+from))
				must(t, err)
				must(t, os.WriteFile(filepath.Join(dir, name+to), p, 0o600))
			}
		}
		both := func(journal bool, do func(p *Primary, s *Secondary)) {
			local, disk := file("local"), file("disk")
			p, err := NewPrimary(local, PrimaryConfig{})
			must(t, err)
			cfg := SecondaryConfig{Overwrite: true}
			if journal {
				cfg.Journal, err = OpenJournal(newFake(8<<20, 0), newFake(8<<20, 0))
				must(t, err)
			}
			s, err := NewSecondary(disk, cfg)
			must(t, err)
			protectFirst(t, p, s)
			do(p, s)
			must(t, errors.Join(local.Close(), disk.Close()))
		}
		both(c.journal, func(p *Primary, s *Secondary) {
			write(t, p, 0x11, 0, BlockSize)
			checkpointBoth(t, p, s, 1)
			backUp("", ".backup")
			write(t, p, 0x22, 2<<20, BlockSize)
			checkpointBoth(t, p, s, 2)
			// Regions that are marked are copied in any case.
			p.peer.intent.settle(func(int64, int64) bool { return false }, func() error { return nil })
			p.peer.intent.mu.Lock()
			p.peer.intent.write(func(want, _ uint32) uint32 { return want })
			p.peer.intent.mu.Unlock()
		})
		for _, name := range files { // so that they are other files
			must(t, os.Rename(filepath.Join(dir, name), filepath.Join(dir, name+".lost")))
		}
		backUp(".backup", "")
		f := file(restored)
		must(t, f.Rebind())
		must(t, f.Close())
		both(false, func(p *Primary, s *Secondary) {
			checkpointBoth(t, p, s, 1)
			wantBytes(t, fmt.Sprintf("with %s restored, journal %v", restored, c.journal), read(t, s, 0, 4<<20), read(t, p, 0, 4<<20), 0)
		})
	}
}

// The journal was restored beside the image, and makes it clean, also if that is asked for too late at first.
func TestARestoredImageIsMadeCleanByItsJournal(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("files are not told apart here")
	}
	name := filepath.Join(t.TempDir(), "disk")
	f, err := CreateFile(name, 1<<20)
	must(t, err)
	hidden, active := newFake(8<<20, 0), newFake(8<<20, 0)
	j, err := OpenJournal(hidden, active)
	must(t, err)
	s, err := NewSecondary(f, SecondaryConfig{Journal: j, Overwrite: true})
	must(t, err)
	must(t, s.Adopt(Identity{Disk: newID(), Generation: Generation{1, 1}}))
	must(t, s.Start(t.Context()))
	was := s.meta.Identity()
	must(t, f.Close())
	f, err = OpenFile(name)
	must(t, err)
	must(t, f.Rebind())
	j, err = OpenJournal(hidden, active)
	must(t, err)
	_, err = NewSecondary(f, SecondaryConfig{Journal: j})
	wantErr(t, "before recovery", err, ErrUnclean)
	_, _, err = j.Recover(t.Context(), f)
	must(t, err)
	s, err = NewSecondary(f, SecondaryConfig{Journal: j})
	must(t, err)
	if is := s.Identity(); is.Copy != was.Copy || is.State != CopyClean {
		t.Errorf("it is %v, and was %v", is, was)
	}
	must(t, f.Close())
}
