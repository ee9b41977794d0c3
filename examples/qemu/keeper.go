package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/qemufile"
)

// leave writes the state to DIR/guest.
func (s *standbyRun) leave() error {
	s.file = filepath.Join(s.state, "guest")
	if err := s.write(s.file); err != nil {
		s.file = ""
		return fmt.Errorf("the state of the guest is lost: %w", err)
	}
	s.p.say("state       of checkpoint %d (%s) is in %s; to go on from it: -incoming \"exec:cat %s\"", s.last.Epoch, s.last.Machine, s.file, s.file)
	return nil
}

// write makes a file of the last checkpoint, all or nothing.
func (s *standbyRun) write(name string) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".part-")
	if err != nil {
		return err
	}
	err = s.guest.Put(qemufile.NewWriter(f))
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

// keeper writes checkpoints to disk while the primary's guest runs.
type keeper struct {
	*standby.Guest
	s *standbyRun
}

// Settle is called after each checkpoint.
func (k *keeper) Settle() error {
	if err := k.Guest.Settle(); err != nil {
		return err
	}
	if k.s.committed == nil && k.s.keep == 0 {
		return nil
	}
	in, err := k.Guest.Info()
	if err != nil {
		return err
	}
	if k.s.committed != nil {
		k.s.committed(in.Epoch)
	}
	if k.s.keep == 0 {
		return nil
	}
	name := filepath.Join(k.s.state, fmt.Sprintf("checkpoint-%d", in.Epoch))
	if err := k.s.write(name); err != nil {
		// The guest is protected all the same.
		k.s.p.warn("-keep: %v", err)
		return nil
	}
	k.s.kept = append(k.s.kept, name)
	for len(k.s.kept) > k.s.keep {
		if err := os.Remove(k.s.kept[0]); err != nil {
			k.s.p.warn("-keep: %v", err)
		}
		k.s.kept = k.s.kept[1:]
	}
	return nil
}
