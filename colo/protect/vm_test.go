package protect

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
)

// still is a Guest of which only the pauses work.
type still struct{ Guest }

func (still) Pause(context.Context) error  { return nil }
func (still) Resume(context.Context) error { return nil }

// able is one that can be throttled, and measures its pauses.
type able struct {
	still
	percent int
}

func (a *able) Throttle(percent int) error { a.percent = percent; return nil }
func (a *able) Stopped() time.Duration     { return 7 * time.Millisecond }

func TestASessionReachesWhatTheGuestCanBesides(t *testing.T) {
	guest := new(able)
	v := newVM(guest, nil)
	var (
		throttler colo.Throttler = v
		stopper   colo.Stopper   = v
	)
	if err := throttler.Throttle(30); err != nil || guest.percent != 30 {
		t.Errorf("throttled by %d, error %v", guest.percent, err)
	}
	v.keep(func() {})
	if err := v.Resume(t.Context()); err != nil || stopper.Stopped() != 0 {
		t.Errorf("a guest that was left standing has ended a pause of %v; error %v", stopper.Stopped(), err)
	}
	v.keep(nil)
	if err := v.Resume(t.Context()); err != nil || stopper.Stopped() != 7*time.Millisecond {
		t.Errorf("stood still for %v, error %v", stopper.Stopped(), err)
	}

	v = newVM(still{}, nil)
	if err := v.Throttle(30); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("throttled a guest that cannot be: %v", err)
	}
	if err := v.Resume(t.Context()); err != nil || v.Stopped() != 0 {
		t.Errorf("stood still for %v, as nobody has measured; error %v", v.Stopped(), err)
	}
}
