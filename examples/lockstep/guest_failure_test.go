package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/internal/trial"
)

var errTripleFault = errors.New("triple fault")

// broken is a machine whose guest fails when it is told to.
type broken struct {
	machine
	now chan struct{}
}

func (b broken) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-b.now:
			cancel(errTripleFault)
		case <-ctx.Done():
		}
	}()
	b.machine.Run(ctx)
	return context.Cause(ctx)
}

// inProcess is a host in this process.
type inProcess struct {
	states chan string   // of its job, as they come
	fails  chan struct{} // closed: its guest fails
	ended  chan error
	orders io.Closer // its end is that of the parent
}

func startInProcess(cfg trial.SideConfig) *inProcess {
	in, orders := io.Pipe()
	reports, out := io.Pipe()
	p := &inProcess{states: make(chan string, 100), fails: make(chan struct{}), ended: make(chan error, 1), orders: orders}
	go func() {
		err := trial.Serve(in, out, func(ctx context.Context, fail context.CancelCauseFunc, parent *trial.Parent) error {
			h := newHost(parent.Config, parent.Reports)
			h.create = func(cfg trial.SideConfig, out sender, write writer) (machine, error) {
				m, err := newMachine(cfg, out, write)
				return broken{m, p.fails}, err
			}
			return h.run(ctx, fail, parent.Commands)
		})
		out.Close()
		p.ended <- err
	}()
	go func() {
		defer close(p.states)
		for dec := json.NewDecoder(reports); ; {
			var r trial.Report
			if dec.Decode(&r) != nil {
				return
			}
			if r.Event != nil {
				if e, ok := r.Event.Event.(event.JobStatusChange); ok {
					p.states <- e.State
				}
			}
		}
	}()
	go json.NewEncoder(orders).Encode(cfg)
	return p
}

// is waits for a state.
func (p *inProcess) is(t *testing.T, want string) {
	t.Helper()
	for s := range p.states {
		if s == want {
			return
		}
	}
	t.Fatalf("it ended without being %s: %v", want, <-p.ended)
}

func TestAHostWhoseGuestFailsLeavesItToTheOther(t *testing.T) {
	for _, victim := range []string{trial.Primary, trial.Secondary} {
		t.Run(victim, func(t *testing.T) {
			if testing.Short() && victim == trial.Primary {
				t.Skip("short: its term of a second has to run out")
			}
			a := aloneConfig(t)
			a.Side, a.Term = trial.Primary, time.Second
			free := socket.FreeTCP(t, 2)
			a.Listen, a.Dial = free[0], free[1]
			b := a
			b.Side, b.Start, b.Listen, b.Dial = trial.Secondary, false, a.Dial, a.Listen
			hosts := map[string]*inProcess{trial.Secondary: startInProcess(b), trial.Primary: startInProcess(a)}
			defer func() {
				for _, h := range hosts {
					h.orders.Close()
				}
			}()
			hosts[trial.Primary].is(t, "protected")
			hosts[trial.Secondary].is(t, "following")
			loser, survivor := hosts[victim], hosts[trial.Secondary]
			if victim == trial.Secondary {
				survivor = hosts[trial.Primary]
			}
			close(loser.fails)
			if err := <-loser.ended; !errors.Is(err, errTripleFault) {
				t.Errorf("the host ends with %v", err)
			}
			survivor.is(t, "alone")
			survivor.orders.Close()
			if err := <-survivor.ended; !errors.Is(err, trial.ErrOrphan) {
				t.Errorf("the other ends with %v", err)
			}
		})
	}
}
