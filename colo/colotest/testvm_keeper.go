package colotest

import (
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/vmstate/ram"
)

// keeper checks a log that can leave pages writable: pages that are named are reported
// each time that they have been written since they were named, whatever was read between;
// the others are logged as always; and once none is named, the next ReadDirty reports those
// that were, and a later one does not.
func (s *subject) keeper() error {
	k, ok := s.Log.(ram.DirtyKeeper)
	if !ok {
		return nil
	}
	if k.KeepDirty("no such block", make([]uint64, 1)) {
		return errors.New("KeepDirty of a block that the guest does not have must return false")
	}
	if err := s.readDirty(s.bitmaps()); err != nil {
		return err
	}
	named, keeps := s.bitmaps(), true
	for i, b := range s.Blocks {
		for p := range len(b.Host) / ram.PageSize {
			if p%4 != 3 { // some pages of any load are named, and some are not
				ram.Bitmap(named[i]).Set(p)
			}
		}
		keeps = k.KeepDirty(b.Name, named[i]) && keeps
	}
	if !keeps {
		return nil // which it may
	}
	kept := s.bitmaps()
	for range 5 {
		maps, before := s.bitmaps(), s.snapshot()
		if err := s.run(); err != nil {
			return err
		}
		if err := s.readDirty(maps); err != nil {
			return err
		}
		if err := s.covered(before, maps); err != nil {
			return fmt.Errorf("while KeepDirty names pages: %w", err)
		}
		again := s.bitmaps()
		if err := s.readDirty(again); err != nil {
			return err
		}
		for i := range again {
			for p := range ram.Bitmap(again[i]).All() {
				if !ram.Bitmap(named[i]).Has(p) {
					return fmt.Errorf("ReadDirty of a guest that stands still reports page %d of block %q a second time, which KeepDirty has not named", p, s.Blocks[i].Name)
				}
				ram.Bitmap(kept[i]).Set(p)
			}
		}
	}
	return s.keepsNoMore(k, kept)
}

// keepsNoMore has KeepDirty name no pages, and checks that those of kept are reported once.
func (s *subject) keepsNoMore(k ram.DirtyKeeper, kept [][]uint64) error {
	for _, b := range s.Blocks {
		k.KeepDirty(b.Name, nil)
	}
	before, maps, again := s.snapshot(), s.bitmaps(), s.bitmaps()
	if err := s.run(); err != nil {
		return err
	}
	if err := s.readDirty(maps); err != nil {
		return err
	}
	if err := s.covered(before, maps); err != nil {
		return fmt.Errorf("after KeepDirty has named pages, and then none: %w", err)
	}
	for i := range kept {
		for p := range ram.Bitmap(kept[i]).All() {
			if !ram.Bitmap(maps[i]).Has(p) {
				return fmt.Errorf("page %d of block %q was left writable, and the first ReadDirty after KeepDirty has ended that does not report it", p, s.Blocks[i].Name)
			}
		}
	}
	if err := s.readDirty(again); err != nil {
		return err
	}
	if n := count(again); n > 0 {
		return fmt.Errorf("ReadDirty of a guest that stands still reports %d pages a second time, though KeepDirty names none any more", n)
	}
	return nil
}
