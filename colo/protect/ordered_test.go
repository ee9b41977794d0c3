package protect

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
)

// exits returns what a host has said of the end of its sessions, and the answers of
// its arbiter but for the questions.
func (h *host) exits() (exits []event.COLOExit, answers []event.Arbitration, lost int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		switch e := e.(type) {
		case event.COLOExit:
			exits = append(exits, e)
		case event.Arbitration:
			if e.Answer != event.ArbiterAsked {
				answers = append(answers, e)
			}
		case event.HeartbeatLost:
			lost++
		}
	}
	return exits, answers, lost
}

// What an operator has ordered is no failure, on neither host: nothing of it is a
// warning, and whoever asks why the session has ended hears that it was asked for.
func TestASwitchoverIsTheEndOfASessionByRequestOnBothHosts(t *testing.T) {
	for name, verb := range map[string]func(*Job, context.Context) error{"switchover": (*Job).Switchover, "migrate": (*Job).Migrate} {
		bubble(t, name, func(t *testing.T, w *world) {
			var logs [2]lines
			log := func(i int) func(*Config) {
				return func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&logs[i], nil)) }
			}
			b, a := w.boot("b", false, log(1)), w.boot("a", true, log(0))
			a.is(Protected)
			time.Sleep(300 * time.Millisecond)
			taken := b.passes(Alone)
			if name == "migrate" {
				taken = b.passes(Paused)
			}
			if err := verb(a.job, t.Context()); err != nil {
				t.Fatal(err)
			}
			<-taken
			for i, h := range []*host{a, b} {
				exits, answers, lost := h.exits()
				if len(exits) != 1 || exits[0].Reason != event.ExitRequest || exits[0].Error != "" || lost != 0 {
					t.Errorf("%s: %+v, %d times HEARTBEAT_LOST", h.name, exits, lost)
				}
				if len(answers) != 1 || !answers[0].Ordered || answers[0].Released != (h == a) {
					t.Errorf("%s: %+v", h.name, answers)
				}
				for _, l := range logs[i].all() {
					for _, what := range []string{"COLO_EXIT", "ARBITRATION", "HEARTBEAT_LOST"} {
						if strings.Contains(l, "level=WARN msg="+what) {
							t.Errorf("%s warns: %s", h.name, l)
						}
					}
				}
			}
			a.halt()
			b.halt()
		})
	}
}

// An end that is ordered is a request, also where the other side, which is told first, has
// closed its connections before this session ends.
func TestAnEndThatIsOrderedIsARequestHoweverItIsHeard(t *testing.T) {
	for name, verb := range map[string]func(*Job, context.Context) error{
		"pause":  func(j *Job, ctx context.Context) error { return j.Pause(ctx, "by hand") },
		"cancel": (*Job).Cancel, "complete": (*Job).Complete,
	} {
		bubble(t, name, func(t *testing.T, w *world) {
			b := w.boot("b", false, nil)
			a := w.boot("a", true, func(c *Config) {
				dial := c.Peer.Dialer
				c.Peer.Dialer = func(ctx context.Context) (net.Conn, error) {
					conn, err := dial(ctx)
					return lingering{conn}, err
				}
			})
			a.is(Protected)
			time.Sleep(300 * time.Millisecond)
			if err := verb(a.job, t.Context()); err != nil {
				t.Error(err)
			}
			if exits, _, lost := a.exits(); len(exits) != 1 || exits[0].Reason != event.ExitRequest || exits[0].Error != "" || lost != 0 {
				t.Errorf("%+v, %d times HEARTBEAT_LOST", exits, lost)
			}
			a.halt()
			b.halt()
		})
	}
}

// A host that leaves, as by a signal, has asked for the end of its session itself, and says so to
// the other: neither warns of anything.
func TestAHostThatLeavesHasAskedForTheEndItself(t *testing.T) {
	for _, leaver := range []string{"a", "b"} {
		bubble(t, leaver, func(t *testing.T, w *world) {
			var log lines
			logs := func(name string) func(*Config) {
				return func(c *Config) {
					if name == leaver {
						c.Logger = slog.New(slog.NewTextHandler(&log, nil))
					}
				}
			}
			b, a := w.boot("b", false, logs("b")), w.boot("a", true, logs("a"))
			a.is(Protected)
			time.Sleep(300 * time.Millisecond)
			leaves, stays := a, b
			if leaver == "b" {
				leaves, stays = b, a
			}
			leaves.halt()
			if exits, _, lost := leaves.exits(); len(exits) != 1 || exits[0].Reason != event.ExitRequest || exits[0].Error != "" || lost != 0 {
				t.Errorf("%+v, %d times HEARTBEAT_LOST", exits, lost)
			}
			for _, l := range log.all() {
				if strings.Contains(l, "level=WARN") {
					t.Errorf("it warns: %s", l)
				}
			}
			stays.is(Alone)
			if exits, _, _ := stays.exits(); len(exits) != 1 || exits[0].Reason != event.ExitRequest {
				t.Errorf("the one that stays: %+v", exits)
			}
			stays.halt()
		})
	}
}

// The other host ends the session when it hears that this one leaves, and must not have heard so
// before the session here is told: it would have been lost.
func TestAHostThatLeavesTellsItsOwnSessionFirst(t *testing.T) {
	for _, leaver := range []string{"a", "b"} {
		bubble(t, leaver, func(t *testing.T, w *world) {
			a, b := w.protected()
			time.Sleep(300 * time.Millisecond)
			leaves, stays := a, b
			if leaver == "b" {
				leaves, stays = b, a
			}
			s, p, heard := leaves.job.session(), stays.job.session().peer, false
			s.mu.Lock() // whoever tells it waits
			leaves.stop(errHalt)
			for range 50000 { // the clock of the bubble stands still, and whoever can goes on
				runtime.Gosched()
			}
			p.get(func() { heard = p.lost })
			s.mu.Unlock()
			if heard {
				t.Error("the other host has heard of it before")
			}
			leaves.halt()
			if exits, _, _ := leaves.exits(); len(exits) != 1 || exits[0].Reason != event.ExitRequest {
				t.Errorf("the one that leaves: %+v", exits)
			}
			stays.is(Alone)
			stays.halt()
		})
	}
}

// lingering is a connection on which the order to end is heard long before it is known to
// have been sent.
type lingering struct{ net.Conn }

func (c lingering) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if bytes.Contains(p, []byte(`"say":"end"`)) {
		time.Sleep(100 * time.Millisecond)
	}
	return n, err
}

// A failover that is ordered on the secondary of a primary that lives is a request
// there, and that it is refused is a warning: the order was not carried out. To the
// primary it is what has become of its secondary.
func TestAFailoverThatIsRefusedIsARequestWhereItWasOrdered(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		alone, waiting := a.passes(Alone), b.passes(Waiting)
		if err := b.job.Failover(); err != nil {
			t.Fatal(err)
		}
		<-alone
		<-waiting
		exits, answers, lost := b.exits()
		if len(exits) != 1 || exits[0].Reason != event.ExitRequest || lost != 0 {
			t.Errorf("%+v, %d times HEARTBEAT_LOST", exits, lost)
		}
		if n := len(answers); n == 0 || answers[n-1].Answer != event.ArbiterRefused || answers[n-1].Released || event.Level(answers[n-1]) != slog.LevelWarn {
			t.Errorf("%+v", answers)
		}
		if exits, _, _ := a.exits(); len(exits) != 1 || exits[0].Reason != event.ExitError {
			t.Errorf("the primary: %+v", exits)
		}
		b.halt()
		a.halt()
	})
}

// A switchover that is given up while this host gives its grant back has ended the session by a failure.
func TestASwitchoverThatIsGivenUpIsNoRequest(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.heeds = []string{}
		a, b := w.protected()
		a.slow.Store(int64(400 * time.Millisecond))
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond) // in the release, which comes soon
		defer cancel()
		if err := a.job.Switchover(ctx); err == nil {
			t.Error("no error")
		}
		a.slow.Store(0)
		a.is(Protected) // again: the session that was ended is over on both hosts
		for _, h := range []*host{a, b} {
			if exits, _, _ := h.exits(); len(exits) != 1 || exits[0].Reason != event.ExitError || exits[0].Error == "" {
				t.Errorf("%s: %+v", h.name, exits)
			}
		}
		a.halt()
		b.halt()
	})
}

// Where an operator is the arbiter, Failover counts as a yes in the moment, too, between the end of
// a secondary's session and its question.
func TestAnOperatorsYesCountsBeforeTheQuestion(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		none := func(c *Config) { c.Arbiter = nil }
		b := w.boot("b", false, func(c *Config) {
			none(c)
			event.Subscribe(c.Events, func(event.COLOExit) {
				if h := w.newest("b"); h.job.State() == Following {
					if err := h.job.Failover(); err != nil {
						t.Error(err)
					}
				}
			})
		})
		a := w.boot("a", true, none)
		a.is(Protected)
		b.is(Following)
		a.kill(true)
		a.bury()
		b.is(Alone)
		b.halt()
	})
}
