package replication

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"syscall"
	"testing"
)

// guardRig is a directory with the images of both sides and the journals of a secondary
// that was killed when it was past checkpoint 1.
type guardRig struct {
	t   *testing.T
	dir string
	p   *Primary
}

func newGuardRig(t *testing.T) *guardRig {
	x := &guardRig{t: t, dir: t.TempDir()}
	local := x.image("local")
	t.Cleanup(func() { local.Close() })
	var err error
	x.p, err = NewPrimary(local, PrimaryConfig{Overwrite: true})
	must(t, err)
	x.follow("journal", func(s *Secondary) {
		protectFirst(t, x.p, s)
		write(t, x.p, 0x11, 0, BlockSize)
		checkpointBoth(t, x.p, s, 1)
		write(t, x.p, 0x22, 0, BlockSize)
		must(t, x.p.Sync())
		must(t, x.p.Stop(context.Background(), true))
	})
	return x
}

func (x *guardRig) image(name string) *File {
	f, err := CreateFile(filepath.Join(x.dir, name), 4<<20)
	must(x.t, err)
	return f
}

func (x *guardRig) open(journal string) *Journal {
	j, err := OpenJournalFiles(filepath.Join(x.dir, journal), 8<<20)
	must(x.t, err)
	return j
}

// follow is a process of the secondary, with a journal or, without a name, none.
func (x *guardRig) follow(journal string, do func(*Secondary)) {
	x.t.Helper()
	disk := x.image("disk")
	cfg := SecondaryConfig{Overwrite: true}
	if journal != "" {
		cfg.Journal = x.open(journal)
		defer cfg.Journal.Close()
	}
	s, err := NewSecondary(disk, cfg)
	must(x.t, err)
	do(s)
	must(x.t, disk.Close())
}

// A host whose secondary was killed comes back without its journal, and its disk goes on.
// When the journal is there again, it must not take that disk back to where it was.
func TestAJournalUndoesNothingThatWasWrittenWithoutIt(t *testing.T) {
	ctx := context.Background()
	takesOver := func(x *guardRig) func(*Secondary) {
		return func(s *Secondary) {
			protectFirst(t, x.p, s)
			checkpointBoth(t, x.p, s, 1)
			must(t, x.p.Stop(ctx, true))
			must(t, s.Stop(ctx, true))
			write(t, s, 0x44, 0, BlockSize)
			must(t, s.Sync())
		}
	}
	for _, c := range []struct {
		name string
		next func(x *guardRig)
		want byte
	}{
		{"a secondary without it takes over", func(x *guardRig) { x.follow("", takesOver(x)) }, 0x44},
		{"one with another journal does", func(x *guardRig) { x.follow("other", takesOver(x)) }, 0x44},
		{"one with another is filled by a primary that is not known", func(x *guardRig) {
			x.follow("other", func(s *Secondary) { write(t, s.Export(), 0x44, 0, BlockSize); must(t, s.Export().Sync()) })
		}, 0x44},
		{"a guest writes the image itself", func(x *guardRig) {
			disk := x.image("disk")
			p, err := NewPrimary(disk, PrimaryConfig{PermitOutdated: true})
			must(t, err)
			write(t, p, 0x44, 0, BlockSize)
			must(t, errors.Join(p.Sync(), disk.Close()))
		}, 0x44},
		{"a guest gets it, and writes nothing", func(x *guardRig) {
			disk := x.image("disk")
			p, err := NewPrimary(disk, PrimaryConfig{PermitOutdated: true})
			must(t, err)
			must(t, errors.Join(p.Sync(), disk.Close()))
		}, 0x11},
		{"a secondary without it waits for a primary in vain", func(x *guardRig) { x.follow("", func(*Secondary) {}) }, 0x11},
		{"one without it is asked by a primary that is lost then", func(x *guardRig) {
			x.follow("", func(s *Secondary) { must(t, joinOver(x.p, s)) })
		}, 0x11},
	} {
		x := newGuardRig(t)
		c.next(x)
		disk, j := x.image("disk"), x.open("journal")
		_, _, err := j.Recover(ctx, disk)
		if refused := c.want == 0x44; refused != errors.Is(err, ErrIdentity) || !refused && err != nil {
			t.Errorf("%s: recovered, %v", c.name, err)
		}
		want(t, c.name, disk, c.want, 0, BlockSize)
		must(t, errors.Join(disk.Close(), j.Close()))
	}
}

// The journal of a disk that a guest has written meanwhile is used again when the disk
// follows again.
func TestAJournalIsUsedAgainAfterItsDiskWasWrittenWithoutIt(t *testing.T) {
	ctx := context.Background()
	x := newGuardRig(t)
	disk, j := x.image("disk"), x.open("journal")
	_, _, err := j.Recover(ctx, disk)
	must(t, errors.Join(err, j.Close()))
	p, err := NewPrimary(disk, PrimaryConfig{})
	must(t, err)
	write(t, p, 0x55, 0, BlockSize)
	must(t, errors.Join(p.Sync(), disk.Close()))
	x.follow("journal", func(s *Secondary) {
		protectFirst(t, x.p, s)
		write(t, x.p, 0x66, 0, BlockSize)
		checkpointBoth(t, x.p, s, 1)
		write(t, x.p, 0x77, 0, BlockSize)
		must(t, x.p.Sync())
	})
	disk, j = x.image("disk"), x.open("journal")
	_, _, err = j.Recover(ctx, disk)
	must(t, err)
	want(t, "the last checkpoint", disk, 0x66, 0, BlockSize)
	must(t, errors.Join(disk.Close(), j.Close()))
}

// A disk is not written as a primary's before its metadata says that its journal undoes nothing
// of it any more.
func TestADiskWhoseJournalCannotBeLeftIsNotWritten(t *testing.T) {
	ctx := context.Background()
	disk, dev := newPoweredFake(make([]byte, testSize)), newFake(metadataHead, 0)
	j, err := OpenJournal(newFake(minJournal, 0), newFake(minJournal, 0))
	must(t, err)
	s, err := NewSecondary(reopened(t, disk, dev), SecondaryConfig{Journal: j})
	must(t, err)
	must(t, s.Start(ctx))
	must(t, s.Stop(ctx, false))
	p, err := NewPrimary(reopened(t, disk, dev), PrimaryConfig{})
	must(t, err)
	dev.failWrite = func(int64, int) error { return errInjected }
	for range 2 {
		_, err = p.WriteAt(bytes.Repeat([]byte{0x22}, SectorSize), 0)
		wantErr(t, "the guest's write", err, errInjected)
	}
	want(t, "the disk", disk, 0, 0, testSize)
}

// A checkpoint that was prepared, and is given up for a primary that comes back, is not the one
// to which a crash brings the disk.
func TestAPreparedCheckpointIsForgottenWhenAPrimaryComesBack(t *testing.T) {
	ctx := context.Background()
	p, s, _, _ := resyncRig(t, true)
	must(t, p.Mark(ctx, 2))
	must(t, s.Prepare(ctx, 2))
	j := s.cfg.Journal
	if j.super.prepared != 2 {
		t.Fatalf("%d is prepared, want 2", j.super.prepared)
	}
	must(t, p.Detach())
	hidden := j.hidden.Disk.(*fakeDisk)
	hidden.failWrite = func(int64, int) error { return syscall.ENOSPC }
	for range 2 {
		wantErr(t, "without room to say so", joinOver(p, s), syscall.ENOSPC)
		_, err := s.Export().WriteAt(make([]byte, BlockSize), 0)
		wantErr(t, "a write before that", err, ErrGated)
	}
	hidden.failWrite = nil
	must(t, joinOver(p, s))
	if j.super.prepared != 0 {
		t.Errorf("%d is still prepared", j.super.prepared)
	}
}
