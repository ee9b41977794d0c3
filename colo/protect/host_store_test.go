package protect

import (
	"context"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
	"github.com/gocolo/lockstep/internal/wait"
)

// ofHost is the store as a host sees it.
type ofHost struct {
	*failovertest.Store
	h *host
}

func (s ofHost) Load(ctx context.Context) (failover.Record, error) {
	if s.h.w.asked != nil {
		s.h.w.asked(s.h.name, "load")
	}
	if err := s.reach(ctx); err != nil {
		return failover.Record{}, err
	}
	r, err := s.Store.Load(ctx)
	r = s.h.read(r)
	if s.h.deaf.Load() {
		return failover.Record{}, s.unheard(ctx)
	}
	s.h.pace()
	return r, err
}

func (s ofHost) Swap(ctx context.Context, old, next failover.Record) (bool, error) {
	if s.h.w.asked != nil {
		s.h.w.asked(s.h.name, "swap")
	}
	if err := s.reach(ctx); err != nil {
		return false, err
	}
	if late := s.h.late.Add(-1); late >= 0 { // it arrives when nobody waits for it any more
		d := time.Duration(late+1) * 137 * time.Millisecond
		time.AfterFunc(d, func() { s.swap(context.Background(), old, next) })
		return false, errNoRoute
	}
	ok, err := s.swap(ctx, old, next)
	if s.h.twice.Load() { // as does one that the network repeats
		time.AfterFunc(61*time.Millisecond, func() { s.swap(context.Background(), old, next) })
	}
	if s.h.deaf.Load() {
		return false, s.unheard(ctx) // it was done
	}
	if s.h.forget.Add(-1) >= 0 || s.h.killed.Load() {
		return false, errNoRoute // it was done, or not: who knows
	}
	s.h.trace("swap", int(next.Generation))
	s.h.pace()
	if late := s.h.tardy.Load(); late > 0 {
		wait.For(ctx, time.Duration(late))
	}
	return ok, err
}

// unheard waits for an answer that does not come.
func (s ofHost) unheard(ctx context.Context) error {
	wait.For(ctx, 300*time.Millisecond)
	return errNoRoute
}

// swap notes whom the record has given the guest to.
func (s ofHost) swap(ctx context.Context, old, next failover.Record) (bool, error) {
	ok, err := s.Store.Swap(ctx, s.h.written(old), s.h.written(next))
	if ok && next.Held() {
		s.h.has(next.Generation)
		if next.Token != old.Token && !s.h.killed.Load() {
			s.h.w.takes(s.h)
		}
	}
	return ok, err
}

// takes checks that nobody else acts for the guest when a host is granted it.
func (w *world) takes(h *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.hosts {
		if !w.outside && o != h && !o.killed.Load() && o.job.Gate().Open() && !w.t.Failed() {
			w.actsToo("%s was granted the guest while the gate of %s is open", h.name, o.name)
		}
	}
}

// hanging is longer than anybody asks an arbiter for, but for a claim, which may wait for ever.
const hanging = 5 * time.Second

func (s ofHost) reach(ctx context.Context) error {
	if s.h.w.spoilt.Load() {
		return errNoRecord
	}
	s.h.pace()
	if s.h.hangs.Load() > 0 && s.h.hangs.Add(-1) >= 0 {
		wait.For(ctx, hanging)
		return errNoRoute
	}
	time.Sleep(time.Duration(s.h.slow.Load()))
	if s.h.killed.Load() || s.h.noArbiter.Load() {
		return errNoRoute
	}
	return nil
}
