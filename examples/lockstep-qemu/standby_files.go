package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/qemufile"
)

// settle puts the copy where it is safe: into a QEMU that goes on with it, if it
// shall run, or into a file. Until it has done either, the copy stays in memory,
// and an operator may name another place or another QEMU. An interrupt ends that,
// after one more try elsewhere.
func (s *standbyRun) settle(ctx context.Context, run bool) (int, error) {
	for {
		status, why := exitOK, error(nil)
		if _, qemu := s.placed(); run && len(qemu) > 0 {
			var loaded bool
			if status, loaded, why = s.bringBack(ctx); loaded {
				return status, why
			}
		}
		dir, _ := s.placed()
		err := s.leave(dir, run)
		if err == nil {
			return status, why
		}
		if ctx.Err() != nil {
			for _, dir := range []string{"/var/tmp", os.TempDir()} {
				if s.leave(dir, run) == nil {
					return exitInterrupted, errors.Join(why, err)
				}
			}
			return exitFailed, errors.Join(why, fmt.Errorf("the state of the guest is lost: %w", err))
		}
		s.hold(ctx, errors.Join(why, err))
	}
}

// placed returns the directory where the guest is to be left, and the QEMU in which it is
// to be brought back.
func (s *standbyRun) placed() (dir string, qemu []string) {
	s.placing.Lock()
	defer s.placing.Unlock()
	if s.place == "" {
		return s.state, s.qemu
	}
	return s.place, s.qemu
}

// hold waits for an order, or the end of ctx, with the guest in memory.
func (s *standbyRun) hold(ctx context.Context, why error) {
	for {
		dir, _ := s.placed()
		s.p.warn("%s", why)
		s.p.say("holding     the guest of checkpoint %d is in this process's memory and nowhere else; it needs %s in %s, or a QEMU that takes it", s.last.Epoch, size(s.last.RAM+s.last.State), dir)
		s.p.say("            then SIGUSR1, or: lockstep-qemu promote -standby %s -state DIR2 [-- qemu-system-x86_64 ...]", s.state)
		s.p.object(map[string]any{"holding": map[string]any{"epoch": s.last.Epoch, "bytes": s.last.RAM + s.last.State, "error": why.Error()}})
		select {
		case o := <-s.orders:
			if o.Do != "promote" {
				o.reply(errors.New("the primary is lost, and the guest is held here"))
				continue
			}
			err := s.override(o)
			o.reply(err)
			if err == nil {
				return
			}
			why = err
		case <-ctx.Done():
			return
		}
	}
}

// leave writes the state to a file in dir. run says that the guest is this side's.
func (s *standbyRun) leave(dir string, run bool) error {
	file := filepath.Join(dir, "guest")
	if err := s.write(file); err != nil {
		return err
	}
	s.file = file
	s.p.say("state       of checkpoint %d (%s) is in %s; %s: -incoming \"exec:cat %s\"", s.last.Epoch, s.last.Machine, s.file, goingOn(run), s.file)
	return nil
}

// goingOn says when the guest may be gone on with that is in a file.
func goingOn(run bool) string {
	if run {
		return "to go on from it"
	}
	return "it may run on at the primary's, and where it surely runs nowhere, to go on from it"
}

// space returns the file to write the guest to: the reserved one, if this is the last time
// and not one of -keep.
func (s *standbyRun) space(dir string) (*os.File, error) {
	part := filepath.Join(dir, ".part-reserved")
	if s.reserve && !s.lost.IsZero() && os.Rename(filepath.Join(dir, reserved), part) == nil {
		return os.OpenFile(part, os.O_WRONLY, 0)
	}
	return os.CreateTemp(dir, ".part-")
}

// write makes a file of the last checkpoint, all or nothing.
func (s *standbyRun) write(name string) error {
	f, err := s.space(filepath.Dir(name))
	if err != nil {
		return err
	}
	err = s.guest.Put(qemufile.NewWriter(f))
	if at, e := f.Seek(0, io.SeekCurrent); err == nil && e == nil {
		err = f.Truncate(at) // what was reserved and not needed
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

const keptPrefix = "checkpoint-"

// keptIn returns what an earlier standby has kept in dir, the oldest first, and
// removes what it was about to write when it was killed.
func keptIn(dir string) []string {
	part, _ := filepath.Glob(filepath.Join(dir, ".part-*"))
	for _, name := range part {
		os.Remove(name)
	}
	list, _ := filepath.Glob(filepath.Join(dir, keptPrefix+"*"))
	written := func(name string) time.Time {
		st, err := os.Stat(name)
		if err != nil {
			return time.Time{}
		}
		return st.ModTime()
	}
	slices.SortFunc(list, func(a, b string) int { return written(a).Compare(written(b)) })
	return list
}

// offer prints that there is a guest to go on with, which a standby that was killed has kept.
func (s *standbyRun) offer() {
	last := s.kept[len(s.kept)-1]
	when := "at an unknown time"
	if st, err := os.Stat(last); err == nil {
		when = "of " + st.ModTime().Format(time.DateTime)
	}
	s.p.say("kept        %s %s; once its guest surely does not run elsewhere: lockstep-qemu promote -standby %s", last, when, s.state)
	s.p.object(map[string]string{"kept": last})
}

// fromKept goes on with the guest that an earlier standby has kept, by an operator's order.
func (s *standbyRun) fromKept(ctx context.Context, o *order) (int, error) {
	if err := s.override(*o); err != nil {
		o.reply(err)
		return exitFailed, err
	}
	file := s.kept[len(s.kept)-1]
	f, err := os.Open(file)
	if err == nil {
		err = s.guest.Read(qemufile.NewReader(f))
		f.Close()
	}
	if err == nil {
		s.last, err = s.guest.Info()
	}
	o.reply(err)
	if err != nil {
		return exitFailed, fmt.Errorf("%s: %w", file, err)
	}
	s.lost = time.Now()
	if s.arbiterOf != nil {
		if s.began, err = s.arbiterOf.Record(ctx); err != nil {
			return exitFailed, fmt.Errorf("the arbiter: %w", err)
		}
	}
	// A guardian that answers has a guest that goes on, or says that it has ended.
	s.heard.update(func() { s.heard.live, s.heard.ready, s.heard.generation = true, false, s.heard.next })
	for {
		err = s.arbitrate(ctx, colo.Claim{Mode: event.ModeSecondary, Ordered: true})
		if err == nil || errors.Is(err, colo.ErrRefused) || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return exitUnfenced, err
	}
	s.tally.takeovers.Add(1)
	s.heard.goOn(s.granted.Generation)
	return s.settle(ctx, true)
}

// keeper writes checkpoints to disk while the primary's guest runs.
type keeper struct {
	*standby.Copy
	s *standbyRun
}

// Settle is called after each checkpoint.
func (k *keeper) Settle() error {
	if err := k.Copy.Settle(); err != nil {
		return err
	}
	if k.s.committed == nil && k.s.keep == 0 {
		return nil
	}
	in, err := k.Copy.Info()
	if err != nil {
		return err
	}
	if k.s.committed != nil {
		k.s.committed(in.Epoch)
	}
	if k.s.keep == 0 {
		return nil
	}
	name := filepath.Join(k.s.state, fmt.Sprintf("%s%d", keptPrefix, in.Epoch))
	if err := k.s.write(name); err != nil {
		// The guest is protected all the same.
		k.s.p.warn("-keep: %v", err)
		return nil
	}
	// One of an earlier standby may have had the name.
	k.s.kept = append(slices.DeleteFunc(k.s.kept, func(k string) bool { return k == name }), name)
	for len(k.s.kept) > k.s.keep {
		if err := os.Remove(k.s.kept[0]); err != nil {
			k.s.p.warn("-keep: %v", err)
		}
		k.s.kept = k.s.kept[1:]
	}
	return nil
}
