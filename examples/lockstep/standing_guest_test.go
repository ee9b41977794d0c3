package main

import (
	"context"
	"errors"
	"testing"

	"github.com/gocolo/lockstep/internal/trial"
)

// switched is a machine that counts whether it runs.
type switched struct {
	machine
	runs, pauses int
	err          error
}

func (m *switched) Pause(context.Context) error  { m.pauses++; m.runs--; return nil }
func (m *switched) Resume(context.Context) error { m.runs++; return m.err }

func TestAGuestThatNobodyHearsStandsStillUntilItsHostIsAlone(t *testing.T) {
	m := &switched{}
	v := &standing{vm: m, alone: true}
	ctx := t.Context()
	if err := errors.Join(v.Resume(ctx), v.Pause(ctx)); err != nil || m.runs != 0 || m.pauses != 1 {
		t.Fatalf("at its first start it runs: %d, paused %d times: %v", m.runs, m.pauses, err)
	}
	m.pauses = 0
	v.follow()
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
	v.follow() // another host has taken the guest over
	if err := v.Resume(ctx); err != nil || m.runs != 0 {
		t.Fatalf("the host follows, and it runs %d times: %v", m.runs, err)
	}
}

func TestTheGuestOfAJobStandsWhereNothingIsCompared(t *testing.T) {
	m := &switched{}
	for name, c := range map[string]struct {
		s    *standing
		want int
	}{"compared": {nil, 1}, "continuous": {&standing{vm: m}, 0}} {
		m.runs = 0
		g, err := newGuest(trial.SideConfig{}, m, c.s)
		if err == nil {
			err = g.Resume(t.Context())
		}
		if err != nil || m.runs != c.want {
			t.Errorf("%s: it runs %d times: %v", name, m.runs, err)
		}
	}
}
