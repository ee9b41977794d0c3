package colo_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
)

// running runs the guest until stop.
func (h *host) running() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.guest.Run(ctx); !errors.Is(err, context.Canceled) {
			h.t.Errorf("%s: %v", h.name, err)
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// startUntil starts both sessions and waits until n checkpoints have been begun.
func (x *pair) startUntil(t *testing.T, n uint64) {
	begun := make(chan struct{})
	event.Subscribe(&x.p.bus, func(c event.CheckpointStart) {
		if c.Epoch == n {
			close(begun)
		}
	})
	x.start(t.Context())
	<-begun
}

// TestFailoverAtAnyTimeIsARequest orders a failover of a healthy, busy pair from
// another goroutine, at any time at all.
func TestFailoverAtAnyTimeIsARequest(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	cfg := colotest.VMConfig{VCPUs: 2, Pages: 16, Touch: 4, TSCPerMille: 300, Interval: 20 * time.Microsecond}
	took := map[event.Mode]int{}
	for range 120/sparse() + 1 {
		mode := event.ModePrimary
		if r.IntN(2) == 0 {
			mode = event.ModeSecondary
		}
		late := r.IntN(2) == 0
		x := newPair(t, options{guest: cfg, primary: func(c *colo.PrimaryConfig) { c.LateResume = late }})
		refuse(other(mode))(x)
		stopP, stopS := x.p.running(), x.s.running()
		x.startUntil(t, uint64(r.IntN(6)))
		time.Sleep(time.Duration(r.Int64N(int64(time.Millisecond))))
		h, run := x.side(mode)
		err := run.Failover()
		x.wait()
		stopP()
		stopS()
		switch {
		case err != nil:
			t.Errorf("Failover: %v", err)
		case mode == event.ModeSecondary && len(h.exits()) == 0:
			if !errors.Is(h.err, colo.ErrFailover) { // before it had a guest
				t.Errorf("the %s: %v", mode, h.err)
			}
		default:
			took[mode]++
			if h.err != nil {
				t.Errorf("the %s was ordered to go on and did not: %v", mode, h.err)
			}
			if d := cmp.Diff([]event.COLOExit{{Mode: mode, Reason: event.ExitRequest}}, h.exits()); d != "" {
				t.Errorf("COLO_EXIT (-want +got):\n%s", d)
			}
			if got := x.wantWhole(t); got != h {
				t.Errorf("the %s runs", got.name)
			}
		}
		x.close()
		if t.Failed() {
			break
		}
	}
	t.Logf("took over: %v", took)
}

// TestLinkBreaksAtAnyTimeUnderLoad breaks the connection of a busy pair.
func TestLinkBreaksAtAnyTimeUnderLoad(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	cfg := colotest.VMConfig{VCPUs: 2, Pages: 64, Touch: 8, TSCPerMille: 300, Interval: 10 * time.Microsecond}
	took := map[string]int{}
	for i := range 60/sparse() + 1 {
		m := manners[i%len(manners)]
		x := newPair(t, options{guest: cfg, primary: m.apply, ps: colotest.Flow{Drop: i%2 == 0}})
		if r.IntN(2) == 0 {
			refuse(event.ModePrimary)(x)
			deny := x.witness.Deny
			x.witness.Deny = func(c colo.Claim) error {
				if len(x.s.net.Calls()) == 0 {
					return nil // the secondary has no guest
				}
				return deny(c)
			}
		}
		stopP, stopS := x.p.running(), x.s.running()
		x.startUntil(t, uint64(r.IntN(6)))
		time.Sleep(time.Duration(r.Int64N(int64(time.Millisecond))))
		x.pc.Break()
		x.wait()
		stopP()
		stopS()
		took[x.wantWhole(t).name]++
		if t.Failed() {
			t.Fatalf("%s: primary %v, secondary %v", m.name, x.p.err, x.s.err)
		}
		x.close()
	}
	t.Logf("took over: %v", took)
}
