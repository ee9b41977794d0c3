package protect

import (
	"fmt"
	"testing"
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
