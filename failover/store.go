package failover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
)

// A Store keeps the record of one guest and replaces it by compare and swap.
// That is all that an arbiter needs of a place that both hosts reach: with it,
// [StoreArbiter] is an Arbiter. Its methods may be called from any goroutine.
//
// failovertest.TestStore checks an implementation.
type Store interface {
	// Load returns the record, the zero Record if there never was one. It
	// must contain every swap that was answered before the call.
	Load(ctx context.Context) (Record, error)
	// Swap replaces old by next in one indivisible step that is on stable
	// storage when it returns true. next.Writes is old.Writes + 1. false: the record is not old, and nothing
	// was changed. After an error the step may have been made or not.
	Swap(ctx context.Context, old, next Record) (swapped bool, err error)
	// Changed waits until the record is not seen, and returns it.
	Changed(ctx context.Context, seen Record) (Record, error)
}

// A StoreArbiter is the Arbiter over a Store. The store needs no clock: a host
// that claims the guest watches the record, and when its holder has not renewed
// it for the whole term, by the claimant's own clock, the term has run out. The
// claim is then a swap from the very record that was watched, so a renewal that
// comes before it wins: the present holder is preferred.
//
// A claimant that has watched before it claims (Watch) need not wait for the
// whole term again.
//
// One Load or Swap of the store is waited for as long as the term of the claim or grant, and where
// there is none as long as StoreTimeout: a question that was lost is an error, and whoever has
// asked asks again. A claim waits longer than that for another host's grant, but not for the store.
//
// What was read or written last is tried first, where a guest is released, or claimed after somebody
// else has released it or has given it up for the claimant: a guest that is handed over stands still
// meanwhile, and the store is asked once, and not twice.
//
// A swap that was made, and whose answer was lost, counts when the record is read the
// next time: from when the swap was sent, like any other.
type StoreArbiter struct {
	store Store

	mu      sync.Mutex
	seen    Record    // the newest record that was read
	at      time.Time // when it had been seen; zero: never
	unsure  bool      // a swap has not been answered since, so that the record may be another
	unheard unheard
}

var _ HandoverArbiter = (*StoreArbiter)(nil)

// NewStoreArbiter returns the arbiter over a store.
func NewStoreArbiter(store Store) *StoreArbiter { return &StoreArbiter{store: store} }

// StoreTimeout bounds one Load or Swap for which no term says how late it may be.
const StoreTimeout = 10 * time.Second

// ErrUnanswered means that a Store has not answered one Load or Swap in time. What was asked for may
// have happened or not.
var ErrUnanswered = errors.New("failover: the store has not answered")

// within calls f, one operation of a store, with a context that ends when that is too late for a
// grant of the term; 0: there is none.
func within(ctx context.Context, term time.Duration, f func(context.Context) error) error {
	if term <= 0 {
		term = StoreTimeout
	}
	if at, ok := ctx.Deadline(); ok && time.Until(at) <= term {
		return f(ctx) // whoever asks gives up no later
	}
	one, cancel := context.WithTimeoutCause(ctx, term, fmt.Errorf("%w for %v", ErrUnanswered, term))
	defer cancel()
	err := f(one)
	if err != nil && ctx.Err() == nil && one.Err() != nil && !errors.Is(err, ErrUnanswered) {
		return fmt.Errorf("%w: %w", context.Cause(one), err) // it may have returned the error of its context
	}
	return err
}

// load reads the record.
func (a *StoreArbiter) load(ctx context.Context, term time.Duration) (r Record, err error) {
	err = within(ctx, term, func(ctx context.Context) (err error) {
		r, err = a.store.Load(ctx)
		return err
	})
	return r, err
}

// saw notes a record that has just been read, and returns the time after which
// this record was first read.
func (a *StoreArbiter) saw(r Record) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.at.IsZero() || r != a.seen {
		a.seen, a.at = r, time.Now()
	}
	a.unsure = false
	return a.at
}

// last returns the record that was read or written last, from which a swap can be tried without
// reading it again: the swap is made only if the record is that one still, and otherwise it is read.
// Nothing else may be concluded from it. ok is false if there is none.
func (a *StoreArbiter) last() (r Record, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.seen, !a.at.IsZero() && !a.unsure
}

// Record implements Arbiter.
func (a *StoreArbiter) Record(ctx context.Context) (Record, error) {
	r, err := a.load(ctx, 0)
	if err == nil {
		a.saw(r)
	}
	return r, err
}

// Watch implements Arbiter.
func (a *StoreArbiter) Watch(ctx context.Context, seen Record) (Record, error) {
	r, err := a.Record(ctx)
	for err == nil && !r.Changed(seen) {
		was := r
		if r, err = a.until(ctx, was, time.Time{}, false); err == nil && r == was {
			r, err = a.Record(ctx)
		}
	}
	return r, err
}

// Acquire implements Arbiter.
func (a *StoreArbiter) Acquire(ctx context.Context, c Claim) (Grant, error) {
	if r, ok := a.last(); ok && (!r.Held() || r.Token == c.From) {
		sent := time.Now()
		if next, granted, err := r.Acquire(c, false); granted && err == nil {
			if g, ok, err := a.take(ctx, c, r, next, sent); ok || err != nil {
				return g, err
			}
		}
	}
	for {
		sent := time.Now()
		r, err := a.load(ctx, c.Term)
		if err != nil {
			return Grant{}, err
		}
		lapse, ok := a.lapse(r)
		lapsed := ok && !time.Now().Before(lapse)
		next, granted, err := r.Acquire(c, lapsed)
		if err != nil {
			return Grant{}, err
		}
		if granted {
			// An earlier swap of this host, whose answer was lost, may have got it a
			// grant that still lasts for a while.
			if made, ok := a.made(r); ok && next.Generation == r.Generation && r.Term == c.Term && (c.Term == 0 || time.Since(made) < c.Term) {
				return Grant{Generation: r.Generation, Token: c.Token, Term: c.Term, Sent: made}, nil
			}
			if g, ok, err := a.take(ctx, c, r, next, sent); ok || err != nil {
				return g, err
			}
			continue // somebody was faster; look again
		}
		if _, err := a.until(ctx, r, lapse, ok); err != nil {
			return Grant{}, err
		}
	}
}

// HeedsFrom implements HandoverArbiter: it returns true.
func (a *StoreArbiter) HeedsFrom() bool { return true }

// take swaps r for next, which grants the guest to c, and returns the grant. ok is false if the record is not r any more.
func (a *StoreArbiter) take(ctx context.Context, c Claim, r, next Record, sent time.Time) (g Grant, ok bool, err error) {
	if ok, err = a.swap(ctx, c.Term, r, next, sent); err != nil || !ok {
		return Grant{}, false, err
	}
	return Grant{Generation: next.Generation, Token: c.Token, Term: c.Term, Sent: sent}, true, nil
}

// swap asks the store for a swap, and remembers one that is not answered.
func (a *StoreArbiter) swap(ctx context.Context, term time.Duration, old, next Record, sent time.Time) (swapped bool, err error) {
	err = within(ctx, term, func(ctx context.Context) (err error) {
		swapped, err = a.store.Swap(ctx, old, next)
		return err
	})
	if err != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.unheard.note(next, sent)
		a.unsure = true
		return false, err
	}
	if swapped {
		a.saw(next)
	}
	return swapped, nil
}

// made returns when the swap that wrote r was sent, if that swap was not answered. It
// returns that once.
func (a *StoreArbiter) made(r Record) (sent time.Time, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.unheard.take(r)
}

// lapse returns when the record's holder will have been silent for its term. ok
// is false if it has none.
func (a *StoreArbiter) lapse(r Record) (at time.Time, ok bool) {
	since := a.saw(r)
	return since.Add(r.Term), r.Held() && r.Term > 0
}

// until waits for the record to change, or for a time if ok, or for so long that it is to be looked
// at again: what the store was to say of the change may have been lost. It returns what has been read
// last.
func (a *StoreArbiter) until(ctx context.Context, r Record, at time.Time, ok bool) (Record, error) {
	if look := time.Now().Add(StoreTimeout); !ok || look.Before(at) {
		at = look
	}
	wait, cancel := context.WithDeadline(ctx, at)
	defer cancel()
	next, err := a.store.Changed(wait, r)
	switch {
	case err == nil:
		a.saw(next)
		return next, nil
	case ctx.Err() != nil:
		return r, context.Cause(ctx)
	case wait.Err() != nil:
		return r, nil // time to look again
	}
	return r, err
}

// Renew implements Arbiter.
func (a *StoreArbiter) Renew(ctx context.Context, g Grant, note string) (Grant, error) {
	err := a.change(ctx, g.Term, func(r Record) (next Record, sent time.Time, err error) {
		next, err = r.Renew(g, note)
		if made, ok := a.made(r); ok && err == nil && made.After(g.Sent) {
			next, g.Sent = r, made // the renewal before this one, which is heard of now
			return next, made, nil
		}
		g.Sent = time.Now()
		return next, g.Sent, err
	})
	return g, err
}

// Release implements Arbiter.
func (a *StoreArbiter) Release(ctx context.Context, g Grant, note string) error {
	if r, ok := a.last(); ok {
		if next, err := r.Release(g, note); err == nil {
			if swapped, err := a.swap(ctx, g.Term, r, next, time.Now()); err != nil || swapped {
				return err
			}
		}
	}
	return a.change(ctx, g.Term, func(r Record) (Record, time.Time, error) {
		next, err := r.Release(g, note)
		return next, time.Now(), err
	})
}

// change replaces the record by the one that rule returns for it, with the time from which
// that counts as sent. If rule returns the same record nothing is written.
func (a *StoreArbiter) change(ctx context.Context, term time.Duration, rule func(Record) (Record, time.Time, error)) error {
	for {
		r, err := a.load(ctx, term)
		if err != nil {
			return err
		}
		next, sent, err := rule(r)
		if err != nil || next == r {
			return err
		}
		if swapped, err := a.swap(ctx, term, r, next, sent); err != nil || swapped {
			return err
		}
	}
}

// ErrRecord means that the bytes in a store are no record.
var ErrRecord = errors.New("failover: not an arbiter's record")

// MaxRecord bounds the encoding of a record, in bytes.
const MaxRecord = 16 << 10

// record is a Record as stores keep it.
type record struct {
	Format     string `json:"format"`
	Generation uint64 `json:"generation"`
	Holder     string `json:"holder,omitempty"`
	Token      string `json:"token,omitempty"`
	TermNS     int64  `json:"term_ns,omitempty"`
	Note       []byte `json:"note,omitempty"`
	Writes     uint64 `json:"writes"`
}

const recordFormat = "lockstep-arbiter-1"

// Encode returns the record as one line of JSON, at most MaxRecord bytes, for a
// Store to keep. Equal records have equal encodings.
func (r Record) Encode() []byte {
	b, err := json.Marshal(record{recordFormat, r.Generation, r.Holder, r.Token, int64(r.Term), []byte(r.Note), r.Writes})
	if err != nil {
		panic(err) // there is nothing in it that could not be encoded
	}
	return append(b, '\n')
}

// DecodeRecord returns the record that b encodes. An error matches ErrRecord.
func DecodeRecord(b []byte) (Record, error) {
	if len(b) > MaxRecord {
		return Record{}, fmt.Errorf("%w: %d bytes", ErrRecord, len(b))
	}
	var r record
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	held := r.Token != ""
	switch {
	case r.Format != recordFormat:
		return Record{}, fmt.Errorf("%w: its format is %q", ErrRecord, r.Format)
	case d.More():
		return Record{}, fmt.Errorf("%w: more after it", ErrRecord)
	case r.TermNS < 0, len(r.Note) > MaxNote, len(r.Holder) > MaxName, len(r.Token) > MaxName,
		held != (r.Holder != ""), held && r.Generation == 0, !held && r.TermNS != 0, r.Writes < r.Generation:
		return Record{}, fmt.Errorf("%w: %+v", ErrRecord, r)
	}
	return Record{r.Generation, r.Holder, r.Token, time.Duration(r.TermNS), string(r.Note), r.Writes}, nil
}
