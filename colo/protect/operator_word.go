package protect

import (
	"context"
	"errors"

	"github.com/gocolo/lockstep/failover"
)

// A word holds the generations that an operator has given by Fenced and the arbiter has not
// heard of. The zero word has none. Those of other hosts, which died before they could tell the
// arbiter, come before those of this host.
type word struct {
	heard uint64 // the last generation of which the arbiter has heard, as far as this host knows
	own   uint64 // the first that this host has by an operator's word
	last  uint64 // the last, which it holds; 0: none
}

// after returns the word by which a host has the guest after a generation. heard is the last
// generation of which the arbiter has heard; 0: it has heard of that one. w is what the host had
// before.
func (w word) after(generation, heard uint64) word {
	switch {
	case w.last == generation && generation > 0:
		w.last++
		return w
	case heard == 0:
		heard = generation
	}
	return word{heard: heard, own: generation + 1, last: generation + 1}
}

// has reports whether a generation is one of which the arbiter has not heard.
func (w word) has(generation uint64) bool { return w.heard < generation && generation <= w.last }

// saysAfter moves the job's word on: an operator says that this host goes on after a session.
func (j *Job) saysAfter(s *session) {
	var heard uint64
	if s.primary == nil {
		heard = s.peer.heard
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.word = j.word.after(s.peer.generation, heard)
}

// untold reports whether this host holds a generation by an operator's word that the
// arbiter has not heard yet, and of which generation that has heard last; 0 if not.
func (j *Job) untold(generation uint64) (heard uint64, untold bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.word.has(generation) {
		return j.word.heard, true
	}
	return 0, false
}

// tellUpTo tells the arbiter, one after the other, of the generations up to one of which it has
// not heard. One that another host held may have been told of by that host, and the arbiter then
// refuses it. If it refuses one of this host's own, the operator's word was wrong.
func (j *Job) tellUpTo(ctx context.Context, upto uint64) error {
	if _, untold := j.untold(upto); !untold {
		return nil
	}
	select {
	case j.telling <- struct{}{}:
		defer func() { <-j.telling }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		j.mu.Lock()
		w := j.word
		j.mu.Unlock()
		if !w.has(upto) {
			return nil
		}
		generation, err := j.ask(ctx, w.heard, "", true)
		if err != nil && (w.heard+1 >= w.own || !errors.Is(err, failover.ErrRefused)) {
			return err
		}
		if err != nil {
			generation = w.heard + 1
		}
		j.hears(generation)
	}
}

// hears notes that the arbiter has heard of a generation.
func (j *Job) hears(generation uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.word.heard = max(j.word.heard, generation)
	if j.word.heard >= j.word.last {
		j.word = word{}
	}
}

// takeBack shuts the gate that an operator's word has opened for a generation, and reports
// whether it has. Where the arbiter has heard of it meanwhile nothing happens.
func (j *Job) takeBack(generation uint64) bool {
	j.mu.Lock()
	wrong := generation != 0 && generation == j.word.last
	if wrong {
		j.word = word{}
	}
	j.mu.Unlock()
	if wrong {
		j.keeper.Drop()
	}
	return wrong
}

// tellArbiter sees to it that the arbiter has heard of a generation that this host holds by an
// operator's word, if it does.
func (j *Job) tellArbiter(ctx context.Context, generation uint64) error {
	if _, untold := j.untold(generation); !untold {
		return nil
	}
	return j.order(ctx, doFenced, generation-1)
}

// acquireAfter asks for the guest after a generation that a primary had by an operator's word, if
// the primary died before the arbiter had heard of it. It first tells the arbiter of the
// generations of which that has not heard. The primary had this host's promise before it sent
// anything, so it does nothing for the guest any more, whatever the arbiter knows. The arbiter
// refuses what it has been told of meanwhile.
func (j *Job) acquireAfter(ctx context.Context, heard, generation uint64, word bool) (uint64, error) {
	for ; heard < generation; heard++ {
		if _, err := j.acquire(ctx, heard, word); err != nil && !errors.Is(err, failover.ErrRefused) {
			return 0, err
		}
	}
	return j.acquire(ctx, generation, word)
}
