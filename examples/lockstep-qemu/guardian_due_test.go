package main

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event/qmp"
)

// checkpointing returns a guardian of a fake QEMU that is told to leave so much time between two checkpoints, and
// whose guest is in COLO. The monitor ends with the test.
func checkpointing(t *testing.T, every time.Duration) *guardian {
	t.Helper()
	q := &fakeQEMU{hangsAt: -1, status: "running", migrate: "colo", every: int(every.Milliseconds())}
	near, far := net.Pipe()
	var all sync.WaitGroup
	all.Go(func() { q.serve(far) })
	t.Cleanup(func() { near.Close(); all.Wait() })
	g := alone(nil)
	g.silence = 5 * time.Second
	var err error
	if g.m, err = qmp.NewClient(t.Context(), near); err != nil {
		t.Fatal(err)
	}
	return g
}

// QEMU has its guest run while it waits for the answer to its request for a checkpoint. Where only the control
// channel still carries anything nothing else tells that no answer will come.
func TestACheckpointIsOverdueWhenNothingHasComeForItsDelayAndASilence(t *testing.T) {
	const every = 12 * time.Second
	for _, c := range []struct {
		name     string
		protects bool
		received time.Duration // after the begin; 0: nothing more
		overdue  time.Duration // after the begin, at the earliest; 0: not within a minute
	}{
		{"nothing comes", true, 0, every + 5*time.Second},
		{"something comes before", true, 11 * time.Second, 11*time.Second + every + 5*time.Second},
		{"the guest is not protected", false, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := checkpointing(t, every)
				g.protects = c.protects
				g.received()
				begun := time.Now()
				ctx, cancel := context.WithCancel(t.Context())
				var all sync.WaitGroup
				all.Go(func() { g.dues(ctx) })
				defer all.Wait()
				defer cancel()
				defer close(g.over)
				if c.received > 0 {
					time.AfterFunc(c.received, func() { g.heardBeat(standby.ControlMessage{Say: standby.SaidBeat, Bytes: 7}, 0) })
				}
				for end := time.After(time.Minute); ; {
					select {
					case n := <-g.told:
						if n.in != standby.Overdue {
							continue // what heardBeat tells
						}
						if at := time.Since(begun); c.overdue == 0 || at < c.overdue || at > c.overdue+2*time.Second {
							t.Errorf("%v after %v, want %v", n.in, at, c.overdue)
						}
						return
					case <-end:
						if c.overdue > 0 {
							t.Error("it is never overdue")
						}
						return
					}
				}
			})
		})
	}
}

// The standby of a guest that was found in COLO answers for it: a checkpoint in half an hour is no
// silence.
func TestTheStandbyOfAGuestThatIsFoundInCOLOIsThereWheneverItAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := checkpointing(t, 30*time.Minute)
		defer g.m.Close()
		if state, err := g.found(t.Context()); err != nil || state != standby.Protected {
			t.Fatalf("%v, %v", state, err)
		}
		go g.heardBeat(standby.ControlMessage{Say: standby.SaidBeat, Bytes: 7}, 7)
		synctest.Wait()
		select {
		case n := <-g.told:
			if n.in != standby.StandbyThere {
				t.Errorf("%v is told", n.in)
			}
		default:
			t.Error("its answer tells nothing")
		}
	})
}
