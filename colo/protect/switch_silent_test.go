package protect

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
)

// A switchover of a guest whose networks hold no output when it stands still: the other host is
// told to go on while it still receives the last checkpoint.

// holding is a NIC that says that it holds so many packets.
type holding struct {
	paced
	packets int
}

func (h holding) HeldOutput() colo.Held { return colo.Held{Packets: h.packets} }

// whileReceiving boots a pair whose primary says that it holds so many packets, and switches the
// guest over. meanwhile is called before the primary sends the memory of the last checkpoint, when it has had the
// time to release the guest.
func whileReceiving(t *testing.T, w *world, held int, meanwhile func(a, b *host)) (a, b *host, err error) {
	t.Helper()
	w.guest.Interval = 20 * time.Millisecond
	met := new(atomic.Bool)
	var primary atomic.Pointer[host]
	b = w.boot("b", false, nil)
	a = w.boot("a", true, func(c *Config) {
		c.Network = []Network{holding{c.Network[0].(paced), held}}
		c.Session.Step = func(side event.Mode, op string, _ uint64) {
			a := primary.Load()
			if side != event.ModePrimary || op != "send ram" || a == nil || met.Load() {
				return
			}
			if s := a.job.session(); s == nil || !s.standing() {
				return // it is not the last
			}
			met.Store(true)
			time.Sleep(100 * time.Millisecond)
			meanwhile(a, b)
		}
	})
	primary.Store(a)
	a.is(Protected)
	b.is(Following)
	err = a.job.Switchover(t.Context())
	if !met.Load() {
		t.Fatal("no last checkpoint was seen")
	}
	return a, b, err
}

// released reports whether the arbiter says that nobody holds the guest, and b was told so.
func released(t *testing.T, w *world, b *host) bool {
	t.Helper()
	r, err := w.store.Load(t.Context())
	if err != nil {
		t.Error(err)
	}
	s := b.job.session()
	s.mu.Lock()
	defer s.mu.Unlock()
	return !r.Held() && s.early != nil
}

func TestAGuestWithoutHeldOutputIsReleasedBeforeItsLastCheckpointIsReceived(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		told, open := false, make(chan bool, 1)
		a, b, err := whileReceiving(t, w, 0, func(a, b *host) {
			told = released(t, w, b)
			b.on(TakingOver, func() {
				_, err := b.job.session().peer.session.Write(nil)
				open <- err == nil
			})
		})
		if err != nil || !told {
			t.Errorf("told: %v: %v", told, err)
		}
		if !<-open { // it need not stand still for that
			t.Error("the session's connection is closed before the guest runs")
		}
		b.is(Protected)
		a.is(Following)
		if g := b.job.Query().Generation; g != 2 {
			t.Errorf("it is in generation %d", g)
		}
		w.andBack(a, b)
	})
}

// Output that is held may leave when the last checkpoint is received, and before anybody else
// speaks for the guest.
func TestAGuestWithHeldOutputIsReleasedWhenItsLastCheckpointIsReceived(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b, err := whileReceiving(t, w, 1, func(a, b *host) {
			if r, _ := w.store.Load(t.Context()); !r.Held() || !a.job.Gate().Open() {
				t.Error("it is released, and holds output")
			}
		})
		if err != nil {
			t.Error(err)
		}
		b.is(Protected)
		a.is(Following)
		w.andBack(a, b)
	})
}

// The session breaks after the release. The secondary has only the checkpoint before the last, and the primary
// has all: the guest runs on there, from where it stands, though it takes a while until the arbiter hears it.
func TestASecondaryThatWasToldToGoOnAndDoesNotGetTheLastCheckpointSaysSo(t *testing.T) {
	for _, name := range []string{"the arbiter answers", "the arbiter is not reached for a while"} {
		bubble(t, name, func(t *testing.T, w *world) {
			w.term = 4 * time.Second // longer than the secondary listens to a primary that lives
			a, b, err := whileReceiving(t, w, 0, func(a, b *host) {
				if !released(t, w, b) {
					t.Error("it was not told")
				}
				if name != "the arbiter answers" {
					a.noArbiter.Store(true)
					time.AfterFunc(w.term/2, func() { a.noArbiter.Store(false) })
				}
				a.job.session().peer.session.Close()
			})
			if err == nil || !strings.Contains(err.Error(), "the guest runs on here") || !strings.Contains(err.Error(), "b cannot: the last checkpoint here is") {
				t.Errorf("%v", err)
			}
			a.is(Protected)
			b.is(Following)
			if s := b.states(); strings.Contains(s, Alone.String()) || strings.Contains(s, TakingOver.String()) {
				t.Errorf("b went on: %s", s)
			}
			if g := a.job.Query().Generation; g != 2 {
				t.Errorf("it is in generation %d", g)
			}
			w.hearsMore()
			a.halt()
			b.halt()
		})
	}
}

// Both hosts have a guest that may go on then, and nothing has left since the older of the two.
func TestASecondaryThatWasToldToGoOnIsCutOffBeforeItHasTheLastCheckpointAndOneOfTheTwoGoesOn(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault func(w *world, a, b *host)
		back  bool
	}{
		{"the link breaks", func(w *world, a, b *host) { w.f.part("a", "b", false) }, true},
		{"the link falls silent", func(w *world, a, b *host) { w.f.part("a", "b", true) }, true},
		{"the primary dies", func(w *world, a, b *host) { a.kill(false) }, false},
		{"the primary dies silently", func(w *world, a, b *host) { a.kill(true) }, false},
		{"the secondary dies", func(w *world, a, b *host) { b.kill(false) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, "", func(t *testing.T, w *world) {
				begun := time.Now()
				a, b, err := whileReceiving(t, w, 0, func(a, b *host) { c.fault(w, a, b) })
				w.f.join("a", "b")
				if err == nil {
					t.Error("the switchover is made")
				}
				there, other := b, a
				if b.killed.Load() || a.job.State().runs() && !a.killed.Load() {
					there, other = a, b
				}
				if other.killed.Load() {
					other.bury()
					there.is(Alone)
				} else {
					there.is(Protected)
					other.is(Following)
				}
				if d := time.Since(begun); d > 30*time.Second {
					t.Errorf("it took %v", d)
				}
				w.hearsMore()
				there.halt()
				if !other.killed.Load() {
					other.halt()
				}
			})
		})
	}
}

// The word to go on comes when the session has ended, over a control connection that has not.
func TestASecondaryThatIsToldToGoOnAfterItsSessionHasEndedDoesNot(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	s := &session{peer: newPeer(hello{Host: "a"}), whole: true, epoch: 4, settles: true, stood: 4}
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
	if n := <-said; n.Say != sayCannot || !strings.Contains(n.Reason, "is 4, not 5") {
		t.Errorf("it says %+v", n)
	}
	if s.wasHanded() || s.peer.released || !s.peer.declined {
		t.Errorf("handed: %v, released: %v, declined: %v", s.wasHanded(), s.peer.released, s.peer.declined)
	}
}
