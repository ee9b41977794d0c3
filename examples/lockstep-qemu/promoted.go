package main

import (
	"errors"
	"os"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/failover"
)

// promoted carries out the order promote of an operator during a session.
func (s *standbyRun) promoted(o order, sec *colo.Secondary) error {
	if s.conn != nil && s.conn.gone() { // and its end was not noticed by anything else yet
		s.heard.update(func() { s.heard.running = s.heard.promoted && s.heard.running })
	}
	if s.fence == "" && !o.Stopped {
		if err := s.heard.unstopped(); err != nil {
			return err
		}
	}
	if err := s.override(o); err != nil {
		return err
	}
	s.heard.update(func() { s.heard.promoted, s.heard.assured = true, s.heard.assured || o.Stopped })
	err := sec.Failover()
	if errors.Is(err, failover.ErrInProgress) {
		err = nil
	}
	return err
}

// override replaces the directory and the QEMU by those that an order names. Nothing else
// uses them meanwhile.
func (s *standbyRun) override(o order) error {
	if err := errors.Join(checkQEMU(o.QEMU), checkState(o.State)); err != nil {
		return err
	}
	if o.State != "" && o.State != s.state {
		if err := os.MkdirAll(o.State, 0o700); err != nil {
			return err
		}
	}
	s.placing.Lock()
	defer s.placing.Unlock()
	if o.State != "" {
		s.place = o.State
	}
	if len(o.QEMU) > 0 {
		s.qemu = o.QEMU
	}
	return nil
}
