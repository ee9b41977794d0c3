package protect

import (
	"context"
	"fmt"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/wait"
)

// watch sees the primary's renewals, so that a claim need not wait for a whole
// term from when it is made, and its release, after which nothing that was promised to it
// is of use any more. Where the arbiter does not know of the primary within a term, the
// other host may have another one, which is told once a session.
func (j *Job) watch(ctx context.Context, s *session) {
	if j.manual != nil {
		return
	}
	var seen failover.Record
	for sure := false; ctx.Err() == nil; {
		ask, cancel := ctx, context.CancelFunc(func() {})
		if !sure {
			ask, cancel = context.WithTimeout(ctx, j.cfg.Term)
		}
		r, err := j.cfg.Arbiter.Watch(ask, seen)
		over := ask.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err == nil:
			seen, sure = r, sure || knows(r, s.peer)
			if gaveBack(r, s.peer.generation) {
				s.peer.set(func() { s.peer.gaveBack = true })
			}
		case over:
			sure = j.asksTheSame(ctx, s)
		case wait.For(ctx, maxRedial) != nil:
			return
		}
	}
}

// knows reports whether an arbiter has granted the guest to the primary, or to whoever came
// after it.
func knows(r failover.Record, primary *peer) bool {
	return r.Generation > primary.generation || r.Generation == primary.generation && (r.Holder == primary.host || r.Holder == "")
}

// asksTheSame warns if the primary does not seem to ask the arbiter that this host asks, and
// reports whether that is known now, one way or the other. Two hosts with an arbiter each, such
// as a directory that is not the same one on both, would both go on when they are parted, as each
// is granted the guest. It is no proof: a primary to which a person has given the guest while it
// did not reach the arbiter acts in a generation of which that has not heard yet. So the pair
// goes on. An arbiter that cannot say, as one of a host's own, returns an error, and nothing is
// told.
func (j *Job) asksTheSame(ctx context.Context, s *session) (known bool) {
	ask, cancel := context.WithTimeout(ctx, j.cfg.Term)
	defer cancel()
	r, err := j.cfg.Arbiter.Record(ask)
	if err != nil {
		return false
	}
	if !knows(r, s.peer) {
		err := fmt.Errorf("protect: the arbiter of this host knows of generation %d, held by %q, and host %s acts in generation %d: if the two hosts do not ask the same arbiter, both go on when they are parted",
			r.Generation, r.Holder, s.peer.host, s.peer.generation)
		j.note(err)
		j.pairLog().Warn("the arbiter does not know of the other host's grant", "error", err, "peer", s.peer.host)
	}
	return true
}
