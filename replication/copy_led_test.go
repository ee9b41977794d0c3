package replication

import (
	"bytes"
	"path/filepath"
	"testing"
)

// openFile opens a disk image of size bytes, which it makes if it is not there.
func openFile(t *testing.T, name string, size int64) *File {
	t.Helper()
	f, err := CreateFile(name, size)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// joinedBy starts replication of p to s, and returns the error of Attach.
func joinedBy(t *testing.T, p *Primary, s *Secondary) error {
	t.Helper()
	if err := p.Attach(WithIdentity(newFakeRemote(s.Export(), 1), NewIdentityDisk(s))); err != nil {
		return err
	}
	must(t, p.Synchronise(t.Context(), SyncConfig{}))
	must(t, p.Mark(t.Context(), 0))
	must(t, s.Start(t.Context()))
	must(t, p.Loaded(t.Context(), 0))
	must(t, p.Start(t.Context()))
	return nil
}

// A copy of a checkpoint that a guest goes on with is of another generation, whichever way its guest
// changes it first, and the primary of before does not take it for what it left.
func TestAStoppedSecondarysCopyThatAGuestWritesBeginsAGeneration(t *testing.T) {
	const size, far = 4 << 20, 3 << 20
	for name, change := range map[string]func(p *Primary) error{
		"a write":        func(p *Primary) error { _, err := p.WriteAt(bytes.Repeat([]byte{7}, SectorSize), far); return err },
		"a FUA write":    func(p *Primary) error { return p.WriteFUA(bytes.Repeat([]byte{7}, SectorSize), far) },
		"zeroes":         func(p *Primary) error { return p.WriteZeroes(far, SectorSize) },
		"a trim":         func(p *Primary) error { return p.Trim(far, BlockSize) },
		"a secondary":    nil, // of its own
		"with a journal": func(p *Primary) error { _, err := p.WriteAt(bytes.Repeat([]byte{7}, SectorSize), far); return err },
	} {
		for _, wentOn := range []bool{false, true} { // the primary of before, alone
			if testing.Short() && (name != "a write" || !wentOn) {
				continue
			}
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				path := func(name string) string { return filepath.Join(dir, name) }
				a, b := openFile(t, path("a"), size), openFile(t, path("b"), size)
				p, err := NewPrimary(a, PrimaryConfig{})
				must(t, err)
				cfg := SecondaryConfig{Blank: true}
				if name == "with a journal" {
					cfg.Journal, err = OpenJournalFiles(path("j"), 2*size)
					must(t, err)
					defer cfg.Journal.Close()
				}
				s, err := NewSecondary(b, cfg)
				must(t, err)
				must(t, joinedBy(t, p, s))
				write(t, p, 1, 0, SectorSize)
				checkpointBoth(t, p, s, 1)
				must(t, s.Stop(t.Context(), false))
				must(t, p.Stop(t.Context(), wentOn))
				must(t, a.Close())
				must(t, b.Close())

				b = openFile(t, path("b"), size)
				was := metadata(t, b)
				leads, err := NewPrimary(b, PrimaryConfig{})
				must(t, err)
				if change == nil {
					s, err := NewSecondary(openFile(t, path("c"), size), SecondaryConfig{Blank: true})
					must(t, err)
					must(t, joinedBy(t, leads, s))
				} else {
					must(t, change(leads))
				}
				must(t, leads.Sync())
				leads.Stop(t.Context(), false)
				is := metadata(t, b)
				if !is.Writes || is.State != CopyClean || is.Generation.Number != was.Generation.Number+1 || !is.descends(was) {
					t.Errorf("it was %v, and is %v", was, is)
				}
				must(t, b.Close())

				a, b = openFile(t, path("a"), size), openFile(t, path("b"), size)
				p, err = NewPrimary(a, PrimaryConfig{})
				must(t, err)
				s, err = NewSecondary(b, SecondaryConfig{})
				must(t, err)
				want := ErrOutdated
				if wentOn {
					want = ErrDiverged
				}
				wantErr(t, "the primary of before", joinedBy(t, p, s), want)
			})
		}
	}
}

func metadata(t *testing.T, f *File) Identity {
	t.Helper()
	m, err := f.Metadata()
	must(t, err)
	return m.Identity()
}
