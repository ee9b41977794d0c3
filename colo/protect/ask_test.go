package protect

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
)

// question returns the Peer by which a host of the world is asked.
func (w *world) question(from, to string) Peer {
	return Peer{
		PortConfig: PortConfig{Insecure: true},
		Dialer:     func(ctx context.Context) (net.Conn, error) { return w.f.dial(ctx, from, to) },
	}
}

func TestAHostSaysHowItStands(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		b := w.boot("b", false, nil)
		b.is(Waiting)
		ask := func(to string) Standing {
			s, err := Ask(t.Context(), w.question("x", to), "guest", "x")
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		if s := ask("b"); s != (Standing{"b", Waiting, 0}) {
			t.Errorf("%+v", s)
		}
		a := w.boot("a", true, nil)
		a.is(Protected)
		b.is(Following)
		if s := ask("a"); s != (Standing{"a", Protected, 1}) {
			t.Errorf("%+v", s)
		}
		if s := ask("b"); s != (Standing{"b", Following, 1}) {
			t.Errorf("%+v", s)
		}
		var refused *RefusedError
		if _, err := Ask(t.Context(), w.question("x", "a"), "another", "x"); !errors.As(err, &refused) {
			t.Errorf("a guest that is not there: %v", err)
		}
		if _, err := Ask(t.Context(), w.question("x", "nowhere"), "guest", "x"); !errors.Is(err, errNoRoute) {
			t.Errorf("a host that is not there: %v", err)
		}
		if _, err := Ask(t.Context(), Peer{}, "guest", "x"); err == nil {
			t.Error("a plain connection was not asked for")
		}
		if a.job.State() != Protected || b.job.State() != Following {
			t.Error("the questions have changed something")
		}
		b.halt()
		a.halt()
	})
}

// Whoever answers with a state of its own invention is not believed.
func TestAnAnswerOfNoStateIsAnError(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		l := w.f.listen("liar")
		done := make(chan struct{})
		go func() {
			defer close(done)
			conn, err := l.Accept()
			if err != nil {
				return
			}
			h, _ := readHello(conn)
			writeHello(conn, hello{Channel: h.Channel, Guest: h.Guest, State: "omnipotent"})
			conn.Close()
		}()
		if _, err := Ask(t.Context(), w.question("x", "liar"), "guest", "x"); !errors.Is(err, ErrHello) {
			t.Errorf("%v", err)
		}
		<-done
		l.Close()
	})
}

// The secondary cannot ask the arbiter; its primary could, has gone on, and comes
// back. The secondary follows it: nobody else could be granted that generation.
func TestASecondaryThatAsksHearsThatThePrimaryHasGoneOn(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		b.noArbiter.Store(true)
		asking := b.passes(Asking)
		w.f.part("a", "b", false)
		<-asking
		a.is(Alone)
		w.f.join("a", "b")
		a.is(Protected)
		b.is(Following)
		if g := b.job.Query().Generation; g != 2 {
			t.Errorf("it follows generation %d", g)
		}
		w.clean()
		b.halt()
		a.halt()
	})
}

// Somebody else's hello, or an old one, ends no claim.
func TestOnlyItsOwnPrimaryEndsAClaim(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		b.noArbiter.Store(true)
		asking := b.passes(Asking)
		w.f.part("a", "b", false)
		<-asking
		for _, h := range []hello{
			{Channel: chControl, Guest: "guest", Host: "c", Generation: 9, Offer: b.job.offer()},
			{Channel: chControl, Guest: "guest", Host: "a", Generation: 1, Offer: b.job.offer()},
			{Channel: chHeartbeat, Guest: "guest", Host: "a", Generation: 9},
		} {
			conn, err := w.f.dial(t.Context(), "x", "b")
			if err != nil {
				t.Fatal(err)
			}
			var refused *RefusedError
			if _, err := exchange(conn, h); !errors.As(err, &refused) {
				t.Errorf("%+v: %v", h, err)
			}
			conn.Close()
		}
		time.Sleep(10 * time.Second)
		if s := b.job.State(); s != Asking {
			t.Errorf("it is %v", s)
		}
		b.noArbiter.Store(false)
		b.is(Waiting)
		w.f.join("a", "b")
		a.is(Protected)
		b.halt()
		a.halt()
	})
}

func TestAHostThatFollowedKnowsThatTheGuestHasEnded(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		if err := a.job.Pause(t.Context(), "a rest"); err != nil {
			t.Fatal(err)
		}
		b.is(Waiting)
		if err := b.job.Query().LastError; errors.Is(err, ErrCompleted) {
			t.Errorf("after a pause: %v", err)
		}
		if err := a.job.Resume(); err != nil {
			t.Fatal(err)
		}
		a.is(Protected)
		b.is(Following)
		if err := a.job.Complete(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.is(Waiting)
		if err := b.job.Query().LastError; !errors.Is(err, ErrCompleted) {
			t.Errorf("after the end: %v", err)
		}
		<-a.done
		a.leave()
		b.halt()
	})
}

// With LateResume the guest does not run on before its checkpoint is complete.
func TestASessionKeepsThePaceOfItsConfiguration(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		slow := func(c *Config) {
			c.CheckpointDelay, c.MinInterval, c.LateResume = time.Minute, 400*time.Millisecond, true
		}
		b := w.boot("b", false, slow)
		a := w.boot("a", true, slow)
		a.is(Protected)
		b.is(Following)
		a.mu.Lock()
		a.events = nil
		a.mu.Unlock()
		for range 4000 {
			if err := a.job.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		a.mu.Lock()
		n := 0
		for _, e := range a.events {
			if c, ok := e.(event.CheckpointCommit); ok && c.Mode == event.ModePrimary {
				n++
				if c.EarlyResume {
					t.Error("the guest ran on while its checkpoint was sent")
				}
			}
		}
		a.mu.Unlock()
		if n < 8 || n > 11 {
			t.Errorf("%d checkpoints in ten intervals", n)
		}
		b.halt()
		a.halt()
	})
}
