package replication

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// CopyRecord is what stable storage says of a copy beside its content; see [Metadata].
type CopyRecord struct {
	Identity Identity
	Held     uint64 // see Metadata.Hold
	// Journal is the name of the journal with which the copy was changed last; zero: it was none.
	Journal ID
	// Of a primary's copy: which secondary's copy it has an account of, and the checkpoint that one had when
	// the account was last written. Zero: it has none.
	Secondary           ID
	SecondaryGeneration Generation
	SecondaryEpoch      uint64
	// Marked is how many bytes of the disk are marked in the write-intent bitmap, as such that the secondary
	// may lack: what a primary that is started again has to look at. -1: there is no bitmap.
	Marked int64
}

// ReadIdentity returns the identity of the image of that name, as ReadCopy does.
func ReadIdentity(name string) (Identity, error) {
	r, err := ReadCopy(name)
	return r.Identity, err
}

// ReadCopy returns what the file beside the image of that name says. It changes
// neither, so that it works while another process uses them. An image without metadata has
// the zero Identity, and no bitmap. The error is errors.ErrUnsupported if nothing is beside a block device: its
// identity is in the file that KeepMetadata named, in its Journal, or in memory. It waits for the system without a
// bound, as [OpenFile] does, and so do ReadIdentity and ReadJournal.
func ReadCopy(name string) (CopyRecord, error) {
	none := CopyRecord{Marked: -1}
	f, err := os.Open(name)
	if err != nil {
		return none, err
	}
	defer f.Close()
	g, err := os.Open(metadataBeside(name))
	if errors.Is(err, os.ErrNotExist) {
		if st, err := f.Stat(); err != nil || st.Mode().IsRegular() {
			return none, err
		}
		return none, fmt.Errorf("replication: %s is no regular file, and nothing beside it says whose copy it is: the process that uses it knows, and its journal, if it has one: %w",
			name, errors.ErrUnsupported)
	}
	if err != nil {
		return none, err
	}
	defer g.Close()
	if st, err := g.Stat(); err != nil || st.Size() == 0 {
		return none, err
	}
	d, err := NewFile(g)
	if err != nil {
		return none, err
	}
	m, err := readMetadata(d)
	if err != nil {
		return none, fmt.Errorf("%s: %w", g.Name(), err)
	}
	if m.seq == 0 {
		return none, nil // nothing has been recorded yet
	}
	bound, err := birth(f)
	if err != nil {
		return none, err
	}
	if m.bound != bound {
		return none, fmt.Errorf("%w: %s is that of a file which was replaced", ErrIdentity, g.Name())
	}
	r := CopyRecord{
		Identity: m.id, Held: m.held, Journal: m.guard,
		Secondary: m.peer.Copy, SecondaryGeneration: m.peer.Generation, SecondaryEpoch: m.peer.Epoch, Marked: -1,
	}
	image, err := NewFile(f)
	if err != nil {
		return r, err
	}
	t, err := m.openIntent(image.Size())
	if t != nil {
		r.Marked = 0
		t.marked(func(_, n int64) { r.Marked += n })
	}
	return r, err
}

// JournalRecord is what stable storage says of a [Journal].
type JournalRecord struct {
	Name     ID       // its own
	Identity Identity // of the disk, at Epoch
	// State is None or Done if the journal is clean. In the states Running and Failover Recover makes the disk that of Epoch, in
	// Failover with what the guest of this side has written since.
	State    State
	Epoch    uint64
	Prepared uint64 // the checkpoint that the disk has been prepared for; 0: none
	Size     int64  // of the disk, in bytes
	Own      int64  // in state Failover: how many blocks the guest of this side has written
	Alone    bool   // a failover was ordered of this disk and not of all disks of its guest
}

// ReadJournal returns what the journal in the files base.hidden and base.active says. It changes neither, so that
// it works while another process uses them. The errors are those of OpenJournal.
func ReadJournal(base string) (r JournalRecord, err error) {
	var devices [2]Disk
	for i, suffix := range []string{".hidden", ".active"} {
		f, err := os.Open(filepath.Clean(base) + suffix)
		if err != nil {
			return r, err
		}
		defer f.Close()
		if devices[i], err = NewFile(f); err != nil {
			return r, err
		}
	}
	j, err := readJournal(devices[0], devices[1])
	if err != nil {
		return r, fmt.Errorf("%s: %w", base, err)
	}
	b := j.super
	return JournalRecord{
		Name: b.name, Identity: b.id, State: b.state, Epoch: b.epoch, Prepared: b.prepared,
		Size: int64(b.size), Own: int64(b.entries), Alone: b.alone,
	}, nil
}
