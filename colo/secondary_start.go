package colo

import (
	"context"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate"
)

// synchronise is the secondary's side of the initial migration.
func (s *Secondary) synchronise(ctx context.Context) error {
	s.epoch, s.began = 0, time.Now()
	s.cp = event.CheckpointCommit{Mode: s.mode, Cause: event.CauseInitial}
	s.events.Publish(event.Migration{Status: "active"})
	if s.rate > 0 && s.patient > 0 {
		s.link.conn.pace.begin(s.rate, slowTimes*s.patient, s.beside)
		defer s.link.conn.pace.end()
	}
	return s.do(ctx,
		step{"receive header", s.receiveHeader},
		step{"receive state", s.receiveState},
		step{"commit", s.commitInitial},
		step{"resume", s.resumed},
		step{"send checkpoint-ready", s.ready},
	)
}

// slowTimes is how many times PeerTimeout a primary that sends less than MinRate is waited for.
const slowTimes = 3

func (s *Secondary) receiveHeader(context.Context) error {
	if s.cfg.Loader != nil {
		return nil // it reads the stream from its first byte
	}
	s.state.NewSession()
	if err := s.state.Blocked(); err != nil {
		return err
	}
	r := s.link.R
	if err := vmstate.ReadFileHeader(r); err != nil {
		return err
	}
	c, err := vmstate.ReadConfiguration(r)
	if err != nil {
		return err
	}
	if s.cfg.Machine != "" {
		return c.Check(vmstate.Configuration{Machine: s.cfg.Machine})
	}
	return nil
}

// command accepts the commands that a primary may send in the initial stream
// between sections. The command that switches COLO on may be missing: both
// sides were started for COLO.
func (s *Secondary) command(c vmstate.Command) error {
	switch c.Type {
	case vmstate.CommandEnableCOLO, vmstate.CommandSwitchoverStart, vmstate.CommandOpenReturnPath:
		return nil
	case vmstate.CommandPing:
		v, err := c.AsPing()
		if err != nil {
			return err
		}
		vmstate.PutReturn(s.link.W, vmstate.Return{Type: vmstate.ReturnPong, Value: v})
		return s.link.Flush()
	}
	return fmt.Errorf("%w %v is not expected here", vmstate.ErrCommand, c)
}

func (s *Secondary) receiveState(context.Context) error {
	if s.cfg.Loader != nil {
		if err := s.cfg.Loader.LoadInitial(s.link.R, s.command); err != nil {
			return err
		}
		return s.agreeOnCopy(false)
	}
	if err := s.state.Load(s.link.R, s.command); err != nil {
		return err
	}
	text, err := vmstate.ReadVMDesc(s.link.R, 0)
	if err != nil {
		return err
	}
	a := announced(text)
	if s.cfg.QEMUWire {
		a = nil
	}
	if a != nil {
		s.ours = true
		s.working = a.checkpointTimeout()
		if s.working > 0 && s.patient > 0 {
			s.hosts = s.working + s.patient
		}
	}
	s.channels = s.takesChannels(a)
	s.offerEarly(a)
	if err := s.agreeOnCopy(a != nil && a.Resend); err != nil || s.tells == nil {
		return err
	}
	return s.tells.CheckStaged() // of a stage that goes on from an earlier session; any other lacks nothing yet
}

func (s *Secondary) commitInitial(ctx context.Context) error {
	if err := s.commit(ctx); err != nil {
		return err
	}
	s.whole = true
	return nil
}

func (s *Secondary) resumed(ctx context.Context) error {
	if err := s.resume(ctx); err != nil {
		return err
	}
	if s.cfg.Net != nil {
		return s.cfg.Net.Resumed(s.epoch)
	}
	return nil
}

func (s *Secondary) ready(context.Context) error {
	if s.ours {
		if err := s.link.SendValue(Hello, uint64(s.idle)); err != nil {
			return err
		}
	}
	s.agreeOnChannels(s.channels)
	if s.channels {
		if err := s.link.SendValue(UseChannels, uint64(s.beside.count)); err != nil {
			return err
		}
	}
	if err := s.sayEarly(); err != nil {
		return err
	}
	if err := s.link.Send(CheckpointReady); err != nil {
		return err
	}
	s.done()
	s.events.Publish(event.Migration{Status: "colo"})
	return s.link.Flush()
}
