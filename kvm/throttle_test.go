//go:build linux && amd64

package kvm

import (
	"testing"
	"testing/synctest"
	"time"
)

// sliced is a vCPU that is in the guest whenever it may be, in virtual time.
type sliced struct {
	*VCPU
	late   time.Duration // after it is kicked it is still in the guest for that long
	inside time.Duration // time in the guest
}

func newSliced() *sliced {
	vm := &VM{}
	v := &VCPU{vm: vm, data: new(RunData), inRun: true}
	vm.vcpus = []*VCPU{v}
	return &sliced{VCPU: v}
}

// ends stops the timers of the vCPU.
func (s *sliced) ends() {
	s.vm.mu.Lock()
	defer s.vm.mu.Unlock()
	s.slice.stop()
}

// look is how long the vCPU waits before it looks again whether it is kicked, or rests.
const look = 250 * time.Microsecond

// live does for some time what Run does: it enters the guest, leaves it when kicked, and rests.
func (s *sliced) live(d time.Duration) {
	vm := s.vm
	for end := time.Now().Add(d); time.Now().Before(end); {
		vm.mu.Lock()
		s.slice.left()
		rests := s.rests()
		if !rests {
			s.begins()
			s.kicked.Store(false)
		}
		vm.mu.Unlock()
		if rests {
			time.Sleep(look)
			continue
		}
		since := time.Now()
		for !s.kicked.Load() && time.Now().Before(end) {
			time.Sleep(look)
		}
		if s.kicked.Load() {
			time.Sleep(s.late)
		}
		s.inside += time.Since(since)
	}
}

// share lets the vCPU live for a time, and returns which part of it was spent in the guest.
func (s *sliced) share(d time.Duration) float64 {
	s.inside = 0
	begun := time.Now()
	s.live(d)
	return float64(s.inside) / float64(time.Since(begun))
}

// A vCPU that is throttled is in the guest for the rest of the share, also where it leaves the guest
// late: what it had too much it stays out for. One that is not throttled, or not any more, is
// there all the time.
func TestAThrottledVCPUIsInTheGuestForWhatItsShareLeaves(t *testing.T) {
	for _, late := range []time.Duration{0, time.Millisecond, 8 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			s := newSliced()
			s.late = late
			defer s.ends()
			if got := s.share(time.Second); got != 1 {
				t.Errorf("it is not throttled, and in the guest for %.3f of the time", got)
			}
			for _, percent := range []int{50, 90, 20, 80} {
				if err := s.vm.Throttle(percent); err != nil {
					t.Fatal(err)
				}
				s.live(200 * time.Millisecond) // the rest of the slice before
				want := 1 - float64(percent)/100
				if got := s.share(4 * time.Second); got < want-0.02 || got > want+0.02 {
					t.Errorf("throttled by %d %%, leaving %v late: in the guest for %.3f of the time", percent, late, got)
				}
			}
			if err := s.vm.Throttle(0); err != nil {
				t.Fatal(err)
			}
			if got := s.share(time.Second); got != 1 {
				t.Errorf("it is not throttled any more, and in the guest for %.3f of the time", got)
			}
		})
	}
}

// A share that is chosen when a slice is over, and the vCPU has not noticed, as in a pause, holds
// from the next slice on.
func TestAShareThatIsChosenAtTheEndOfASliceHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSliced()
		defer s.ends()
		if err := s.vm.Throttle(50); err != nil {
			t.Fatal(err)
		}
		s.live(look)
		time.Sleep(sliceLength) // in a pause
		if err := s.vm.Throttle(90); err != nil {
			t.Fatal(err)
		}
		if got := s.share(time.Second); got > 0.12 {
			t.Errorf("throttled by 90 %%, and in the guest for %.3f of the time", got)
		}
	})
}

// However late a vCPU leaves the guest, it does not stay out for longer than a guest can bear, and
// a rest ends where it is throttled by less.
func TestARestOfAThrottledVCPUHasAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSliced()
		defer s.ends()
		if err := s.vm.Throttle(99); err != nil {
			t.Fatal(err)
		}
		rest := func() (d time.Duration) {
			s.late = time.Second
			s.live(sliceLength) // it leaves the guest when that is long over
			s.vm.mu.Lock()
			defer s.vm.mu.Unlock()
			s.slice.left()
			if !s.rests() {
				t.Fatal("it does not rest")
			}
			return time.Until(s.slice.until)
		}
		if d := rest(); d != longestRest {
			t.Errorf("it rests for %v, want %v", d, longestRest)
		}
		if err := s.vm.Throttle(50); err != nil {
			t.Fatal(err)
		}
		s.vm.mu.Lock()
		defer s.vm.mu.Unlock()
		if s.rests() {
			t.Error("it still rests by the share that it had before")
		}
	})
}
