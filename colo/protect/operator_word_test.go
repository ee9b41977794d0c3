package protect

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// byWord boots a pair whose primary, b, goes on by an operator's word that its arbiter has not
// heard: that hears a alone.
func byWord(w *world, change func(*Config)) (a, b *host) {
	w.t.Helper()
	b = w.boot("b", false, change)
	a = w.boot("a", true, nil)
	a.is(Protected)
	b.is(Following)
	b.noArbiter.Store(true)
	a.kill(true)
	a.bury()
	b.is(Asking)
	if err := b.job.Fenced(); err != nil {
		w.t.Fatal(err)
	}
	return w.boot("a", false, nil), b
}

// A primary that goes on by an operator's word, and dies before its arbiter has heard of that,
// leaves a copy that goes on: its secondary claims what that had, and the guest after it.
func TestTheSecondaryOfAHostThatWasFencedGoesOn(t *testing.T) {
	for _, how := range []string{"killed", "silent", "cut off"} {
		bubble(t, how, func(t *testing.T, w *world) {
			w.disks = true
			a, b := byWord(w, nil)
			b.is(Protected)
			a.is(Following)
			time.Sleep(time.Second)
			before := w.heard()
			if how == "cut off" {
				w.f.part("a", "b", true) // both live, and only one may be heard
			} else {
				b.kill(how == "silent")
				b.bury()
			}
			a.is(Alone)
			time.Sleep(10 * time.Second)
			if w.heard() == before || !a.job.Gate().Open() {
				t.Error("nothing leaves")
			}
			if r, err := w.store.Load(t.Context()); err != nil || r.Holder != "a" || r.Generation != 3 {
				t.Errorf("%+v, %v", r, err)
			}
			if how == "cut off" {
				if b.job.Gate().Open() {
					t.Error("the gate of a host that was cut off is open")
				}
				b.noArbiter.Store(false)
				w.f.join("a", "b")
				a.is(Protected)
				b.is(Following)
				b.halt()
			}
			w.clean()
			a.halt()
		})
	}
}

// Where the arbiter has heard of the primary's generation after the session began there is one
// to ask for.
func TestAWordThatTheArbiterHasHeardMeanwhileIsAGrant(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := byWord(w, nil)
		b.is(Protected)
		b.noArbiter.Store(false)
		time.Sleep(5 * time.Second)
		if r, _ := w.store.Load(t.Context()); r.Holder != "b" || r.Generation != 2 {
			t.Fatalf("%+v", r)
		}
		b.kill(true)
		b.bury()
		a.is(Alone)
		if r, _ := w.store.Load(t.Context()); r.Holder != "a" || r.Generation != 3 {
			t.Errorf("%+v", r)
		}
		w.clean()
		a.halt()
	})
}

// questionless is a connection that loses the questions for a promise.
type questionless struct {
	net.Conn
	lost *atomic.Int64
}

func (c questionless) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(`"say":"promise?"`)) {
		c.lost.Add(1)
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// Up to a secondary's first promise an operator's word keeps the gate open without an end. No
// secondary has a whole copy before it, with which it could go on as well.
func TestAHostThatWasFencedSendsNothingBeforeTheFirstPromise(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var lost atomic.Int64
		var cut atomic.Bool
		a, b := byWord(w, func(c *Config) {
			dial := c.Peer.Dialer
			c.Peer.Dialer = func(ctx context.Context) (net.Conn, error) {
				conn, err := dial(ctx)
				if err != nil || !cut.Load() {
					return conn, err
				}
				return questionless{conn, &lost}, nil
			}
			cut.Store(true) // and not before this host leads: it is dialled up to then
		})
		time.Sleep(30 * time.Second)
		if lost.Load() == 0 {
			t.Fatal("no question was lost")
		}
		if a.copyOf.Load() != 0 || strings.Contains(b.states(), "protected") {
			t.Errorf("%d is the generation of the copy of a secondary that has promised nothing; %s", a.copyOf.Load(), b.states())
		}
		cut.Store(false)
		b.is(Protected)
		a.is(Following)
		w.clean()
		a.halt()
		b.halt()
	})
}

func TestAHelloByWordFollowsAGrant(t *testing.T) {
	for _, c := range []struct {
		generation, heard uint64
		ok                bool
	}{
		{0, 0, true}, {1, 0, true}, {0, 1, false}, {1, 1, false}, {2, 1, true}, {2, 2, false}, {2, 3, false},
		{1 + maxWords, 1, true}, {2 + maxWords, 1, false}, {maxGeneration, maxGeneration - 1, true},
	} {
		h := hello{Channel: chControl, Generation: c.generation, Heard: c.heard}
		if err := h.check(); c.ok != (err == nil) || err != nil && !errors.Is(err, ErrHello) {
			t.Errorf("generation %d after %d: %v", c.generation, c.heard, err)
		}
	}
}

// An operator may say so of one host after the other before their arbiter hears of any: it is told of
// each generation when it can be reached, by whoever has the guest then.
func TestTheArbiterIsToldOfEachWordOfARow(t *testing.T) {
	for _, how := range []string{"of the same host", "of the other", "of the other, whose secondary claims"} {
		bubble(t, how, func(t *testing.T, w *world) {
			w.disks = true
			a, b := byWord(w, nil)
			b.is(Protected)
			a.is(Following)
			lone, dies := b, a
			if how != "of the same host" {
				lone, dies = a, b
			}
			lone.noArbiter.Store(true)
			dies.kill(true)
			dies.bury()
			lone.is(Asking)
			if err := lone.job.Fenced(); err != nil {
				t.Fatal(err)
			}
			lone.is(Alone)
			if in := lone.job.Query(); !in.Open || !in.Until.IsZero() {
				t.Errorf("by an operator's word the gate is open %v until %v, and nothing ends it", in.Open, in.Until)
			}
			generation := uint64(3)
			if how == "of the other, whose secondary claims" {
				b = w.boot("b", false, nil)
				lone.is(Protected)
				b.is(Following)
				lone.kill(true)
				lone.bury()
				b.is(Alone)
				generation, lone = 4, b
			} else {
				time.Sleep(10 * time.Second)
				lone.noArbiter.Store(false)
			}
			time.Sleep(10 * time.Second)
			before := w.heard()
			time.Sleep(time.Second)
			if !lone.job.Gate().Open() || w.heard() == before {
				t.Errorf("nothing leaves: %+v", lone.job.Query())
			}
			if in := lone.job.Query(); !in.Until.After(time.Now()) || time.Until(in.Until) > lone.job.cfg.Term {
				t.Errorf("by the arbiter's grant the gate is open for %v", time.Until(in.Until))
			}
			if r, err := w.store.Load(t.Context()); err != nil || r.Generation != generation || r.Holder != lone.name {
				t.Errorf("%+v, %v", r, err)
			}
			w.clean()
			lone.halt()
		})
	}
}

// The second of two words rests on the first: if that was wrong so is the second.
func TestAWordAfterOneThatWasWrongIsRefused(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var no atomic.Bool
		a, b := byWord(w, func(c *Config) { c.Arbiter = refusing{c.Arbiter, &no} })
		b.is(Protected)
		a.is(Following)
		a.kill(true)
		a.bury()
		b.is(Asking)
		if err := b.job.Fenced(); err != nil {
			t.Fatal(err)
		}
		b.is(Alone)
		no.Store(true)
		b.is(Waiting)
		if b.job.Gate().Open() {
			t.Error("the gate is open")
		}
		b.halt()
	})
}

// A takeover cannot be broken off. A host whose word is refused meanwhile gives up after it.
func TestAWordThatIsRefusedDuringTheTakeoverIsGivenUpAfterIt(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.disks = true
		var no atomic.Bool
		b := w.boot("b", false, func(c *Config) { c.Arbiter = refusing{c.Arbiter, &no} })
		a := w.boot("a", true, nil)
		a.is(Protected)
		b.is(Following)
		s := b.job.session()
		no.Store(true)
		if err := b.job.do(doFenced, "the other host is fenced"); err != nil {
			t.Fatal(err)
		}
		b.job.saysAfter(s)
		b.job.keeper.Fenced(s.peer.generation)
		b.job.confirm(s.peer.generation)
		if got := b.job.State(); got != TakingOver || b.job.Gate().Open() {
			t.Fatalf("%v, open %v", got, b.job.Gate().Open())
		}
		b.job.vm.face(true)
		waits := b.passes(Waiting)
		s.colo.Fenced()
		select {
		case <-waits:
		case <-time.After(time.Minute):
			t.Fatalf("b is %v", b.job.State())
		}
		b.is(Following) // of a, which goes on
		a.is(Protected)
		time.Sleep(time.Second)
		if !strings.Contains(b.states(), "taking-over alone waiting") || b.guest == nil || b.job.Gate().Open() {
			t.Error(b.states())
		}
		a.halt()
		b.halt()
	})
}

// What is refused so late is a generation of before, if this host holds another by then.
func TestAWordThatIsRefusedDuringTheTakeoverIsNotThatOfALaterGeneration(t *testing.T) {
	for refused, want := range map[uint64]State{7: Waiting, 6: Alone} {
		j := jobIn(TakingOver)
		var err error
		if j.keeper, err = failover.NewKeeper(failover.KeeperConfig{Arbiter: failover.NewManual(failover.Record{}), Holder: "a", Term: -1}); err != nil {
			t.Fatal(err)
		}
		j.keeper.Fenced(6) // it holds 7
		done := make(chan struct{})
		go func() {
			defer close(done)
			j.deposedThen(refused, failover.ErrRefused)
		}()
		if err := j.do(tookOver, ""); err != nil {
			t.Error(err)
		}
		<-done
		if s := j.State(); s != want {
			t.Errorf("%d is refused, and the host is %v, not %v", refused, s, want)
		}
	}
}
