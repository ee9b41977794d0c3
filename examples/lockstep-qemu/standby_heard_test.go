package main

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/failover"
)

// slowArbiter says when it is asked, and answers when it is told what.
type slowArbiter struct {
	failover.Arbiter // nil: nothing else is called
	asked            chan time.Time
	answers          chan error
}

func (a *slowArbiter) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	a.asked <- time.Now()
	select {
	case err := <-a.answers:
		return failover.Grant{Generation: c.After + 1, Token: c.Token}, err
	case <-ctx.Done():
		return failover.Grant{}, ctx.Err()
	}
}

func (a *slowArbiter) Record(context.Context) (failover.Record, error) { return failover.Record{}, nil }

// A primary's guest runs on by its standby's promises. Were one given while the
// arbiter is asked, the guest could run at both when it says yes.
func TestNothingIsPromisedWhileTheArbiterIsAskedNorAfterItsYes(t *testing.T) {
	for _, c := range []struct {
		name     string
		answer   error
		promises bool
	}{
		{"granted", nil, false},
		{"out of reach", errors.New("no route to host"), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &slowArbiter{asked: make(chan time.Time, 1), answers: make(chan error)}
				s := &standbyRun{heard: newHeard(&printer{terminal: terminal{out: io.Discard, err: io.Discard}}), arbiterOf: a}
				s.heard.begin(nil)
				here, there := net.Pipe()
				s.heard.room.Enter(here)
				defer there.Close()
				ended := make(chan error, 1)
				go func() { ended <- s.heard.guardian(t.Context(), here, nil) }()
				g := standby.NewControl(there)
				beat := func(m standby.ControlMessage) time.Duration {
					t.Helper()
					if err := g.Send(m, time.Second); err != nil {
						t.Fatal(err)
					}
					m, err := g.Receive(time.Second)
					if err != nil {
						t.Fatal(err)
					}
					return time.Duration(m.Promise) * time.Millisecond
				}
				beat(standby.ControlMessage{Say: standby.SaidHello, Version: standby.ControlVersion, Generation: 1})
				m := standby.ControlMessage{Say: standby.SaidBeat, Generation: 1}
				if got := beat(m); got != promise {
					t.Fatalf("a standby that follows promises %v, not %v", got, promise)
				}
				promised := time.Now().Add(promise)
				answer := make(chan claimed, 1)
				go s.claim(t.Context(), answer)
				synctest.Wait()
				for asked := false; !asked; {
					select {
					case at := <-a.asked:
						if asked = true; at.Before(promised) {
							t.Errorf("the arbiter is asked %v too early", promised.Sub(at))
						}
					case <-time.After(time.Second):
					}
					if got := beat(m); got != 0 {
						t.Fatalf("%v is promised while the arbiter is asked", got)
					}
				}
				a.answers <- c.answer
				if got := <-answer; !errors.Is(got.err, c.answer) {
					t.Fatal(got.err)
				}
				if got := beat(m); got > 0 != c.promises {
					t.Errorf("%v is promised afterwards", got)
				}
				there.Close()
				<-ended
			})
		})
	}
}

// With a guest that runs on here there is no session, and no promise by which the primary's could run on.
func TestAStandbyThatHasGoneOnHasNoSessionAndPromisesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &standbyRun{heard: newHeard(&printer{terminal: terminal{out: io.Discard, err: io.Discard}}), tries: &rehearsals{}}
		s.heard.begin(nil)
		here, there := net.Pipe()
		defer there.Close()
		s.heard.room.Enter(here)
		ended := make(chan error, 1)
		go func() { ended <- s.heard.guardian(t.Context(), here, nil) }()
		g := standby.NewControl(there)
		say := func(m standby.ControlMessage) {
			t.Helper()
			if err := g.Send(m, time.Second); err != nil {
				t.Fatal(err)
			}
		}
		hears := func() standby.ControlMessage {
			t.Helper()
			m, err := g.Receive(time.Second)
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		say(standby.ControlMessage{Say: standby.SaidHello, Version: standby.ControlVersion, Generation: 1})
		hears()
		say(standby.ControlMessage{Say: standby.SaidBeat, Generation: 1})
		if m, st := hears(), s.standing(); m.Promise == 0 || !st.Session || st.GoneOn {
			t.Fatalf("while it follows: %+v, %+v", m, st)
		}
		go s.heard.goOn(2)
		if m := hears(); m.Say != standby.SaidRuns || m.Generation != 2 {
			t.Errorf("told: %+v", m)
		}
		say(standby.ControlMessage{Say: standby.SaidBeat, Generation: 1})
		if m, st := hears(), s.standing(); m.Promise != 0 || st.Session || !st.GoneOn {
			t.Errorf("with the guest here: %+v, %+v", m, st)
		}
		there.Close()
		<-ended
	})
}

// A guardian that beats and reads nothing keeps nobody waiting who has been ordered to go on: neither the
// order to stop its guest, nor the guest here.
func TestAGuardianThatReadsNothingDoesNotHoldAnOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHeard(&printer{terminal: terminal{out: io.Discard, err: io.Discard}})
		h.begin(nil)
		here, there := net.Pipe()
		h.room.Enter(here)
		ended := make(chan error, 1)
		go func() { ended <- h.guardian(t.Context(), here, nil) }()
		g := standby.NewControl(there)
		if err := g.Send(standby.ControlMessage{Say: standby.SaidHello, Version: standby.ControlVersion, Generation: 1}, time.Second); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Receive(time.Second); err != nil {
			t.Fatal(err)
		}
		if err := g.Send(standby.ControlMessage{Say: standby.SaidBeat, Generation: 1}, time.Second); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the answer waits to be read
		begun := time.Now()
		h.ask()
		h.goOn(2)
		if d := time.Since(begun); d > 2*tellTime {
			t.Errorf("they took %v", d)
		}
		there.Close()
		<-ended
	})
}
