package replication

import (
	"path/filepath"
	"testing"
)

func TestWhatIsOnRecordOfACopyIsReadWhileItIsInUse(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	local, err := CreateFile(path("a"), 4<<20)
	must(t, err)
	defer func() { must(t, local.Close()) }()
	disk, err := CreateFile(path("b"), 4<<20)
	must(t, err)
	defer func() { must(t, disk.Close()) }()
	j, err := OpenJournalFiles(path("j"), 8<<20)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	p, err := NewPrimary(local, PrimaryConfig{Overwrite: true})
	must(t, err)
	s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
	must(t, err)
	protectFirst(t, p, s)
	checkpointBoth(t, p, s, 1)
	write(t, p, 0x22, 1<<20, 1)
	must(t, p.meta.Hold(7))
	must(t, s.Prepare(t.Context(), 2))

	a, err := ReadCopy(path("a"))
	must(t, err)
	b, err := ReadCopy(path("b"))
	must(t, err)
	r, err := ReadJournal(path("j"))
	must(t, err)
	if a.Identity != p.Identity() || a.Held != 7 || a.Secondary != s.Identity().Copy || a.SecondaryGeneration != a.Identity.Generation || a.Journal != (ID{}) || a.Marked < 1<<20 {
		t.Errorf("of the primary's copy: %+v", a)
	}
	if b.Identity.Copy != s.Identity().Copy || b.Journal != r.Name || b.Secondary != (ID{}) || r.Name == (ID{}) {
		t.Errorf("of the secondary's copy: %+v", b)
	}
	if r.State != Running || r.Epoch != 1 || r.Prepared != 2 || r.Size != 4<<20 || r.Own != 0 || r.Identity.Copy != b.Identity.Copy {
		t.Errorf("of its journal: %+v", r)
	}
	write(t, s, 0x33, 0, 2*BlockSize)
	must(t, s.PrepareFailover(t.Context()))
	if r, err = ReadJournal(path("j")); err != nil || r.State != Failover || r.Own != 2 {
		t.Errorf("of a journal in a failover: %+v, %v", r, err)
	}
}
