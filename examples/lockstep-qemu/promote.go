package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

// promote lets one of the secondaries go on: the first that has the last
// checkpoint. It returns false if there is none.
func (r *relayRun) promote(ctx context.Context) (bool, error) {
	defer r.quiet() // after the one that goes on has been told, and while another is brought back
	limit, cancel := context.WithTimeout(ctx, r.patience())
	// All are asked at a time: one that hangs keeps nobody from going on at another.
	reached := make(chan candidate, len(r.secondaries))
	left := len(r.secondaries)
	defer func() {
		cancel()
		for ; left > 0; left-- {
			if c := <-reached; c.m != nil {
				c.m.Close()
			}
		}
	}()
	for _, s := range r.secondaries {
		go func() { // joined by what it sends
			var c candidate
			if s.reaches(limit, r.last.Epoch) {
				c.s = s
				if s.monitor != "" {
					c.m, c.err = s.answers(limit)
				}
			}
			reached <- c
		}()
	}
	var have []string // those that nobody can tell
	var errs []error
	for left > 0 {
		c := <-reached
		left--
		s := c.s
		switch {
		case s == nil:
			continue
		case s.monitor == "":
			have = append(have, s.addr)
			continue
		case c.err != nil:
			errs = append(errs, fmt.Errorf("secondary %s: %w", s.addr, c.err))
			continue
		}
		ordered, err := s.goOn(ctx, c.m)
		c.m.Close()
		if ordered { // it may go on even if it has not said so
			r.promoted = s
			s.update(func() { s.goesOn = true })
		}
		if err == nil {
			took := 1e3 * time.Since(r.lost).Seconds()
			r.p.say("promoted    the secondary at %s goes on from checkpoint %d, after %.0f ms", s.addr, r.last.Epoch, took)
			r.p.object(map[string]any{"promoted": map[string]any{"secondary": s.addr, "epoch": r.last.Epoch, "ms": took}})
			return true, nil
		}
		err = fmt.Errorf("secondary %s: %w", s.addr, err)
		if ordered { // nobody else must
			return true, errors.Join(err, r.leaveBehind(ctx))
		}
		errs = append(errs, err)
	}
	if len(have) == 0 {
		return false, errors.Join(errs...)
	}
	r.p.say("ready       checkpoint %d is at %s: give x-colo-lost-heartbeat to one of them", r.last.Epoch, strings.Join(have, ", "))
	r.p.object(map[string]any{"ready": map[string]any{"secondaries": have, "epoch": r.last.Epoch}})
	return true, r.leaveBehind(ctx)
}

// leaveBehind writes the relay's own copy to a file.
func (r *relayRun) leaveBehind(ctx context.Context) error {
	_, err := r.settle(ctx, false)
	return err
}

func (r *relayRun) patience() time.Duration {
	if r.peer > 0 {
		return r.peer
	}
	return colo.DefaultPeerTimeout
}

// candidate is a secondary that may go on.
type candidate struct {
	s   *follower   // nil: it has not the last checkpoint
	m   *qmp.Client // of one that can be told
	err error       // why it cannot
}

// answers connects to the monitor of the secondary, and has it answer.
func (s *follower) answers(ctx context.Context) (*qmp.Client, error) {
	m, _, err := dialMonitor(ctx, s.monitor, s.r.patience(), false)
	if err != nil {
		return nil, err
	}
	if err := m.Do(ctx, "query-status", nil, nil); err != nil {
		m.Close()
		return nil, mute(s.monitor, err)
	}
	return m, nil
}

// goOn orders the secondary to take over. ordered says that the order was sent, whether it
// was carried out or not.
func (s *follower) goOn(ctx context.Context, m *qmp.Client) (ordered bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.r.patience())
	defer cancel()
	if err := m.Do(ctx, "x-colo-lost-heartbeat", nil, nil); err != nil {
		return true, err
	}
	var st struct{ Status string }
	for {
		if err := m.Do(ctx, "query-status", nil, &st); err != nil {
			return true, err
		}
		if st.Status == "running" {
			return true, nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return true, fmt.Errorf("its guest is %s: %w", st.Status, ctx.Err())
		}
	}
}

// quiet begins to end the sessions with the secondaries, and to stop the guests of
// all but the promoted one.
func (r *relayRun) quiet() {
	r.quieted.Do(func() {
		for _, s := range r.secondaries {
			if s == r.promoted {
				r.quieting.Go(s.end)
			} else {
				r.quieting.Go(s.still)
			}
		}
	})
}

// still ends the session with a secondary and stops its guest: a QEMU that has
// lost its peer lets its copy run on.
func (s *follower) still() {
	err := s.stopGuest()
	if !s.ever.Load() {
		return // it has never had the guest
	}
	if err != nil {
		s.r.p.warn("secondary %s may still run a copy of the guest, end it: %v", s.addr, err)
		s.r.p.object(map[string]any{"secondary": s.addr, "not-stopped": err.Error()})
		return
	}
	s.r.p.say("stopped     the secondary at %s", s.addr)
	s.r.p.object(map[string]any{"secondary": s.addr, "stopped": true})
}

func (s *follower) stopGuest() error {
	defer s.end()
	if s.monitor == "" {
		return errors.New("there is no monitor (-qmp)")
	}
	// Whoever ends the relay waits for this.
	limit := min(s.r.patience(), 2*s.r.slowness())
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	m, _, err := dialMonitor(ctx, s.monitor, limit, false)
	if err != nil {
		return err
	}
	defer m.Close()
	// In the middle of a checkpoint it would run again at the end of that.
	live := s.live()
	s.end()
	var stays error
	if live {
		part, cancel := context.WithTimeout(ctx, limit/2)
		defer cancel()
		_, stays = m.Wait(part, func(r event.Record) bool { return r.Event.Name() == "COLO_EXIT" })
	}
	if err := m.Do(ctx, "stop", nil, nil); err != nil {
		return mute(s.monitor, err)
	}
	if stays != nil {
		return fmt.Errorf("it was stopped, but it has not left COLO: %w", stays)
	}
	return nil
}
