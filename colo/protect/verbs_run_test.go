package protect

import (
	"context"
	"errors"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
	"github.com/gocolo/lockstep/replication"
)

// ends waits for the end of Run.
func (h *host) ends() {
	h.w.t.Helper()
	select {
	case <-h.done:
	case <-time.After(time.Minute):
		h.w.t.Fatalf("Run of %s does not return: %+v", h.name, h.job.Query())
	}
}

// holds returns the generation that is recorded on the host's disk.
func (h *host) holds() uint64 {
	h.w.t.Helper()
	m, err := h.job.cfg.Disks[0].metadata()
	if err != nil {
		h.w.t.Fatal(err)
	}
	return m.Held()
}

var leaving = map[string]func(context.Context, *Job) error{
	"pause":    func(ctx context.Context, j *Job) error { return j.Pause(ctx, "backup") },
	"cancel":   func(ctx context.Context, j *Job) error { return j.Cancel(ctx) },
	"complete": func(ctx context.Context, j *Job) error { return j.Complete(ctx) },
}

// A verb that cannot ask the arbiter ends with Run, and does not take the guest from
// the host that goes on with it.
func TestAVerbEndsWithRun(t *testing.T) {
	for name, verb := range leaving {
		bubble(t, name, func(t *testing.T, w *world) {
			w.disks = true
			a, b := w.protected()
			a.noArbiter.Store(true)
			b.noArbiter.Store(true)
			said := make(chan error, 1)
			go func() { said <- verb(context.WithoutCancel(t.Context()), a.job) }()
			time.Sleep(100 * time.Millisecond)
			a.stop(errHalt)
			a.ends()
			var se *StateError
			select {
			case err := <-said:
				if !errors.As(err, &se) || se.Verb != name || se.State != Concluded {
					t.Errorf("%v", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("the verb goes on without Run")
			}
			if err := verb(t.Context(), a.job); !errors.As(err, &se) {
				t.Errorf("another one: %v", err)
			}
			a.noArbiter.Store(false)
			b.noArbiter.Store(false)
			b.is(Alone)
			if r, _ := w.store.Load(t.Context()); r.Holder != "b" || r.Generation != 2 || a.holds() != 1 {
				t.Errorf("%+v; on the disk of a: %d", r, a.holds())
			}
			a.leave()
			b.halt()
		})
	}
}

// A lateAnswer is a store that makes the second generation's first swap at once, says
// so late, and hears of no context's end.
type lateAnswer struct{ *failovertest.Store }

const lateness = 200 * time.Millisecond

func (s lateAnswer) Swap(ctx context.Context, old, next failover.Record) (bool, error) {
	ok, err := s.Store.Swap(ctx, old, next)
	if old.Generation == 1 && next.Generation == 2 {
		time.Sleep(lateness)
	}
	return ok, err
}

// What the arbiter grants a verb at the very end of Run is recorded and given back
// before Run returns.
func TestWhatAVerbIsGrantedAtTheEndOfRunIsGivenBack(t *testing.T) {
	for name, verb := range leaving {
		bubble(t, name, func(t *testing.T, w *world) {
			w.disks = true
			b := w.boot("b", false, nil)
			a := w.boot("a", true, func(c *Config) { c.Arbiter = failover.NewStoreArbiter(lateAnswer{w.store}) })
			a.is(Protected)
			b.is(Following)
			said := make(chan error, 1)
			go func() { said <- verb(context.WithoutCancel(t.Context()), a.job) }()
			time.Sleep(lateness / 2) // it is granted, and not said
			a.stop(errHalt)
			a.ends()
			if r, _ := w.store.Load(t.Context()); r.Held() || r.Generation != 2 || a.holds() != 2 {
				t.Errorf("%+v; on the disk of a: %d", r, a.holds())
			}
			var se *StateError
			if err := <-said; !errors.As(err, &se) || se.State != Concluded {
				t.Errorf("%v", err)
			}
			if !errors.Is(a.err, errHalt) {
				t.Errorf("Run: %v", a.err)
			}
			a.leave()
			b.is(Waiting)
			b.halt()
		})
	}
}

// A host that was told that the other is fenced, and cannot say so to the arbiter,
// can leave.
func TestAFencedHostLeavesWithoutAnArbiter(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 10 * time.Second} {
		bubble(t, after.String(), func(t *testing.T, w *world) {
			_, b := w.fencedAlone()
			time.Sleep(after)
			b.stop(errHalt)
			b.ends()
			b.leave()
		})
	}
}

// The arbiter refuses whatever comes after a generation that it has not heard of. A host that
// holds one by an operator's word tells it of that first.
func TestAFencedHostTellsItsArbiterBeforeItAsksForMore(t *testing.T) {
	for name, then := range map[string]func(t *testing.T, a, b *host){
		"switchover": func(t *testing.T, a, b *host) {
			if err := b.job.Switchover(t.Context()); err != nil {
				t.Error(err)
			}
			a.is(Protected)
			b.is(Following)
		},
		"pause": func(t *testing.T, _, b *host) {
			if err := b.job.Pause(t.Context(), "test"); err != nil {
				t.Error(err)
			}
			b.is(Paused)
		},
		"loss of the secondary": func(_ *testing.T, a, b *host) {
			a.kill(false)
			a.bury()
			b.is(Alone)
		},
	} {
		bubble(t, name, func(t *testing.T, w *world) {
			_, b := w.fencedAlone()
			a := w.boot("a", false, nil)
			b.is(Protected)
			time.Sleep(5 * time.Second) // it asks once a second by now
			if r, err := w.store.Load(t.Context()); err != nil || r.Generation != 1 {
				t.Fatalf("the record is %+v, %v", r, err)
			}
			b.noArbiter.Store(false)
			then(t, a, b)
			for _, h := range []*host{a, b} {
				if !h.gone.Load() {
					h.halt()
				}
			}
		})
	}
}

// If the arbiter refuses, the operator's word was wrong, and nothing leaves any more.
func TestAFencedHostThatIsRefusedShutsItsGate(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var no atomic.Bool
		b := w.boot("b", false, func(c *Config) { c.Arbiter = refusing{c.Arbiter, &no} })
		a := w.boot("a", true, nil)
		a.is(Protected)
		b.is(Following)
		b.noArbiter.Store(true)
		a.kill(true)
		a.bury()
		b.is(Asking)
		if err := b.job.Fenced(); err != nil {
			t.Fatal(err)
		}
		b.is(Alone)
		no.Store(true)
		if _, err := b.job.acquire(t.Context(), b.job.keeper.Generation(), false); !errors.Is(err, failover.ErrRefused) {
			t.Error(err)
		}
		if b.job.Gate().Open() {
			t.Error("the gate is open")
		}
		b.halt()
	})
}

// A session may end in the moment in which an operator says that the other host is
// fenced. It goes on here all the same.
func TestFencedWhileTheSessionEndsGoesOn(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		a.noArbiter.Store(true)
		b.noArbiter.Store(true)
		if err := b.job.do(doFenced, "the other host is fenced"); err != nil {
			t.Fatal(err)
		}
		a.kill(false)
		a.bury()
		time.Sleep(time.Second)
		if s := b.job.session(); b.job.State() != TakingOver || s == nil {
			t.Fatalf("%v, Run: %v", b.job.State(), b.err)
		} else {
			b.job.goOn(s)
		}
		b.is(Alone)
		b.halt()
	})
}

// refusing is an arbiter that gives the guest to nobody from some time on.
type refusing struct {
	failover.Arbiter
	on *atomic.Bool
}

func (r refusing) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	if r.on.Load() {
		return failover.Grant{}, failover.ErrRefused
	}
	return r.Arbiter.Acquire(ctx, c)
}

// From the arbiter's no on the guest is fenced off from its disks, before the job's
// state says that it is the other host's.
func TestFencedThatComesAfterTheArbitersNoIsRefused(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.disks = true
		var no atomic.Bool
		b := w.boot("b", false, nil)
		a := w.boot("a", true, func(c *Config) { c.Arbiter = refusing{c.Arbiter, &no} })
		a.is(Protected)
		b.is(Following)
		no.Store(true)
		s := a.job.session()
		err := a.job.arbiter(s)(t.Context(), colo.Claim{Cause: colo.ErrLost})
		if !errors.Is(err, failover.ErrRefused) || a.job.State() != Asking {
			t.Errorf("%v, %v", err, a.job.State())
		}
		var e *StateError
		if err := a.job.Fenced(); !errors.As(err, &e) || e.State != Asking {
			t.Errorf("%v; a write: %v", err, func() error { _, err := a.disk.WriteAt([]byte{1}, 0); return err }())
		}
		s.colo.Lost(colo.ErrLost)
		a.is(Following) // b took over, and a came back at once
		b.is(Protected)
		if got := b.job.Query().Stats.Takeovers; got != 1 {
			t.Errorf("%d takeovers of b", got)
		}
		a.halt()
		b.halt()
	})
}

// The disks are of the generation that an operator's word began when the arbiter has
// agreed, so that disks of a wrong word do not win the next start.
func TestFencedRecordsAGenerationWhenTheArbiterAgrees(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.disks = true
		_, b := w.fencedAlone()
		time.Sleep(10 * time.Second)
		if g := b.holds(); g != 1 {
			t.Errorf("generation %d is on the disk before anybody has agreed", g)
		}
		b.noArbiter.Store(false)
		time.Sleep(10 * time.Second)
		if g := b.holds(); g != 2 {
			t.Errorf("generation %d is on the disk", g)
		}
		b.halt()
	})
}

// A host that was told by mistake that the other is fenced gives its guest up, its disks stay what they were, and it
// follows the next primary. (The client is not asked: two guests did run.)
func TestAHostThatWasFencedByMistakeFollows(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.disks = true
		a, b := w.protected()
		b.noArbiter.Store(true)
		w.f.part("a", "b", false)
		a.is(Alone)
		a.nicGone()
		if err := b.job.Fenced(); err != nil {
			t.Fatal(err)
		}
		b.is(Alone)
		time.Sleep(time.Second)
		b.noArbiter.Store(false)
		b.is(Waiting)
		if g := b.holds(); g != 1 {
			t.Errorf("generation %d is on the disk of the one that was wrong", g)
		}
		a.stop(errDead)
		a.bury()
		w.f.join("a", "b")
		other := newWorld(t) // another life of the guest, with another client
		other.f, other.store, other.disks = w.f, w.store, true
		a = other.boot("a", true, func(c *Config) { c.Held = 2 })
		a.is(Protected)
		b.is(Following)
		for _, h := range []*host{b, a} {
			h.stop(errHalt)
			h.ends()
			h.leave()
		}
		other.clean()
		w.forget()
	})
}

// Whatever else is done in a state, each activity ends when the job leaves its
// states: nobody is sought by a host that is paused.
func TestEachActivityEndsWithItsStates(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var dials atomic.Int64
		a := w.boot("a", true, func(c *Config) {
			dial := c.Peer.Dialer
			c.Peer.Dialer = func(ctx context.Context) (net.Conn, error) {
				dials.Add(1)
				return dial(ctx)
			}
		})
		a.is(Alone)
		time.Sleep(5 * time.Second)
		alone, done := a.job.while(t.Context(), Alone)
		defer done()
		both, over := a.job.while(t.Context(), Alone, Paused)
		defer over()
		if err := a.job.Pause(t.Context(), "backup"); err != nil {
			t.Fatal(err)
		}
		if !errors.Is(context.Cause(alone), errMoved) || both.Err() != nil {
			t.Errorf("%v, %v", context.Cause(alone), both.Err())
		}
		time.Sleep(time.Second)
		before := dials.Load()
		if time.Sleep(10 * time.Second); dials.Load() != before || before == 0 {
			t.Errorf("%d connections of a host that is paused, %d before", dials.Load()-before, before)
		}
		if err := a.job.Cancel(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !errors.Is(context.Cause(both), errMoved) {
			t.Error(context.Cause(both))
		}
		a.halt()
	})
}

// A lostAnswer is a store whose first swap is made, and nobody hears of it.
type lostAnswer struct {
	*failovertest.Store
	lost atomic.Bool
}

func (s *lostAnswer) Swap(ctx context.Context, old, next failover.Record) (bool, error) {
	ok, err := s.Store.Swap(ctx, old, next)
	if s.lost.CompareAndSwap(false, true) {
		<-ctx.Done()
		return false, context.Cause(ctx)
	}
	return ok, err
}

// The first host to come back starts the guest, though the answer to its claim was
// lost; a primary that has come in the last moment is turned away.
func TestAColdStartWhoseClaimIsNotAnsweredIsMadeAllTheSame(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		m, err := replication.OpenMetadata(&memory{b: make([]byte, metadataBytes)})
		if err == nil {
			err = m.Hold(1)
		}
		if err != nil {
			t.Fatal(err)
		}
		w.store.Swap(t.Context(), failover.Record{}, failover.Record{Generation: 1, Writes: 1})
		there, here := net.Pipe()
		var h *host
		booted := make(chan struct{})
		h = w.boot("a", false, func(c *Config) {
			d, err := NewDisk(DiskConfig{Name: "root", Image: kept{&image{b: make([]byte, 4096)}, m}})
			if err != nil {
				t.Fatal(err)
			}
			c.Disks = []*Disk{d}
			c.Arbiter = failover.NewStoreArbiter(&lostAnswer{Store: w.store})
			c.Events.SubscribeAll(func(r event.Record) {
				if _, ok := r.Event.(event.Resume); ok { // granted, and not said yet
					p := newPeer(hello{Host: "b"})
					p.control = here
					<-booted
					h.job.joined <- &pending{peer: p}
				}
			})
		})
		close(booted)
		h.is(Alone)
		if r, _ := w.store.Load(t.Context()); r.Holder != "a" || r.Generation != 2 || h.holds() != 2 || !h.job.Gate().Open() {
			t.Errorf("%+v; on the disk: %d", r, h.holds())
		}
		there.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := there.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the primary that came is kept: %v", err)
		}
		there.Close()
		h.halt()
	})
}

// Another generation may begin in the moment in which an order is about to be carried
// out. The host follows then, as it does in any other.
func TestAnOrderThatIsOvertakenDoesNotEndRun(t *testing.T) {
	depose := func(h *host) {
		h.on(Alone, func() {
			go func() {
				h.job.keeper.Drop()
				h.job.deposed(9, errors.New("another generation has begun"))
			}()
			for h.job.State() == Alone { // the event of what comes then waits for the end of this one
				runtime.Gosched()
			}
		})
	}
	for name, verb := range leaving {
		bubble(t, name, func(t *testing.T, w *world) {
			a, b := w.protected()
			depose(a)
			var se *StateError
			if err := verb(t.Context(), a.job); !errors.As(err, &se) || se.State != Waiting {
				t.Errorf("%v", err)
			}
			time.Sleep(5 * time.Second)
			if a.ended() || a.job.State() != Waiting {
				t.Fatalf("%v, Run: %v", a.job.State(), a.err)
			}
			b.halt()
			a.halt()
		})
	}
	bubble(t, "migrate", func(t *testing.T, w *world) {
		a, b := w.protected()
		depose(b)
		if err := a.job.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.ends()
		a.leave()
		time.Sleep(5 * time.Second)
		if b.ended() || b.job.State() != Waiting {
			t.Fatalf("%v, Run: %v", b.job.State(), b.err)
		}
		b.halt()
	})
}
