package protect

import (
	"context"
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/failover"
)

// A host records each generation on its disks when the arbiter has granted it. One that dies in
// between leaves disks of the generation before, and a record that refuses the other host's copy as
// well. Yet the record says whose the granted generation was: where that was this host's, and nobody
// has had one since, no guest has said or written anything in it but over the disks here.

// wasOurs reports whether a record proves that the generation after that of the disks here, which
// are the guest's own, was this host's, and is the last. The host is known by its name: the two hosts
// of a guest have different ones, or they refuse each other. A grant that was given back proves nothing:
// a guest may have been saved in it that goes on from its file. Nor do disks prove anything that are
// two generations old: another host may have had the first of the two.
//
// What is proved is that no copy is newer. That the process which was granted the generation does not
// act any more is the arbiter's to say, as ever: a claim after it waits for the end of its term.
func (j *Job) wasOurs(r failover.Record, disks uint64) bool {
	return r.Held() && r.Generation == disks+1 && r.Holder == j.cfg.Host
}

// diedUnrecorded asks the arbiter whether wasOurs holds for the disks here.
func (j *Job) diedUnrecorded(ctx context.Context, disks uint64) bool {
	ask, cancel := context.WithTimeout(ctx, j.cfg.Term)
	defer cancel()
	r, err := j.cfg.Arbiter.Record(ask)
	return err == nil && j.wasOurs(r, disks)
}

// awaitOrRestart waits for a primary as await does, and meanwhile, if the disks here are the
// guest's own, claims the guest: as the first to come back after both hosts were down, this one
// starts it. It returns no peer and no error when it has started the guest.
//
// The claim comes after a host whose guest is alive has had its chance: one that
// follows, and has lost this host, claims it without waiting, and is preferred. It is
// after the generation of the disks, or after the next one if that was this host's
// own too (wasOurs), which is recorded on the disks before more is asked for.
func (j *Job) awaitOrRestart(ctx context.Context) (*peer, error) {
	disks := j.restart
	if disks == 0 {
		return j.await(ctx, 0)
	}
	after := disks
	j.restart = 0
	defer j.claiming(false)
	for wait := j.cfg.Term + j.cfg.Lost; ; wait = j.cfg.Term {
		// The record is looked at first: a host that has come back to a guest that
		// runs elsewhere claims nothing.
		ask, cancel := context.WithTimeout(ctx, j.cfg.Term)
		r, err := j.cfg.Arbiter.Record(ask)
		cancel()
		if err == nil && r.Token != j.token && j.wasOurs(r, disks) {
			after = disks + 1
		}
		// Where it has granted the guest to this process, and the answer was lost, it
		// is asked again, and says the same.
		own := r.Generation == after+1 && r.Token == j.token
		if err == nil && r.Generation > after && !own {
			j.startsNothing(fmt.Errorf("protect: the disks here are of generation %d, the present one is %d", disks, r.Generation))
			return j.await(ctx, 0)
		}
		if p, err := j.await(ctx, wait); p != nil || err != nil {
			return p, err
		}
		if after > disks {
			j.hold(after)
		}
		ask, cancel = context.WithTimeout(ctx, j.cfg.Term)
		generation, err := j.acquire(ask, after, false)
		cancel()
		switch {
		case err == nil:
			j.refuseAll()
			err := j.start(ctx, generation, fmt.Sprintf("started from disks of generation %d", disks))
			j.refuseAll() // those that have come meanwhile
			return nil, err
		case errors.Is(err, failover.ErrRefused):
			j.startsNothing(err)
			return j.await(ctx, 0)
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
		j.note(fmt.Errorf("protect: claim the guest of generation %d: %w", after, err))
	}
}
