package protect

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
)

// loggedPair boots a pair, each of which has a log of what is of interest to an operator.
func (w *world) loggedPair() (a, b *host, ofA, ofB *lines) {
	w.t.Helper()
	ofA, ofB = new(lines), new(lines)
	to := func(l *lines) func(*Config) {
		return func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(l, nil)) }
	}
	b = w.boot("b", false, to(ofB))
	a = w.boot("a", true, to(ofA))
	a.is(Protected)
	b.is(Following)
	time.Sleep(300 * time.Millisecond)
	return a, b, ofA, ofB
}

// calmly reports what of a log an operator would take for a failure.
func (w *world) calmly(host string, l *lines) {
	w.t.Helper()
	for _, line := range l.all() {
		if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
			w.t.Errorf("%s: %s", host, line)
		}
	}
}

// has reports whether a line of a log has all of these.
func (l *lines) has(all ...string) bool {
	for _, line := range l.all() {
		n := 0
		for _, want := range all {
			if strings.Contains(line, want) {
				n++
			}
		}
		if n == len(all) {
			return true
		}
	}
	return false
}

// toldOnce checks that one line of a log says that the session has ended, and why, and that no
// line but that of a grant says what was asked of the arbiter.
func (l *lines) toldOnce(t *testing.T, host, why string) {
	t.Helper()
	exits := 0
	for _, line := range l.all() {
		switch {
		case strings.Contains(line, "msg=COLO_EXIT"):
			exits++
			if !strings.Contains(line, "reason=request why="+strconv.Quote(why)) {
				t.Errorf("%s does not say %q: %s", host, why, line)
			}
		case strings.Contains(line, "msg=ARBITRATION") && !strings.Contains(line, "answer=granted"):
			t.Errorf("%s: %s", host, line)
		}
	}
	if exits != 1 {
		t.Errorf("%s tells %d times that the session has ended", host, exits)
	}
}

// A session that somebody ends on purpose is no failure of anything: neither log has a warning,
// no event says error, Query has no error, and the other side says in one line what has happened.
func TestASessionThatIsEndedOnPurposeReadsLikeNoFailure(t *testing.T) {
	leave := func(h *host) { h.stop(errHalt); <-h.done }
	for name, c := range map[string]struct {
		end  func(ctx context.Context, a, b *host) error
		b    State    // that b comes to
		line []string // of b's log
		aSee string   // in a's log, where that is not its own doing
		whys [2]string
	}{
		"pause":                  {func(ctx context.Context, a, b *host) error { return a.job.Pause(ctx, "a new kernel") }, Waiting, []string{"state=waiting", `reason="a has paused the protection: a new kernel"`}, "", [2]string{"the protection was paused on this host", "a has paused the protection: a new kernel"}},
		"pause without a reason": {func(ctx context.Context, a, b *host) error { return a.job.Pause(ctx, "") }, Waiting, []string{"state=waiting", `reason="a has paused the protection"`}, "", [2]string{"the protection was paused on this host", "a has paused the protection"}},
		"cancel":                 {func(ctx context.Context, a, b *host) error { return a.job.Cancel(ctx) }, Waiting, []string{"state=waiting", `reason="a has ended the protection"`}, "", [2]string{"the protection was ended on this host", "a has ended the protection"}},
		"switchover":             {func(ctx context.Context, a, b *host) error { return a.job.Switchover(ctx) }, Protected, []string{"generation=2", "state=alone", `reason="switched over from a"`}, `reason="b has taken the guest over"`, [2]string{"the guest is handed over to b", "a hands the guest over"}},
		"the primary leaves":     {func(ctx context.Context, a, b *host) error { leave(a); return nil }, Alone, []string{"generation=2", "state=alone", `reason="took over from a"`}, "", [2]string{"this host leaves", "a leaves"}},
		"the secondary leaves":   {func(ctx context.Context, a, b *host) error { leave(b); return nil }, Concluded, []string{"state=concluded"}, `reason="b leaves"`, [2]string{"b leaves", "this host leaves"}},
	} {
		bubble(t, name, func(t *testing.T, w *world) {
			a, b, ofA, ofB := w.loggedPair()
			if err := c.end(t.Context(), a, b); err != nil {
				t.Fatal(err)
			}
			b.passed(c.b)
			time.Sleep(300 * time.Millisecond)
			w.calmly("a", ofA)
			w.calmly("b", ofB)
			if !ofB.has(c.line...) {
				t.Errorf("no line of b has %q:\n%s", c.line, strings.Join(ofB.all(), "\n"))
			}
			if !ofA.has(c.aSee) {
				t.Errorf("no line of a has %q:\n%s", c.aSee, strings.Join(ofA.all(), "\n"))
			}
			ofA.toldOnce(t, "a", c.whys[0])
			ofB.toldOnce(t, "b", c.whys[1])
			for _, h := range []*host{a, b} {
				if q := h.job.Query(); q.LastError != nil || !q.LastErrorAt.IsZero() {
					t.Errorf("%s: %v, at %v", h.name, q.LastError, q.LastErrorAt)
				}
				h.mu.Lock()
				for _, e := range h.events {
					switch e := e.(type) {
					case event.COLOExit:
						if e.Reason != event.ExitRequest {
							t.Errorf("%s: %+v", h.name, e)
						}
					case event.HeartbeatLost:
						t.Errorf("%s: %+v", h.name, e)
					case event.Arbitration:
						if e.Answer == event.ArbiterRefused && !e.Released {
							t.Errorf("%s: %+v", h.name, e)
						}
					}
				}
				h.mu.Unlock()
			}
			for _, h := range []*host{a, b} {
				if h.over() {
					h.leave()
				} else {
					h.halt()
				}
			}
		})
	}
}

// A loss is one as before, with the time at which it was noticed, and what a session's own
// log says of a takeover is of the generation that the host holds by then.
func TestALossIsToldWithItsTimeAndATakeoverWithItsGeneration(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b, _, ofB := w.loggedPair()
		since := time.Now()
		a.kill(true)
		a.bury()
		b.is(Alone)
		if !ofB.has("level=WARN", "msg=COLO_EXIT", "generation=1", "reason=error") {
			t.Errorf("no loss:\n%s", strings.Join(ofB.all(), "\n"))
		}
		if !ofB.has("msg=FAILOVER", "guest=guest generation=2", "side=secondary") {
			t.Errorf("no takeover in generation 2:\n%s", strings.Join(ofB.all(), "\n"))
		}
		time.Sleep(10 * time.Second) // it seeks a
		q := b.job.Query()
		if q.LastError == nil || !q.LastErrorAt.After(since) || q.LastErrorAt.After(time.Now()) {
			t.Errorf("%v, at %v", q.LastError, q.LastErrorAt)
		}
		if q.Stats.Takeovers != 1 {
			t.Errorf("%d takeovers", q.Stats.Takeovers)
		}
		b.halt()
	})
}

// A switchover is no takeover in the place of a lost primary.
func TestASwitchoverIsNotCountedAsATakeover(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.is(Protected)
		if n := b.job.Query().Stats.Takeovers; n != 0 {
			t.Errorf("%d takeovers", n)
		}
		b.halt()
		a.halt()
	})
}

// A job that is stopped when the two have agreed, and before their session has begun, ends that
// by an order too.
func TestAJobThatIsStoppedBeforeItsSessionRunsHasEndedItInOrder(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a := w.boot("a", true, nil) // before there is a secondary whose session could begin
		a.on(Synchronising, func() { a.stop(errHalt); a.job.Wait(context.Background(), Concluded) })
		b := w.boot("b", false, nil)
		<-a.done
		a.mu.Lock()
		for _, e := range a.events {
			switch e := e.(type) {
			case event.COLOExit:
				if e.Reason != event.ExitRequest {
					t.Errorf("%+v", e)
				}
			case event.ProtectionRefused:
				t.Errorf("%+v", e)
			}
		}
		a.mu.Unlock()
		if !errors.Is(a.err, errHalt) {
			t.Error(a.err)
		}
		a.leave()
		b.stop(errHalt) // its memory may be that of a synchronisation that was cut off
		<-b.done
		b.leave()
	})
}

// Words of another version are told with who has said them.
func TestTheEndOfASessionIsToldInTheWordsThatCame(t *testing.T) {
	for _, c := range []struct{ verb, reason, want string }{
		{"", "b leaves", "b leaves"},
		{"a verb of tomorrow", "it is over", "b has ended the session: it is over"},
		{"", "for a while", "b has ended the session: for a while"},
		{"pause", "x", "b has paused the protection: x"},
		{"cancel", "cancelled", "b has ended the protection"},
	} {
		p := &peer{host: "b", ended: true, leaves: true, verb: c.verb, reason: c.reason}
		err := p.endedWhy()
		if err.Error() != c.want || !errors.Is(err, errEnded) || errors.Is(err, ErrCompleted) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	p := &peer{host: "b", ended: true, leaves: true, complete: true}
	if err := p.endedWhy(); !errors.Is(err, ErrCompleted) || err.Error() != "the guest has ended on b" {
		t.Error(err)
	}
}
