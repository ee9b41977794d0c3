package replication

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
)

// checkLengths returns ErrSize unless devices of so many bytes can be a journal.
func checkLengths(hidden, active int64) error {
	if hidden < minJournal || hidden > SectorSize*math.MaxUint32 || active < minJournal {
		return fmt.Errorf("%w: devices of %d and %d bytes for a journal, want at least %d each and at most 2 TiB", ErrSize, hidden, active, minJournal)
	}
	return nil
}

// keeps returns ErrCorrupt if devices of so many bytes have lost a part that a recovery may
// need. The guest's own writes count only after a failover.
func (b *superblock) keeps(hidden, active int64) error {
	short := func(what string, has int64, had uint64) error {
		return fmt.Errorf("%w: the %s has %d bytes, and had %d when the journal was used: what is missing may be needed to recover the disk", ErrCorrupt, what, has, had)
	}
	switch {
	case (b.state == Running || b.state == Failover) && uint64(hidden) < b.hidden:
		return short("hidden device", hidden, b.hidden)
	case b.state == Failover && uint64(active) < b.active:
		return short("active device", active, b.active)
	}
	return nil
}

// OpenJournalFiles opens the journal in two sparse files, base.hidden and
// base.active, of at most bytes each, made if they are not there. Close
// closes them. Files of another length are made longer or shorter if the journal is clean;
// otherwise they stay as long as they are until it is, and is opened again. In the place of a
// file may be a block device, which is used as long as it is. What a failover writes, a map of 16 bytes for
// each 4 KiB of the journal, has its storage from the beginning, where the file system can promise that: the
// error matches ENOSPC if there is no room for it. It waits for the system without a bound, as [OpenFile] does.
func OpenJournalFiles(base string, bytes int64) (*Journal, error) {
	bytes -= bytes % BlockSize
	if err := checkLengths(bytes, bytes); err != nil {
		return nil, err
	}
	base = filepath.Clean(base)
	hidden, err := makeFile(base+".hidden", bytes, lockFile)
	if err != nil {
		return nil, err
	}
	active, err := makeFile(base+".active", bytes, lockFile)
	if err != nil {
		return nil, errors.Join(err, hidden.Close())
	}
	j, err := OpenJournal(hidden, active)
	if err == nil && j.Clean() { // then nothing counts but the superblocks
		err = errors.Join(hidden.setLength(bytes), active.setLength(bytes))
		if err == nil { // what a failover writes needs no room then
			err = errors.Join(reserve(hidden.f, logStart), reserve(active.f, activeData(slotsOf(active.Size()))))
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", base, err), hidden.Close(), active.Close())
	}
	j.files = []*File{hidden, active}
	return j, nil
}

// Close closes the files, if OpenJournalFiles opened them. It is called after
// the last use of the Secondary.
func (j *Journal) Close() error {
	var errs []error
	for _, f := range j.files {
		errs = append(errs, f.Close())
	}
	j.files = nil
	return errors.Join(errs...)
}
