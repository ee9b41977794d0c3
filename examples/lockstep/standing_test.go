package main

import (
	"context"
	"errors"
	"testing"
)

// switched is a machine that counts whether it runs.
type switched struct {
	machine
	runs, pauses int
	err          error
}

func (m *switched) Pause(context.Context) error  { m.pauses++; m.runs--; return nil }
func (m *switched) Resume(context.Context) error { m.runs++; return m.err }

func TestAGuestThatNobodyHearsStandsStillUntilItsSideIsAlone(t *testing.T) {
	m := &switched{}
	v := &standing{lateVM: lateVM{&side{machine: m}}}
	ctx := t.Context()
	for range 3 { // checkpoints
		if err := errors.Join(v.Pause(ctx), v.Resume(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	if m.runs != 0 || m.pauses != 0 {
		t.Fatalf("between checkpoints it ran: %d, paused %d times", m.runs, m.pauses)
	}
	v.failover()
	if m.runs != 0 {
		t.Fatal("it runs before its session lets it")
	}
	m.err = errors.New("not now")
	if err := v.Resume(ctx); !errors.Is(err, m.err) {
		t.Fatal(err)
	}
	m.err, m.runs = nil, 0
	if err := errors.Join(v.Resume(ctx), v.Resume(ctx)); err != nil || m.runs != 1 {
		t.Fatalf("alone, it runs %d times: %v", m.runs, err)
	}
	if err := errors.Join(v.Pause(ctx), v.Pause(ctx)); err != nil || m.runs != 0 || m.pauses != 1 {
		t.Fatalf("paused, it runs: %d, paused %d times: %v", m.runs, m.pauses, err)
	}
}
