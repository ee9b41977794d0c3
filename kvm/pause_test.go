//go:build linux && amd64

package kvm_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/kvm"
)

// counting returns a running machine.
func counting(t testing.TB, vcpus int) *machine {
	m := newMachine(t, guest.Params{VCPUs: vcpus, Pages: 8, Touch: 1}, kvm.Config{})
	m.load()
	m.start()
	m.await(5)
	return m
}

// rounds returns how far the first vCPU is.
func (m *machine) rounds() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last(0)
}

func (m *machine) wantStill(why string) {
	m.t.Helper()
	before := m.rounds()
	time.Sleep(5 * time.Millisecond)
	if now := m.rounds(); now != before {
		m.t.Fatalf("%s: the guest runs", why)
	}
}

func TestPausesNest(t *testing.T) {
	m := counting(t, 2)
	for range 3 {
		m.pause()
	}
	for range 2 {
		m.resume()
		m.wantStill("a pause is left")
	}
	m.resume()
	m.await(m.rounds() + 3)
	// A Resume without a pause does not make up for a later pause.
	m.resume()
	m.pause()
	m.wantStill("paused once more")
	m.resume()
	m.await(m.rounds() + 3)
	m.halt()
}

func TestAPauseWhoseContextEndsUndoesNoOther(t *testing.T) {
	m := counting(t, 1)
	m.pause()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := m.Pause(ended); err != nil { // there is nothing to wait for
		t.Fatal(err)
	}
	m.resume()
	m.wantStill("one pause is left")
	m.resume()
	m.await(m.rounds() + 3)
	m.halt()
}

// inAHandler returns a machine whose vCPU stands in a handler until release is closed. ran
// gets what its Run returns, which stop ends.
func inAHandler(t *testing.T) (m *machine, release chan struct{}, ran chan error, stop context.CancelFunc) {
	t.Helper()
	held := make(chan struct{})
	release, ran = make(chan struct{}), make(chan error, 1)
	m = newMachine(t, guest.Params{Pages: 8, Touch: 1}, kvm.Config{})
	m.load()
	v := m.VCPUs()[0]
	ctx, stop := context.WithCancel(context.Background())
	first := true
	go func() {
		ran <- v.Run(ctx, v.Dispatch(kvm.Handler{IO: func(x *kvm.IO) error {
			if first {
				first = false
				close(held)
				<-release
			}
			return m.io(0, x)
		}}))
	}()
	<-held
	return m, release, ran, stop
}

// Two pauses wait for a handler; one gives up, and one is called off.
func TestAPauseThatGivesUpLeavesTheOthers(t *testing.T) {
	m, release, ran, stop := inAHandler(t)
	patient := make(chan error, 1)
	go func() { patient <- m.Pause(context.Background()) }()
	short, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := m.Pause(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Error("a pause that waits too long:", err)
	}
	close(release)
	if err := <-patient; err != nil {
		t.Error("the other pause:", err)
	}
	m.wantStill("the other pause holds")
	m.resume()
	m.await(3)
	stop()
	<-ran
}

func TestStoppedIsTheTimeThatTheGuestLost(t *testing.T) {
	for vcpus := 1; vcpus <= 2; vcpus++ {
		m := counting(t, vcpus)
		if d := m.Stopped(); d != 0 {
			t.Errorf("%v before the first pause", d)
		}
		for _, still := range []time.Duration{20 * time.Millisecond, 2 * time.Millisecond, 0} {
			begun := time.Now()
			m.pause()
			paused := time.Now()
			time.Sleep(still)
			lasted := time.Since(paused)
			last := m.Stopped()
			m.resume()
			m.mu.Lock()
			next := m.last(0)
			for i := range m.frames {
				next = max(next, m.last(i))
			}
			next += 3
			m.mu.Unlock()
			m.await(next)
			all := time.Since(begun)
			if d := m.Stopped(); d < lasted || d > all {
				t.Errorf("%d vCPUs: stopped for %v, paused for %v within %v (before: %v)", vcpus, d, lasted, all, last)
			}
		}
		m.halt()
	}
}

// Throttled by a share, a vCPU's thread has no more of a CPU than the rest, now and then at least:
// a busy host may let it leave the guest, and rest, too late (in virtual time:
// TestAThrottledVCPUIsInTheGuestForWhatItsShareLeaves). The guest goes on in any case.
func TestThrottleKeepsTheGuestOutForAShare(t *testing.T) {
	m := newMachine(t, guest.Params{Pages: 8, Touch: 1}, kvm.Config{})
	m.load()
	var used atomic.Int64 // by the vCPU's thread, ns
	ctx, stop := context.WithCancel(context.Background())
	var group sync.WaitGroup
	run := func() {
		v := m.VCPUs()[0]
		group.Go(func() {
			v.Run(ctx, v.Dispatch(kvm.Handler{IO: func(x *kvm.IO) error {
				var ts unix.Timespec
				unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
				used.Store(ts.Nano())
				return m.io(0, x)
			}}))
		})
	}
	run()
	m.await(5)
	throttled := func(why string) {
		t.Helper()
		for range 100 {
			m.await(m.rounds() + 1) // it goes on
			before, begun := used.Load(), time.Now()
			time.Sleep(50 * time.Millisecond)
			if float64(used.Load()-before) < 0.2*float64(time.Since(begun)) {
				return
			}
		}
		t.Errorf("%s: throttled by 90 %%, the vCPU's thread always has more than 20 %% of a CPU", why)
	}
	if err := m.Throttle(90); err != nil {
		t.Fatal(err)
	}
	throttled("at first")
	// Pauses do not wait for a rest, which goes on afterwards.
	for range 20 {
		m.pause()
		m.wantStill("throttled and paused")
		m.resume()
	}
	throttled("after pauses")
	// Chosen while it is paused, and ended so.
	m.pause()
	if err := m.Throttle(0); err != nil {
		t.Fatal(err)
	}
	m.wantStill("not throttled, but paused")
	m.resume()
	m.await(m.rounds() + 20)
	for _, percent := range []int{-1, 100} {
		if m.Throttle(percent) == nil {
			t.Errorf("%d %% was taken", percent)
		}
	}
	// A vCPU that rests is not waited for, and one that begins is throttled as well.
	if err := m.Throttle(90); err != nil {
		t.Fatal(err)
	}
	stop()
	group.Wait()
	ctx, stop = context.WithCancel(context.Background())
	run()
	throttled("run again")
	stop()
	group.Wait()
}

// A pause that is called off while it waits says so, and the guest goes on.
func TestAPauseThatIsCalledOffSaysSo(t *testing.T) {
	m, release, ran, stop := inAHandler(t)
	paused := make(chan error, 1)
	go func() { paused <- m.Pause(context.Background()) }()
	for called := false; !called; {
		m.resume() // nothing, until the pause has begun
		select {
		case err := <-paused:
			if !errors.Is(err, kvm.ErrResumed) {
				t.Error(err)
			}
			called = true
		case <-time.After(time.Millisecond):
		}
	}
	close(release)
	m.await(3)
	stop()
	<-ran
}

// Several pause and resume at once: each of them sees the guest stand still, and when
// all are done it runs.
func TestManyPauseAtOnce(t *testing.T) {
	m := counting(t, 2)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 100 {
				if err := m.Pause(context.Background()); err != nil {
					t.Error(err)
					return
				}
				before := m.rounds()
				time.Sleep(50 * time.Microsecond)
				if m.rounds() != before {
					t.Error("the guest runs though it is paused")
				}
				m.Resume(context.Background())
			}
		})
	}
	group.Wait()
	m.await(m.rounds() + 3)
	m.halt()
}
