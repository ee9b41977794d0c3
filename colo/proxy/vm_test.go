package proxy_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/proxy"
)

var (
	_ colo.Throttler = (*proxy.Primary)(nil)
	_ colo.Throttler = (*proxy.Secondary)(nil)
	_ colo.Stopper   = (*proxy.Primary)(nil)
	_ colo.Stopper   = (*proxy.Secondary)(nil)
)

// plain is a VM with the methods that a VM must have, and no other.
type plain struct{}

func (plain) Pause(context.Context) error  { return nil }
func (plain) Resume(context.Context) error { return nil }

// able is a VM that can be throttled, as long as fail is nil, and measures its
// pauses.
type able struct {
	plain
	percent int
	fail    error
}

func (a *able) Throttle(percent int) error { a.percent = percent; return a.fail }
func (a *able) Stopped() time.Duration     { return 7 * time.Millisecond }

// fronts returns the proxies of two NICs of a VM, on each side: the second has the first
// for its VM.
func fronts(vm proxy.VM) map[string]proxy.VM {
	deliver := func([]byte) error { return nil }
	p := proxy.NewPrimary(proxy.PrimaryConfig{VM: vm, Deliver: deliver})
	s := proxy.NewSecondary(proxy.SecondaryConfig{VM: vm, Deliver: deliver})
	return map[string]proxy.VM{
		"a primary's": p, "a secondary's": s,
		"a primary's second":   proxy.NewPrimary(proxy.PrimaryConfig{VM: p, Deliver: deliver}),
		"a secondary's second": proxy.NewSecondary(proxy.SecondaryConfig{VM: s, Deliver: deliver}),
	}
}

func TestWhatTheVMCanBesidesIsNotHiddenByItsProxies(t *testing.T) {
	for name, front := range fronts(new(able)) {
		vm := new(able)
		front = fronts(vm)[name]
		if err := front.(colo.Throttler).Throttle(30); err != nil || vm.percent != 30 {
			t.Errorf("%s: throttled by %d, error %v", name, vm.percent, err)
		}
		vm.fail = errors.New("no")
		if err := front.(colo.Throttler).Throttle(40); !errors.Is(err, vm.fail) {
			t.Errorf("%s: error %v, want the VM's", name, err)
		}
		if d := front.(colo.Stopper).Stopped(); d != 7*time.Millisecond {
			t.Errorf("%s: stood still for %v", name, d)
		}
	}
}

func TestAProxyOfAVMThatCannotSaysSo(t *testing.T) {
	for name, front := range fronts(plain{}) {
		if err := front.(colo.Throttler).Throttle(30); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: throttled a VM that cannot be: %v", name, err)
		}
		if d := front.(colo.Stopper).Stopped(); d != 0 {
			t.Errorf("%s: stood still for %v, as nobody has measured", name, d)
		}
	}
}
