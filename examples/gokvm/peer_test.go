package main

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
)

// peers returns both ends of a control connection that works until the test
// ends, or cut is called.
func peers(t *testing.T) (primary, secondary *peer, cut func()) {
	a, b := net.Pipe()
	primary, secondary = newPeer(event.ModePrimary, a, ""), newPeer(event.ModeSecondary, b, "")
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { primary.serve(ctx) })
	group.Go(func() { secondary.serve(ctx) })
	t.Cleanup(func() { cancel(); group.Wait() })
	return primary, secondary, func() { a.Close(); b.Close() }
}

func arbitrate(p *peer) <-chan error {
	answer := make(chan error, 1)
	go func() {
		answer <- p.Arbitrate(context.Background(), colo.Claim{Mode: p.mode, Epoch: 7, Cause: errors.New("cut")})
	}()
	return answer
}

func wantQuiet(t *testing.T, why string, answer <-chan error) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-answer:
		t.Fatalf("%s: answered %v", why, err)
	default:
	}
}

var errSilent = errors.New("silent")

func TestWhenBothLiveThePrimaryGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, _ := peers(t)
		second := arbitrate(s)
		wantQuiet(t, "a secondary does not go on while the primary lives", second)
		if err := <-arbitrate(p); err != nil {
			t.Errorf("the primary: %v", err)
		}
		if err := <-second; !errors.Is(err, errPeerHas) {
			t.Errorf("the secondary: %v", err)
		}
		// The primary leaves the pair, and says goodbye.
		s.lose(errSilent)
		if err := <-arbitrate(s); !errors.Is(err, errPeerHas) {
			t.Errorf("the secondary, after the goodbye: %v", err)
		}
	})
}

func TestWhoIsLeftGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, cut := peers(t)
		cut()
		first, second := arbitrate(p), arbitrate(s)
		wantQuiet(t, "not before the other is lost", first)
		wantQuiet(t, "not before the other is lost", second)
		s.lose(errSilent)
		if err := <-second; err != nil {
			t.Errorf("the secondary: %v", err)
		}
		p.lose(errSilent)
		if err := <-first; err != nil {
			t.Errorf("the primary: %v", err)
		}
	})
}

func TestAPrimaryThatWasReplacedIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, _ := peers(t)
		s.lose(errSilent) // it was stopped for a while
		if err := <-arbitrate(s); err != nil {
			t.Fatal(err)
		}
		if err := <-arbitrate(p); !errors.Is(err, errPeerHas) {
			t.Errorf("the primary: %v", err)
		}
	})
}

func TestNobodyTakesOverAGuestThatHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, _ := peers(t)
		second := arbitrate(s)
		p.end(context.Background(), "it switched itself off")
		if err := <-second; !errors.Is(err, errEnded) || !strings.Contains(err.Error(), "switched itself off") {
			t.Errorf("the secondary: %v", err)
		}
		s.lose(errSilent)
		if err := <-arbitrate(s); !errors.Is(err, errEnded) {
			t.Errorf("the secondary, after the goodbye: %v", err)
		}
	})
}

func TestTellingALostPeerOfTheEndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		p := newPeer(event.ModePrimary, a, "")
		go func() {
			readMessage(b, new(note)) // heard, and not answered
			time.Sleep(time.Second)
			p.lose(errSilent)
		}()
		begin := time.Now()
		p.end(context.Background(), "off")
		if d := time.Since(begin); d != time.Second {
			t.Errorf("it took %v", d)
		}
		a.Close()
	})
}

func TestTheCommandHasTheLastWord(t *testing.T) {
	for _, c := range []struct {
		command string
		ok      bool
	}{
		{`test "$LOCKSTEP_MODE $LOCKSTEP_EPOCH $LOCKSTEP_CAUSE" = "secondary 7 cut"`, true},
		{"echo the lock is taken; exit 1", false},
	} {
		p := newPeer(event.ModeSecondary, nil, c.command)
		p.lose(errSilent)
		err := <-arbitrate(p)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.command, err)
		}
		if err != nil && !strings.Contains(err.Error(), "the lock is taken") {
			t.Errorf("%v does not say what the command has said", err)
		}
	}
}

func TestAskingEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, _ := peers(t)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Arbitrate(ctx, colo.Claim{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestASecondaryAsksForACheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		p, s := newPeer(event.ModePrimary, a, ""), newPeer(event.ModeSecondary, b, "")
		asked := make(chan struct{}, 1)
		p.asked = func() { asked <- struct{}{} }
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go p.serve(ctx)
		if err := s.say(note{Say: sayCheckpoint}); err != nil {
			t.Fatal(err)
		}
		<-asked
		b.Close()
	})
}
