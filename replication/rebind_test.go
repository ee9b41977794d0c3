package replication

import (
	"errors"
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
	for _, restored := range []string{"local", "disk"} {
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
		both := func(do func(p *Primary, s *Secondary)) {
			local, disk := file("local"), file("disk")
			p, err := NewPrimary(local, PrimaryConfig{})
			must(t, err)
			s, err := NewSecondary(disk, SecondaryConfig{Overwrite: true})
			must(t, err)
			protectFirst(t, p, s)
			do(p, s)
			must(t, errors.Join(local.Close(), disk.Close()))
		}
		both(func(p *Primary, s *Secondary) {
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
		both(func(p *Primary, s *Secondary) {
			checkpointBoth(t, p, s, 1)
			wantBytes(t, "with "+restored+" restored", read(t, s, 0, 4<<20), read(t, p, 0, 4<<20), 0)
		})
	}
}
