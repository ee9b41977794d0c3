package protect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

// begin starts the guest, or leaves this host to wait for a primary, as the disks, the Config and
// the arbiter say.
func (j *Job) begin(ctx context.Context) error {
	after, own, err := held(j.cfg.Disks)
	h := j.cfg.Held
	if s := j.cfg.Saved; s != nil {
		h = s.Generation()
	}
	if err == nil && h > 0 {
		if after > 0 && after != h {
			err = fmt.Errorf("%w: the disks here are of generation %d, the guest of generation %d", errCopy, after, h)
		}
		after, own = h, false
	}
	if err != nil {
		// Disks that show different moments of the guest start no guest, whatever
		// was configured. A primary overwrites them when this host follows it.
		j.claiming(false)
		j.note(err)
		j.do(refused, err.Error())
		return nil
	}
	j.learn(after)
	if own {
		j.mu.Lock()
		j.wrote = after
		j.mu.Unlock()
	}
	j.claiming(j.cfg.Start || own && j.manual == nil)
	if !j.cfg.Start {
		why := "waits for a primary"
		if own && j.manual == nil {
			j.restart = after
			why = fmt.Sprintf("the disks here are the guest's own, of generation %d: waits for a primary, or to be granted the guest", after)
		}
		j.do(refused, why)
		return nil
	}
	// A copy that was here before this process may have promised, as a
	// secondary, not to claim the guest for a term.
	if after > 0 && j.manual == nil {
		if err := j.outwait(ctx, after); err != nil {
			return err
		}
	}
	generation, err := j.acquire(ctx, after, true)
	if own && j.manual == nil && errors.Is(err, failover.ErrRefused) && j.diedUnrecorded(ctx, after) {
		j.hold(after + 1)
		generation, err = j.acquire(ctx, after+1, true)
	}
	switch {
	case errors.Is(err, failover.ErrRefused):
		if after == 0 {
			err = fmt.Errorf("%w: the guest has run before, and nothing says that its copy is here, as disks that know their generation do, or Held", err)
		}
		j.claiming(false)
		j.note(err)
		j.do(refused, err.Error())
		return nil
	case err != nil:
		return err
	}
	defer j.claiming(false)
	return j.start(ctx, generation, "started")
}

// outwait waits until no primary of that generation acts for the guest any more because of a
// promise that this host made as a secondary, before its process ended: for a term, or until the
// arbiter says that the generation was given back or is over.
func (j *Job) outwait(ctx context.Context, generation uint64) error {
	term, cancel := context.WithTimeout(ctx, j.cfg.Term)
	defer cancel()
	r, err := j.cfg.Arbiter.Record(term)
	for ; err == nil; r, err = j.cfg.Arbiter.Watch(term, r) {
		if gaveBack(r, generation) || r.Generation > generation {
			return nil
		}
	}
	<-term.Done() // nobody could be asked, or the term is over
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// start lets the guest run when the arbiter has granted it to this host, where it
// has not run before.
func (j *Job) start(ctx context.Context, generation uint64, why string) error {
	j.learn(generation)
	j.hold(generation)
	j.vm.face(true)
	if err := j.vm.Resume(ctx); err != nil {
		return fmt.Errorf("protect: start the guest: %w", err)
	}
	j.cfg.publish(event.Resume{})
	err := j.do(granted, why)
	if ctx.Err() != nil { // the job is concluded, perhaps; its end has the guest paused
		return context.Cause(ctx)
	}
	return err
}

// startsNothing tells why a host that was to start the guest from its disks waits for a primary
// after all.
func (j *Job) startsNothing(why error) {
	j.note(why)
	j.ownLog().Info("the disks here start no guest", "side", event.ModeNone.String(), "checkpoint", uint64(0), "error", why)
}

// await waits until a primary has made all its connections, for that time, or without a limit if
// it is 0. It returns no peer and no error if none has come.
func (j *Job) await(ctx context.Context, limit time.Duration) (*peer, error) {
	act, end := j.while(ctx, Waiting)
	defer end()
	var late <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case p := <-j.joined:
		return p.peer, nil
	case <-late:
		return nil, nil
	case <-act.Done():
		return nil, context.Cause(act)
	}
}
