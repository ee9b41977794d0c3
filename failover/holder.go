package failover

import (
	"math"
	"time"
)

// A Holder knows until when a host may act as the holder of its guest: let
// output leave, acknowledge writes. It is pure: it does no I/O and has no clock,
// times are told. All times must have monotonic readings of one process. It
// belongs to one goroutine. The zero Holder holds nothing.
//
// The rule: a grant, or a renewal, counts from before its request was sent, for
// its term, less a margin for clocks that run at different speeds. The arbiter
// counts from when it wrote the record, which is later, and for the whole term.
// So the holder has stopped before the arbiter can give the guest to another.
//
// A second rule keeps a pair going whose arbiter is out of reach: the follower
// may promise not to ask for the guest for some time, and that time counts like
// a grant ([Holder.Promised]). A promise is as good as a grant, because only
// the follower has a copy of this generation, so that nobody else can be
// granted the guest.
type Holder struct {
	generation uint64 // 0: holds nothing
	over       uint64 // every generation up to this one is over
	until      time.Time
	forever    bool          // the grant has no deadline
	fenced     bool          // an operator has said that no other host can act (Holder.Fenced)
	renewed    time.Time     // when the last grant's request was sent
	term       time.Duration // the term of that grant
}

// Margin is how much earlier than its term a grant ends for its holder: two per
// cent, and a millisecond.
func Margin(term time.Duration) time.Duration { return term/50 + time.Millisecond }

// MinTerm is the shortest term that leaves a holder time to renew.
const MinTerm = 20 * time.Millisecond

// Granted notes what came back of a request to acquire or renew. A grant of a
// generation that is over, or of an earlier one, changes nothing. Answers may
// come in any order: the latest end counts.
func (h *Holder) Granted(g Grant) {
	if g.Generation <= h.over || g.Generation < h.generation {
		return
	}
	if g.Generation > h.generation || h.fenced {
		*h = Holder{generation: g.Generation, over: h.over}
	}
	if g.Term == 0 {
		h.forever = true
		return
	}
	h.extend(g.Sent, g.Term)
	if h.renewed.Before(g.Sent) {
		h.renewed, h.term = g.Sent, g.Term
	}
}

// Promised notes that the follower of the present generation will not ask for
// the guest until term after it answered a request that left at sent. A promise
// for another generation changes nothing. A host that promises may itself become the holder
// later, so the first promise ends an operator's word that no other host can act as the
// holder ([Holder.Fenced]).
func (h *Holder) Promised(generation uint64, sent time.Time, term time.Duration) {
	if generation == h.generation && generation != 0 && term > 0 {
		if h.fenced {
			h.forever = false
		}
		h.extend(sent, term)
	}
}

func (h *Holder) extend(sent time.Time, term time.Duration) {
	if until := sent.Add(term - Margin(term)); until.After(h.until) {
		h.until = until
	}
}

// Fenced notes an operator's word that no other host can act as the holder: this
// one may, without an arbiter's grant, as the holder of a generation above all
// before. A grant of that generation or a later one takes the word's place.
func (h *Holder) Fenced(generation uint64) {
	if generation > h.over && generation > h.generation {
		*h = Holder{generation: generation, over: h.over, forever: true, fenced: true}
	}
}

// Over notes that a generation has ended here: the arbiter refused, or the host
// is about to release it. Nothing opens it again.
func (h *Holder) Over(generation uint64) {
	h.over = max(h.over, generation)
	if h.generation <= h.over {
		*h = Holder{over: h.over}
	}
}

// Generation returns the generation that is held, though its time may have run
// out; 0 if none is.
func (h *Holder) Generation() uint64 { return h.generation }

// Until returns the time from which on this host must not act as the holder. The
// zero time: it must not now. Where it may for as long as it lives, Endless says so of
// the time.
func (h *Holder) Until() time.Time {
	if h.forever {
		return forever()
	}
	return h.until
}

// Renewal returns when the next renewal should be sent: a third of the term
// after the last one that was granted was sent, so that one that is lost can be
// repeated. ok is false if there is nothing to renew.
func (h *Holder) Renewal() (at time.Time, ok bool) {
	if h.generation == 0 || h.forever || h.fenced {
		return time.Time{}, false
	}
	return h.renewed.Add(h.term / 3), true
}

// Endless reports whether t, which Until of a Holder or of a Keeper has returned, is no
// time at which something ends: a grant without a deadline, or an operator's word.
func Endless(t time.Time) bool { return t.Equal(forever()) }

// forever is later than any deadline.
func forever() time.Time { return time.Unix(math.MaxInt32*64, 0) }
