package protect

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"

	"github.com/gocolo/lockstep/failover"
)

// committing is a NIC that is told of each commit of its host before it makes it.
type committing struct {
	paced
	f func(epoch uint64) error
}

func (c committing) Commit(epoch uint64) error {
	if err := c.f(epoch); err != nil {
		return err
	}
	return c.paced.Commit(epoch)
}

// resumes counts how often a guest is resumed.
type resumes struct {
	*colotest.VM
	n *atomic.Int64
}

func (g resumes) Resume(ctx context.Context) error {
	g.n.Add(1)
	return g.VM.Resume(ctx)
}

// whileCommitting switches the guest over to a host that calls meanwhile while it makes the last
// checkpoint its own: by then it has been told to go on. How often the guest is resumed from then on
// is counted up to the end of the takeover.
func whileCommitting(t *testing.T, w *world, meanwhile func(a, b *host) error) (a, b *host, resumed *atomic.Int64, err error) {
	t.Helper()
	a, b, n, met := committer(w, func(*Config) {}, meanwhile)
	resumed = new(atomic.Int64)
	b.on(Alone, func() { resumed.Store(n.Load()) }) // a checkpoint of the next session resumes it again
	err = a.job.Switchover(t.Context())
	if !met.Load() {
		t.Fatal("the other host was not told before it had committed the last checkpoint")
	}
	return a, b, resumed, err
}

// committer boots a pair whose secondary calls meanwhile in the commit in which it has been told to
// go on. It counts how often the guest there is resumed from then on.
func committer(w *world, change func(*Config), meanwhile func(a, b *host) error) (a, b *host, n *atomic.Int64, met *atomic.Bool) {
	t := w.t
	t.Helper()
	n, met = new(atomic.Int64), new(atomic.Bool)
	var primary atomic.Pointer[host]
	b = w.boot("b", false, func(c *Config) {
		change(c)
		g := c.Guest.(*colotest.VM)
		c.Guest = resumes{g, n}
		c.Network = []Network{committing{c.Network[0].(paced), func(epoch uint64) error {
			s, a := b.job.session(), primary.Load()
			if s == nil || a == nil || a.job.State() != SwitchingOver || a.guest.Paused() && met.Load() {
				return nil
			}
			time.Sleep(200 * time.Millisecond) // more than it takes to be told
			s.mu.Lock()
			told := s.early != nil
			s.mu.Unlock()
			if !told {
				return nil // it is not the last
			}
			met.Store(true)
			n.Store(0)
			if a.job.Gate().Open() {
				t.Error("it was told to go on, and the gate of the primary is open")
			}
			if arbiter := b.job.cfg.Arbiter; arbiter != nil && !failover.HeedsFrom(arbiter) {
				if r, err := arbiter.Record(t.Context()); err != nil || r.Held() {
					t.Errorf("it was told to go on, and the guest is not released: %+v, %v", r, err)
				}
			}
			return meanwhile(a, b)
		}}}
	})
	a = w.boot("a", true, change)
	primary.Store(a)
	a.is(Protected)
	b.is(Following)
	return a, b, n, met
}

// A secondary that makes the last checkpoint its own is told to go on meanwhile, and does as
// soon as it has: its guest is resumed once, and not to be paused again.
func TestASecondaryIsToldToGoOnWhileItCommits(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b, resumed, err := whileCommitting(t, w, func(a, b *host) error { return nil })
		if err != nil {
			t.Error(err)
		}
		b.is(Protected)
		a.is(Following)
		if n := resumed.Load(); n != 1 {
			t.Errorf("the guest was resumed %d times", n)
		}
		w.andBack(a, b)
	})
}

// One whose commit fails says so, and the guest runs on where it ran.
func TestASecondaryThatWasToldToGoOnAndCannotCommitSaysSo(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var at time.Time
		a, b, _, err := whileCommitting(t, w, func(a, b *host) error {
			at = time.Now()
			return errors.New("its network is gone")
		})
		if err == nil || !strings.Contains(err.Error(), "the guest runs on here") || !strings.Contains(err.Error(), "b cannot") {
			t.Errorf("%v", err)
		}
		if d := time.Since(at); d > a.job.cfg.Lost {
			t.Errorf("it took %v", d)
		}
		<-b.done // torn
		b.leave()
		w.hearsMore()
		a.halt()
	})
}

// One that is cut off meanwhile has all of the guest, which was released, and so has the host
// that released it: whoever asks the arbiter first goes on with it, and the other follows.
func TestASecondaryThatWasToldToGoOnIsCutOffAndOneOfTheTwoGoesOn(t *testing.T) {
	for _, c := range []struct {
		name     string
		unheard  func(a, b *host) *host // who cannot ask meanwhile
		goesBack bool
	}{
		{"the one that was told asks first", func(a, _ *host) *host { return a }, false},
		{"the one that said so asks first", func(_, b *host) *host { return b }, true},
		{"both ask", func(_, _ *host) *host { return nil }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, "", func(t *testing.T, w *world) {
				begun := time.Now()
				a, b, _, err := whileCommitting(t, w, func(a, b *host) error {
					if h := c.unheard(a, b); h != nil {
						h.noArbiter.Store(true)
						time.AfterFunc(2*time.Second, func() { h.noArbiter.Store(false) })
					}
					w.f.part("a", "b", false)
					return nil
				})
				w.f.join("a", "b")
				back := err != nil && strings.Contains(err.Error(), "the guest runs on here")
				if err == nil || c.unheard(a, b) != nil && back != c.goesBack { // nobody could say that it runs there
					t.Errorf("%v", err)
				}
				if back {
					a, b = b, a
				}
				b.is(Protected)
				a.is(Following)
				if d := time.Since(begun); d > 30*time.Second {
					t.Errorf("it took %v", d)
				}
				w.hearsMore()
				a.halt()
				b.halt()
			})
		})
	}
}

// One that dies meanwhile has not asked for the guest, which runs on where it ran.
func TestAHostRunsOnIfTheOneThatItToldToGoOnDiesInItsCommit(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b, _, err := whileCommitting(t, w, func(a, b *host) error {
			b.kill(false)
			return errDead
		})
		if err == nil || !strings.Contains(err.Error(), "the guest runs on here") {
			t.Errorf("%v", err)
		}
		a.is(Alone)
		if err := a.job.Query().LastError; err == nil || !strings.Contains(err.Error(), "the connections with b have ended") {
			t.Errorf("the guest is unprotected since %v", err) // and not because of the order
		}
		b.bury()
		w.hearsMore()
		a.halt()
	})
}

// An operator may say meanwhile that the other host is dead. The guest, which the commit leaves
// standing, runs on all the same.
func TestASecondaryThatIsFencedWhileItCommitsTheLastCheckpointRunsTheGuest(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b, _, _ := whileCommitting(t, w, func(a, b *host) error {
			a.kill(false)
			return b.job.Fenced()
		})
		a.bury()
		b.is(Alone)
		if b.guest.Paused() {
			t.Fatal("the guest stands still")
		}
		w.hearsMore()
		b.halt()
	})
}

// Where nobody is asked who goes on, the other host's word that it cannot is enough.
func TestAHostWithoutAnArbiterRunsOnIfTheOtherSaysThatItCannotCommit(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b, _, met := committer(w, func(c *Config) { c.Arbiter = nil }, func(a, b *host) error {
			return errors.New("its network is gone")
		})
		var err error
		done := make(chan struct{})
		go func() { defer close(done); err = a.job.Switchover(t.Context()) }()
		<-b.done // torn
		b.leave()
		a.is(Alone)
		<-done
		if err == nil || !met.Load() || !strings.Contains(err.Error(), "b cannot") {
			t.Errorf("told meanwhile: %v: %v", met.Load(), err)
		}
		w.hearsMore()
		a.halt()
	})
}

// And one that has been told to go on does, though its link is lost before it has committed.
func TestAHostWithoutAnArbiterThatWasToldToGoOnAndIsCutOffGoesOn(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b, _, met := committer(w, func(c *Config) { c.Arbiter = nil }, func(a, b *host) error {
			w.f.part("a", "b", false)
			time.Sleep(time.Second) // it is noticed in the commit
			return nil
		})
		done := make(chan struct{})
		go func() { defer close(done); a.job.Switchover(t.Context()) }() // an operator has to say who goes on
		b.is(Alone)
		if !met.Load() {
			t.Error("it was not told before it had committed the last checkpoint")
		}
		w.hearsMore()
		if s := a.job.State(); s != Asking && s != SwitchingOver {
			t.Errorf("a is %v", s)
		}
		a.halt()
		<-done
		b.halt()
	})
}

// A host that is told to go on with a checkpoint that it has not got, nor is committing, says that it
// cannot, and follows on: what it has is older than what the world has seen.
func TestAHostThatLacksTheLastCheckpointDoesNotGoOn(t *testing.T) {
	for name, has := range map[string]struct {
		whole bool
		epoch uint64
	}{"nothing": {false, 0}, "an older one": {true, 3}} {
		t.Run(name, func(t *testing.T) {
			here, there := net.Pipe()
			defer here.Close()
			defer there.Close()
			s := &session{peer: newPeer(hello{Host: "a"}), whole: has.whole, epoch: has.epoch}
			s.peer.control = here
			j := &Job{changed: make(chan struct{}), m: machine{state: Following}, current: s}
			said := make(chan note, 1)
			go func() {
				n, err := readNote(there)
				if err != nil {
					t.Error(err)
				}
				said <- n
			}()
			j.takeHand(s, note{Say: sayGo, Seq: 5})
			if n := <-said; n.Say != sayCannot || !strings.Contains(n.Reason, "not 5") {
				t.Errorf("it says %+v", n)
			}
			if j.State() != Following || s.wasHanded() {
				t.Errorf("it is %v", j.State())
			}
		})
	}
}
