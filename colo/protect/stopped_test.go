package protect

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// A primary that was stopped, past its term, in the middle of a write goes on: the
// write waits at a gate that does not open any more, and its session, which has
// ended, for the vCPU that writes. The host follows the other one all the same.
func TestAPrimaryThatWasStoppedWhileItsGuestWritesFollows(t *testing.T) {
	for _, after := range []time.Duration{0, 2 * time.Millisecond, 7 * time.Millisecond} {
		bubble(t, fmt.Sprint(after), func(t *testing.T, w *world) {
			w.disks = true
			a, b := w.protected()
			time.Sleep(after)
			a.suspend()
			b.is(Alone)
			time.Sleep(5 * time.Second)
			a.resume()
			since := time.Now()
			b.is(Protected)
			a.is(Following)
			if took := time.Since(since); took > 5*time.Second { // of the bubble's clock
				t.Errorf("it took %v: %s", took, a.states())
			}
			b.halt()
			a.halt()
			w.clean()
		})
	}
}

// A host that took over could not write the checkpoint down to its disk, and goes on
// over what it holds in memory. What its guest writes is answered at one gate: where
// that is shut the host can leave, and a session can end.
func TestAHostThatGoesOnOverWhatItHoldsInMemoryLeavesAtAShutGate(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.disks, w.guest.Disk, w.guest.DiskEvery = true, diskSize, 2
		w.forget()
		a, b := w.protected()
		time.Sleep(300 * time.Millisecond)
		for hidden := int64(0); hidden == 0; hidden = b.disk.secondary.Info().HiddenBytes {
			time.Sleep(time.Millisecond) // a checkpoint has just left nothing of the disk to take back
			a.betweenPauses()            // and none is made before a dies
		}
		b.image.breaks(errWorn)
		a.kill(false)
		b.is(Alone)
		a.bury()
		if b.disk.promoted == nil {
			t.Fatal("the checkpoint has been written down")
		}
		b.image.breaks(nil)
		time.Sleep(300 * time.Millisecond)
		b.noArbiter.Store(true)
		time.Sleep(5 * time.Second)
		before := time.Now()
		b.halt()
		if took, most := time.Since(before), b.job.cfg.PeerTimeout; took >= most {
			t.Errorf("it took %v, as if the guest could not be paused", took)
		}
		if b.job.vm.isRunning() {
			t.Error("the guest runs on")
		}
	})
}

// A host whose secondary was the only one to keep its gate open, the arbiter being out of
// reach, has lost it while a write of its guest waits for its answer. The vCPU cannot be
// paused before the gate opens, and the gate opens when the arbiter has been asked.
func TestAGuestThatWaitsAtAShutGateDoesNotKeepItsHostFromAsking(t *testing.T) {
	for _, goesOn := range []string{"a", "b"} {
		bubble(t, goesOn, func(t *testing.T, w *world) {
			w.disks, w.guest.Disk, w.guest.DiskEvery = true, diskSize, 1
			w.forget()
			slow := func(c *Config) { c.Term, c.Beat, c.Lost = 400*time.Millisecond, time.Second, 20*time.Second }
			b := w.boot("b", false, slow)
			a := w.boot("a", true, slow)
			a.is(Protected)
			b.is(Following)
			a.noArbiter.Store(true)
			b.noArbiter.Store(goesOn == "a")
			time.Sleep(10 * time.Second)
			if !a.job.Gate().Open() || a.job.State() != Protected {
				t.Fatalf("%v: its secondary does not keep the gate open", a.job.State())
			}
			a.betweenPauses() // what is lost in a pause is lost by a guest that stands still, and waits for nothing
			lost := time.Now()
			w.f.part("a", "b", true)
			a.is(Asking)
			if took, most := time.Since(lost), a.job.cfg.Lost+a.job.cfg.Term; took > most {
				t.Errorf("it asks after %v, want %v at most; PeerTimeout is %v", took, most, a.job.cfg.PeerTimeout)
			}
			if !a.job.vm.isRunning() || !a.job.vm.Waits() {
				t.Fatal("its guest waits for no answer")
			}
			primary, secondary := a, b
			if goesOn == "b" {
				primary, secondary = b, a
				b.is(Alone)
				a.noArbiter.Store(false)
				a.is(Waiting)
				if a.job.vm.isRunning() || a.job.vm.Waits() {
					t.Error("the guest of the other host runs on here")
				}
			} else {
				a.noArbiter.Store(false)
				a.is(Alone)
			}
			before := w.heard()
			time.Sleep(time.Second)
			if w.heard() == before {
				t.Error("nothing leaves")
			}
			w.f.join("a", "b")
			b.noArbiter.Store(false)
			primary.is(Protected)
			secondary.is(Following)
			secondary.halt()
			primary.halt()
			w.clean()
		})
	}
}

// betweenPauses returns in a moment of the bubble in which the guest runs and nobody pauses it.
func (h *host) betweenPauses() {
	for {
		synctest.Wait()
		h.job.vm.mu.Lock()
		runs := !h.job.vm.stands && !h.job.vm.pausing
		h.job.vm.mu.Unlock()
		if runs {
			return
		}
		time.Sleep(time.Millisecond)
	}
}
