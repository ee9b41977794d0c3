package colotest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/vmstate/ram"
)

// The functions below are the rules that vmChecks lists.

func (s *subject) pauseStandsStill() error {
	for range 3 {
		if err := s.run(); err != nil {
			return err
		}
		before := s.snapshot()
		time.Sleep(10 * time.Millisecond)
		if where, ok := s.changed(before); ok {
			return fmt.Errorf("%s changed after Pause had returned: no vCPU may run and no device may write memory until Resume", where)
		}
	}
	return nil
}

func (s *subject) nests() error {
	if err := s.run(); err != nil { // which leaves one pause
		return err
	}
	for range 2 { // an operator's, and a session's
		if err := s.pause(); err != nil {
			return fmt.Errorf("a Pause of a paused guest must count: %w", err)
		}
	}
	for i := range 2 {
		if err := s.resume(); err != nil {
			return fmt.Errorf("a Resume that is not the last must succeed: %w", err)
		}
		if err := s.still(); err != nil {
			return fmt.Errorf("after three Pauses and %d Resumes: %w; pauses must nest, or a checkpoint undoes the pause of an operator", i+1, err)
		}
	}
	if err := s.run(); err != nil {
		return fmt.Errorf("after as many Resumes as Pauses: %w", err)
	}
	for range 3 {
		if err := s.resume(); err != nil {
			return fmt.Errorf("resuming a running guest must do nothing: %w", err)
		}
	}
	if err := s.pause(); err != nil {
		return err
	}
	if err := s.still(); err != nil {
		return fmt.Errorf("after three Resumes and one Pause: %w; resuming a running guest must do nothing", err)
	}
	for range 50 { // in quick succession: a Resume that is overtaken by a Pause
		if err := errors.Join(s.resume(), s.pause()); err != nil {
			return fmt.Errorf("Resume and Pause at once: %w", err)
		}
	}
	if err := s.still(); err != nil {
		return fmt.Errorf("after many quick Resumes and Pauses, the last of which was a Pause: %w", err)
	}
	return s.run()
}

// still checks that memory does not change.
func (s *subject) still() error {
	before := s.snapshot()
	time.Sleep(10 * time.Millisecond)
	if where, ok := s.changed(before); ok {
		return fmt.Errorf("%s changed: the guest must stand still", where)
	}
	return nil
}

// others checks that a session's resume does not take back a pause of another goroutine.
func (s *subject) others() error {
	if err := s.resume(); err != nil {
		return err
	}
	for range 20 {
		done := make(chan error, 1)
		go func() { done <- guarded(s.pause) }()
		err := errors.Join(s.pause(), <-done, s.resume())
		if err != nil {
			return fmt.Errorf("two Pauses and a Resume on two goroutines: %w", err)
		}
		before := s.snapshot()
		time.Sleep(time.Millisecond)
		if where, ok := s.changed(before); ok {
			return fmt.Errorf("%s changed while one of two pauses had not been taken back: pauses must nest", where)
		}
		if err := s.resume(); err != nil {
			return err
		}
	}
	if err := s.pause(); err != nil {
		return err
	}
	return s.run()
}

func (s *subject) contexts() error {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	call := func(name string, fn func(context.Context) error) (done bool, err error) {
		c := make(chan error, 1)
		go func() { c <- guarded(func() error { return fn(ended) }) }()
		select {
		case err := <-c:
			if err != nil && !errors.Is(err, context.Canceled) {
				return false, fmt.Errorf("%s with a context that has ended: %w; it must return nil if it was done all the same, or the context's error", name, err)
			}
			return err == nil, nil
		case <-time.After(s.patience):
			return false, fmt.Errorf("%s does not return when its context has ended: it must", name)
		}
	}
	if err := s.resume(); err != nil {
		return err
	}
	done, err := call("Pause", s.VM.Pause)
	if err != nil {
		return err
	}
	if !done { // and must not count
		if err := s.pause(); err != nil {
			return err
		}
	}
	if err := s.run(); err != nil {
		return fmt.Errorf("after a Pause whose context had ended, and that must count only if it returned nil: %w", err)
	}
	if done, err = call("Resume", s.VM.Resume); err != nil {
		return err
	}
	if done {
		if err := s.pause(); err != nil {
			return err
		}
	}
	if err := s.still(); err != nil {
		return fmt.Errorf("after a Resume whose context had ended, and that must count only if it returned nil: %w", err)
	}
	return s.run()
}

func (s *subject) dirtyLog() error {
	if err := s.noSuchBlock(); err != nil {
		return err
	}
	if err := s.readDirty(s.bitmaps()); err != nil {
		return err
	}
	for round := range 5 {
		maps := s.bitmaps()
		if len(s.Blocks[0].Host) >= 64*ram.PageSize {
			maps[0][0] |= 1 << 63
		}
		before := s.snapshot()
		if err := s.run(); err != nil {
			return err
		}
		if err := s.readDirty(maps); err != nil {
			return err
		}
		if len(s.Blocks[0].Host) >= 64*ram.PageSize && maps[0][0]>>63 == 0 {
			return errors.New("ReadDirty clears bits of the caller's bitmap: it must add to them")
		}
		if err := s.covered(before, maps); err != nil {
			return err
		}
		again := s.bitmaps()
		if err := s.readDirty(again); err != nil {
			return err
		}
		if n := count(again); n > 0 {
			return fmt.Errorf("round %d: ReadDirty of a guest that stands still reports %d pages a second time: reading must clear the log", round, n)
		}
	}
	return nil
}

// noSuchBlock asks the log for a block that the guest does not have. A log that ignores
// the name, as one of a guest with one block may, returns the bits of that block or
// panics.
func (s *subject) noSuchBlock() (err error) {
	const rule = "ReadDirty of a block that the guest does not have must fail: a log must look at the block's name, also that of a guest with one block"
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s; it panicked: %v", rule, p)
		}
	}()
	if s.Log.ReadDirty("no such block", make([]uint64, 1)) == nil {
		return errors.New(rule)
	}
	return nil
}

// covered checks that every page that differs from before is in maps.
func (s *subject) covered(before [][]byte, maps [][]uint64) (err error) {
	s.differ(before, func(block, page int) bool {
		if maps[block][page/64]>>(page%64)&1 == 0 {
			err = fmt.Errorf("page %d of block %q changed and the dirty log does not say so: the secondary would keep the old page", page, s.Blocks[block].Name)
		}
		return err == nil
	})
	return err
}

func (s *subject) dirtyLogRunning() error {
	if err := s.readDirty(s.bitmaps()); err != nil {
		return err
	}
	before, maps := s.snapshot(), s.bitmaps()
	if err := s.resume(); err != nil {
		return err
	}
	for start, wrote := time.Now(), false; time.Since(start) < 30*time.Millisecond || !wrote; {
		if err := s.readDirty(maps); err != nil {
			return fmt.Errorf("while the guest runs: %w", err)
		}
		if _, wrote = s.changed(before); !wrote && time.Since(start) > s.patience {
			return errIdle
		}
	}
	if err := s.pause(); err != nil {
		return err
	}
	if err := s.readDirty(maps); err != nil {
		return err
	}
	return s.covered(before, maps)
}

func (s *subject) generations() error {
	if err := s.readDirty(s.bitmaps()); err != nil {
		return err
	}
	shadow := s.snapshot()
	take := func() error {
		maps := s.bitmaps()
		if err := s.readDirty(maps); err != nil {
			return err
		}
		for i, b := range s.Blocks {
			for p := range ram.Bitmap(maps[i]).All() {
				copy(shadow[i][p*ram.PageSize:], b.Host[p*ram.PageSize:(p+1)*ram.PageSize])
			}
		}
		return nil
	}
	for g := 1; g <= 20; g++ {
		if err := s.resume(); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
		if g%2 == 0 { // memory sent ahead, while the guest writes it
			if err := take(); err != nil {
				return fmt.Errorf("while the guest runs: %w", err)
			}
		}
		if err := s.pause(); err != nil {
			return err
		}
		// Saving a device may write guest memory; the log must know.
		if _, err := s.save(); err != nil {
			return err
		}
		if err := take(); err != nil {
			return err
		}
		if where, ok := s.changed(shadow); ok {
			return fmt.Errorf("generation %d: a copy that follows the dirty log differs from the guest in %s: a write was not logged, or was logged before it was done", g, where)
		}
	}
	return nil
}

func (s *subject) roundTrip() error {
	if err := s.run(); err != nil {
		return err
	}
	y, err := s.saveSteady()
	if err != nil {
		return err
	}
	memory := s.snapshot()
	if err := s.load(y.state); err != nil {
		return err
	}
	if err := s.still(); err != nil {
		return fmt.Errorf("after the devices were loaded: %w until it is resumed", err)
	}
	state, err := s.save()
	if err != nil {
		return err
	}
	if err := y.same(state); err != nil {
		return fmt.Errorf("the devices of a guest that stands still were saved, loaded and saved again: %w", err)
	}
	if where, ok := s.changed(memory); ok {
		return fmt.Errorf("loading the devices changed %s: memory is the session's to restore", where)
	}
	return s.run()
}

func (s *subject) rollBack() error {
	if err := s.run(); err != nil {
		return err
	}
	y, err := s.saveSteady()
	if err != nil {
		return err
	}
	memory := s.snapshot()
	for i := range 5 {
		if err := s.run(); err != nil {
			return fmt.Errorf("after %d roll-backs: %w", i, err)
		}
		s.restore(memory)
		if err := s.load(y.state); err != nil {
			return fmt.Errorf("roll-back %d of a guest that has run on: %w", i+1, err)
		}
		state, err := s.save()
		if err != nil {
			return err
		}
		if err := y.same(state); err != nil {
			return fmt.Errorf("roll-back %d of a guest that has run on: %w", i+1, err)
		}
	}
	return s.run()
}

func (s *subject) loadRunning() error {
	if err := s.run(); err != nil {
		return err
	}
	state, err := s.save()
	if err != nil {
		return err
	}
	if err := s.begin(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		done <- guarded(func() error {
			err := s.reg.LoadDevices(state, nil)
			if err == nil {
				err = s.reg.Commit()
			}
			s.reg.Rollback()
			return err
		})
	}()
	select {
	case err = <-done:
		if errors.As(err, new(*panicked)) {
			return err
		}
	case <-time.After(s.patience):
		return errors.New("loading the devices of a running guest hangs: it must be refused")
	}
	if err == nil {
		return errors.New("loading the devices of a running guest succeeds: it must be refused, by VMState or by PostLoad, or two states get mixed")
	}
	if err := s.pause(); err != nil {
		return err
	}
	return s.run() // the guest must have taken no harm
}

func (s *subject) loadRolledBack() error {
	if err := s.run(); err != nil {
		return err
	}
	old, err := s.save()
	if err != nil {
		return err
	}
	if err := s.run(); err != nil {
		return err
	}
	y, err := s.saveSteady()
	if err != nil {
		return err
	}
	if err := s.reg.LoadDevices(old, nil); err != nil {
		return fmt.Errorf("the devices do not stage what they saved themselves: %w", err)
	}
	s.reg.Rollback()
	state, err := s.save()
	if err != nil {
		return err
	}
	if err := y.same(state); err != nil {
		return fmt.Errorf("a state was staged and rolled back, and the guest is not what it was: %w; VMState must change nothing but the fields it is given", err)
	}
	return s.run()
}
