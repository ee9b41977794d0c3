package colo_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
)

// throttled is a VM whose guest does n rounds per step, less what it is throttled
// by.
type throttled struct {
	*colotest.VM
	fail error

	mu      sync.Mutex
	percent int
	asked   []int
}

func (v *throttled) now() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.percent
}

func (v *throttled) steps() []int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.asked)
}

func (v *throttled) Throttle(percent int) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked = append(v.asked, percent)
	if v.fail != nil && percent > 0 {
		return v.fail
	}
	v.percent = percent
	return nil
}

// busy returns a pair whose guest dirties, while a pass is sent, all that is sent, less
// the share that it is throttled by.
func busy(t *testing.T, change func(*colo.PrimaryConfig), fail error) (*pair, *throttled) {
	var x *pair
	vm := &throttled{fail: fail}
	x = newPair(t, options{
		guest: colotest.VMConfig{Pages: 512, Touch: 8},
		primary: func(c *colo.PrimaryConfig) {
			vm.VM = x0(c)
			c.VM, c.MaxDowntime, c.CheckpointDelay = vm, 1, time.Second
			if change != nil {
				change(c)
			}
		},
	})
	event.Subscribe(&x.p.bus, func(event.MigrationPass) {
		for n := 64 * (100 - vm.now()) / 100; n > 0; n-- {
			x.p.step(1)
		}
	})
	return x, vm
}

func x0(c *colo.PrimaryConfig) *colotest.VM { return c.VM.(*colotest.VM) }

func TestAGuestThatIsTooBusyIsThrottledUntilItIsProtected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, vm := busy(t, nil, nil)
		var said []int
		event.Subscribe(&x.p.bus, func(e event.Throttled) { said = append(said, e.Percent) })
		var during colo.Info
		event.Subscribe(&x.s.bus, func(c event.CheckpointCommit) {
			if c.Epoch == 0 {
				during = x.primary.Info()
			}
		})
		event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
			if c.Epoch == 1 {
				x.primary.End()
			}
		})
		x.start(t.Context())
		x.wait()
		if len(vm.asked) < 3 || !slices.Equal(vm.asked[:2], []int{20, 30}) || vm.asked[len(vm.asked)-1] != 0 || vm.percent != 0 {
			t.Errorf("it was throttled by %v", vm.asked)
		}
		if !slices.Equal(said, vm.asked) {
			t.Errorf("the events said %v, it was throttled by %v", said, vm.asked)
		}
		if during.Throttle == 0 || x.primary.Info().Throttle != 0 {
			t.Errorf("Info said %d before it was protected, %d after", during.Throttle, x.primary.Info().Throttle)
		}
		x.wantWhole(t)
		x.close()
	})
}

func TestThrottlingEndsWithAnAttemptThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, vm := busy(t, nil, nil)
		ctx, cancel := context.WithCancel(t.Context())
		event.Subscribe(&x.p.bus, func(event.Throttled) { cancel() })
		x.start(ctx)
		x.wait()
		if vm.percent != 0 || x.primary.Info().Throttle != 0 || !slices.Equal(vm.asked, []int{20, 0}) {
			t.Errorf("it was throttled by %v and is by %d", vm.asked, vm.percent)
		}
		x.wantWhole(t)
		x.close()
	})
}

func TestAGuestIsNotThrottledWhereItMayNotBeOrCannot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, fail := range []error{nil, errors.New("no such thing")} {
			x, vm := busy(t, func(c *colo.PrimaryConfig) {
				if fail == nil {
					c.ThrottleMax = -1
				}
			}, fail)
			event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
				if c.Epoch == 1 {
					x.primary.End()
				}
			})
			x.start(t.Context())
			x.wait()
			if x.p.err != nil || vm.percent != 0 || fail == nil && len(vm.asked) > 0 || fail != nil && !slices.Equal(vm.asked, []int{20, 0}) {
				t.Errorf("%v: Run %v, throttled by %v", fail, x.p.err, vm.asked)
			}
			x.wantWhole(t)
			x.close()
		}
	})
}

func TestCheckpointsThatTakeTooMuchOfTheTimeThrottle(t *testing.T) {
	if testing.Short() {
		t.Skip("short: half a minute of a busy guest")
	}
	synctest.Test(t, func(t *testing.T) {
		x, vm := busy(t, func(c *colo.PrimaryConfig) { c.MaxDowntime, c.ThrottleShare = 4*time.Second, 0.5 }, nil)
		var slow atomic.Int64
		cfg := x.s.disk
		cfg.Fail = func(c colotest.Call) error {
			if c.Name == "checkpoint" {
				time.Sleep(time.Duration(slow.Load()))
			}
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		x.start(ctx)
		time.Sleep(2500 * time.Millisecond)
		slow.Store(int64(800 * time.Millisecond))
		time.Sleep(4 * time.Second)
		slow.Store(0)
		high := vm.now()
		time.Sleep(20 * time.Second)
		if high < 40 || vm.now() != 0 {
			t.Errorf("it was throttled by up to %d and then %d, in steps %v", high, vm.now(), vm.steps())
		}
		cancel()
		x.wait()
		x.close()
	})
}
