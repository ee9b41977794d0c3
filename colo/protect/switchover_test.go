package protect

import (
	"net"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/require"
)

func TestSwitchoverChangesTheSidesWithoutLoss(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		for round := range 10 {
			time.Sleep(300 * time.Millisecond)
			var left filter.BufferStats
			a.on(Waiting, func() { left = a.nic.Stats() })
			if err := a.job.Switchover(t.Context()); err != nil {
				t.Fatal(round, err)
			}
			if left.Held+left.Queued > 0 { // no epoch is lost: all that the guest said is covered, and out
				t.Errorf("round %d: %+v", round, left)
			}
			b.is(Protected)
			a.is(Following)
			q := a.job.Query()
			if q.Stats.Switchovers != uint64(round/2)+1 || q.Generation != uint64(round)+2 {
				t.Errorf("round %d: %+v", round, q)
			}
			a, b = b, a
		}
		b.halt()
		a.halt()
	})
}

// The guest does not stand still for as long as its old host takes to put its session away.
func TestDowntimeEndsWithTheOtherHostsWord(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a := w.boot("a", true, nil)
		a.is(Alone)
		here, there := net.Pipe()
		s := &session{peer: newPeer(hello{})}
		s.peer.control = here
		heard := make(chan struct{})
		go func() {
			defer close(heard)
			s.peer.hear(func(note) {}, time.Hour, func() {})
		}()
		a.job.vm.mu.Lock()
		a.job.vm.stopped = time.Now()
		a.job.vm.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
		if err := writeNote(there, note{Say: sayRuns}); err != nil {
			t.Fatal(err)
		}
		there.Close()
		<-heard
		time.Sleep(3 * time.Second)
		if !a.job.handedOver(t.Context(), s) {
			t.Fatal("it was not heard")
		}
		if d := a.job.Query().Stats.Downtime; d != 5*time.Millisecond {
			t.Errorf("the guest stood still for %v", d)
		}
		here.Close()
		a.halt()
	})
}

// Whatever happens in a switchover, the guest goes on on one host, and the pair is
// in step again in the end.
func TestSwitchoverThatFailsLeavesTheGuestRunning(t *testing.T) {
	const ms = time.Millisecond
	moments := require.Many([]time.Duration{101 * ms}, []time.Duration{ms, 50 * ms, 101 * ms}, []time.Duration{0, ms, 5 * ms, 50 * ms, 101 * ms, 150 * ms})
	for name, fault := range map[string]func(w *world, a, b *host){
		"the link breaks":      func(w *world, a, b *host) { w.f.part("a", "b", false) },
		"the link goes silent": func(w *world, a, b *host) { w.f.part("a", "b", true) },
		"no arbiter for a":     func(w *world, a, b *host) { a.noArbiter.Store(true) },
		"no arbiter for b":     func(w *world, a, b *host) { b.noArbiter.Store(true) },
		"no arbiter":           func(w *world, a, b *host) { a.noArbiter.Store(true); b.noArbiter.Store(true) },
		"the secondary dies":   func(w *world, a, b *host) { b.kill(true) },
	} {
		bubble(t, name, func(t *testing.T, w *world) {
			for _, after := range moments {
				a, b := w.protected()
				time.Sleep(250 * time.Millisecond)
				var group sync.WaitGroup
				group.Go(func() { a.job.Switchover(t.Context()) })
				time.Sleep(after)
				fault(w, a, b)
				time.Sleep(5 * time.Second)
				w.f.join("a", "b")
				a.noArbiter.Store(false)
				b.noArbiter.Store(false)
				if b.killed.Load() {
					b.bury()
					b = w.boot("b", false, nil)
				}
				group.Wait()
				for a.job.State() != Protected && b.job.State() != Protected {
					time.Sleep(time.Second)
					if r, _ := w.store.Load(t.Context()); name == "the secondary dies" && r.Holder == "b" {
						// It died as the holder: what it did is not known here.
						a.halt()
						b.halt()
						w.renew()
						break
					}
				}
				if a.ended() {
					continue
				}
				before := w.heard()
				time.Sleep(time.Second)
				if w.heard() == before {
					t.Errorf("after %v: the guest stands still", after)
				}
				a.halt()
				b.halt()
				w.clean()
				w.renew()
			}
		})
	}
}

// The link goes silent while the arbiter, which is slow, is being told that the guest
// is released. The primary asks for it again, the release is made after all, and the
// other host is faster.
func TestSwitchoverThatBreaksWhileTheGuestIsReleasedEndsOnTheOtherHost(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.term = 2 * time.Second // a question that takes longer is given up
		w.heeds = []string{}
		a, b := w.protected()
		time.Sleep(250 * time.Millisecond)
		a.on(SwitchingOver, func() { a.slow.Store(int64(1600 * time.Millisecond)) })
		var group sync.WaitGroup
		group.Go(func() { a.job.Switchover(t.Context()) })
		time.Sleep(300 * time.Millisecond)
		b.noArbiter.Store(true)
		w.f.part("a", "b", true)
		a.is(Asking)
		if r, _ := w.store.Load(t.Context()); !r.Held() {
			t.Fatal("released too early for this test")
		}
		for r, _ := w.store.Load(t.Context()); r.Held(); r, _ = w.store.Load(t.Context()) {
			time.Sleep(10 * time.Millisecond)
		}
		b.noArbiter.Store(false)
		b.is(Alone)
		a.is(Waiting)
		group.Wait()
		w.f.join("a", "b")
		a.slow.Store(0)
		b.is(Protected)
		b.halt()
		a.halt()
	})
}
