package main

import (
	"context"
	"errors"
	"testing"
)

// broken is a machine whose guest fails.
type broken struct {
	machine
	why error
}

func (b broken) Run(context.Context) error { return b.why }

// A yielder is a session that notes why it was told to yield.
type yielder struct {
	session
	why error
}

func (y *yielder) Yield(why error) { y.why = why }

func TestASideWhoseGuestFailsLeavesItToTheOther(t *testing.T) {
	why := errors.New("triple fault")
	run := func(s *side) error {
		ctx, fail := context.WithCancelCause(t.Context())
		defer fail(nil)
		s.machine = broken{why: why}
		s.runGuest(ctx, fail)
		return context.Cause(ctx)
	}
	if err := run(new(side)); !errors.Is(err, why) {
		t.Errorf("without a session the side ended with %v", err)
	}

	var s side
	session := new(yielder)
	s.guest.protect(session)
	if err := run(&s); err != nil || !errors.Is(session.why, why) {
		t.Errorf("the session was told %v, and the side ended with %v, which cancels the session", session.why, err)
	}
	if err := s.guest.alone(); !errors.Is(err, why) {
		t.Errorf("a side that was taking over meanwhile goes on without a guest: %v", err)
	}

	s = side{}
	session = new(yielder)
	s.guest.protect(session)
	if err := s.guest.alone(); err != nil {
		t.Errorf("a side whose guest is well ends with %v", err)
	}
	if err := run(&s); !errors.Is(err, why) || session.why != nil {
		t.Errorf("after its session, which was told %v, the side ended with %v", session.why, err)
	}

	s = side{machine: broken{why: why}}
	session = new(yielder)
	s.guest.protect(session)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.runGuest(ctx, func(error) { t.Error("a side that is to end has failed") })
	if session.why != nil {
		t.Error("a side that is to end has yielded")
	}
}
