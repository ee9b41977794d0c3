package protect

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

// A toldArbiter is the arbiter of a job, which tells, in an event and in Info.LastError, when the
// arbiter is out of reach and when it answers again. An answer to a session's question is
// reported by the session itself.
type toldArbiter struct {
	failover.Arbiter
	j    *Job
	away atomic.Bool
}

func (a *toldArbiter) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	said := make(chan struct{})
	late := a.j.cfg.PeerTimeout + a.j.cfg.Term
	timer := time.AfterFunc(late, func() { // joined below
		defer close(said)
		a.j.note(fmt.Errorf("protect: the arbiter has granted and refused nothing for %v: it does not answer, or another host has the guest", late))
	})
	g, err := a.Arbiter.Acquire(ctx, c)
	if !timer.Stop() {
		<-said
	}
	s := a.j.session()
	switch {
	case s == nil:
		a.heard(ctx, event.ModeNone, err)
	case err == nil && a.j.State().runs(): // it was told of an operator's word, and not asked by the session
		a.heard(ctx, s.mode(), nil)
	case err == nil:
		a.away.Store(false)
	case ctx.Err() == nil: // the keeper asks again, for as long as the session waits
		a.heard(ctx, s.mode(), err)
	}
	return g, err
}

func (a *toldArbiter) Renew(ctx context.Context, g failover.Grant, note string) (failover.Grant, error) {
	next, err := a.Arbiter.Renew(ctx, g, note)
	a.heard(ctx, event.ModePrimary, err)
	return next, err
}

// heard takes the outcome of a question, and tells of it if the arbiter was within reach before
// and is not now, or the other way round.
func (a *toldArbiter) heard(ctx context.Context, mode event.Mode, err error) {
	e := event.Arbitration{Mode: mode, Answer: event.ArbiterGranted}
	if s := a.j.session(); s != nil {
		e.Epoch, _ = s.committed()
	}
	switch {
	case errors.Is(err, failover.ErrRefused), errors.Is(err, failover.ErrClaim):
		a.away.Store(false) // whoever has asked tells of it
		return
	case errors.Is(err, failover.ErrNotRenewed): // it has answered, and says nothing that was not known
		a.away.Store(false)
		return
	case err == nil:
		if !a.away.Swap(false) {
			return
		}
	case errors.Is(ctx.Err(), context.Canceled) || a.away.Swap(true):
		return // nobody waits for the answer, or it was told
	default:
		e.Answer, e.Error = event.ArbiterUnreachable, err.Error()
		a.j.note(fmt.Errorf("protect: the arbiter does not answer: %w", err))
	}
	a.j.say(e)
}
