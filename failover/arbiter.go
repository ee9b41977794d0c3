package failover

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// An Arbiter gives one guest to one host at a time. It stands somewhere that
// both hosts reach: a file on shared storage (failover/sharedfile), an etcd
// (failover/etcd), a person ([Manual]). One Arbiter value is for one guest. Its
// methods may be called from any goroutine.
//
// An error that matches [ErrRefused] is an answer and final. One of Renew that
// matches [ErrNotRenewed] is an answer, too, and not final. Any other error
// says that nobody could be asked, which is no answer: what was asked for may
// have happened or not. The same call may be repeated; an Acquire that had been
// granted finds its own grant, by its token.
//
// failovertest.TestArbiter checks an implementation.
type Arbiter interface {
	// Acquire asks for the guest and returns when it is granted or refused, or
	// when ctx ends. It waits as long as another host's grant may last. The
	// rules are those of [Record.Acquire].
	Acquire(ctx context.Context, c Claim) (Grant, error)

	// Renew prolongs a grant by its term and replaces the record's note. The
	// grant that it returns is g with a later Sent. A grant whose term has run out
	// is renewed as long as nobody else has got the guest. The rules are those of
	// [Record.Renew].
	Renew(ctx context.Context, g Grant, note string) (Grant, error)

	// Release gives the guest back, with a last note, so that the next claim
	// does not wait for the end of the term. Whoever releases has shut its gate
	// before. If another process has the guest, Release returns ErrRefused and
	// changes nothing.
	Release(ctx context.Context, g Grant, note string) error

	// Record returns what the arbiter knows. If each host has an Arbiter of its own (see
	// [Manual]), this one may not know what the other host was granted. It then returns an
	// error while the other host has the guest, because a host that follows warns about a
	// record without the grant of the host that it follows.
	Record(ctx context.Context) (Record, error)

	// Watch returns the record as soon as its generation or holder is not that
	// of seen. Renewals are not reported.
	Watch(ctx context.Context, seen Record) (Record, error)
}

// A Claim asks an arbiter to give a guest to a host.
type Claim struct {
	Holder string // the host's name, for people; not empty
	Token  string // a text that no other process uses; not empty. See NewToken
	// After is the generation that the claimant has held or followed, so that its copy of
	// the guest is of that generation. 0: it has held and followed none.
	After uint64
	Term  time.Duration // how long the grant shall last after each renewal. 0: until it is released
	Note  string        // at most MaxNote bytes
	// From is the token of the holder of generation After, if that has shut its gate for good and has told the claimant
	// to go on: the guest is granted then without a release, and without waiting for the end of
	// a term (see Keeper.Yield). "": no holder has told the claimant so. Where an arbiter does not
	// heed it (HeedsFrom), the claim waits as any other does.
	From string
}

// A Grant is the answer of an arbiter that has given a guest to a host.
type Grant struct {
	Generation uint64 // above that of every grant before it
	Token      string // the token of the claim that was granted
	// Term is how long the grant lasts, counted from Sent. 0: until it is
	// released.
	Term time.Duration
	// Sent is the time, with a monotonic reading, from before the request that
	// was granted, or last renewed, left this process. What the arbiter
	// counts from is later, so a holder that counts from here stops first.
	Sent time.Time
}

// MaxNote bounds the note of a record, in bytes; MaxName the name of a holder
// and a token.
const (
	MaxNote = 1024
	MaxName = 255
)

// ErrClaim means that a claim, a name or a note is not valid.
var ErrClaim = errors.New("failover: claim not valid")

// A HandoverArbiter is an Arbiter that says whether it heeds Claim.From. A guest that is handed over
// stands still while the arbiter is asked: where the claimant's arbiter heeds From it is asked once, and
// otherwise twice, since the holder has to release the guest first.
type HandoverArbiter interface {
	Arbiter

	// HeedsFrom reports whether Acquire grants a claim at once whose From is the token of the
	// holder and whose After is the holder's generation. It does not block. An Arbiter that wraps
	// another one returns what the other does, see the function HeedsFrom.
	HeedsFrom() bool
}

// HeedsFrom reports whether an arbiter is a HandoverArbiter that heeds Claim.From.
func HeedsFrom(a Arbiter) bool {
	h, ok := a.(HandoverArbiter)
	return ok && h.HeedsFrom()
}

// Check returns an error that matches ErrClaim if the claim cannot be made.
func (c Claim) Check() error {
	switch {
	case c.Holder == "" || len(c.Holder) > MaxName:
		return fmt.Errorf("%w: a holder's name has 1 to %d bytes, this one %d", ErrClaim, MaxName, len(c.Holder))
	case c.Token == "" || len(c.Token) > MaxName:
		return fmt.Errorf("%w: a token has 1 to %d bytes, this one %d", ErrClaim, MaxName, len(c.Token))
	case len(c.From) > MaxName:
		return fmt.Errorf("%w: the token of a holder has at most %d bytes, this one %d", ErrClaim, MaxName, len(c.From))
	case !utf8.ValidString(c.Holder) || !utf8.ValidString(c.Token) || !utf8.ValidString(c.From):
		return fmt.Errorf("%w: names are UTF-8", ErrClaim)
	case c.Term < 0:
		return fmt.Errorf("%w: term %v", ErrClaim, c.Term)
	}
	return checkNote(c.Note)
}

func checkNote(note string) error {
	if len(note) > MaxNote {
		return fmt.Errorf("%w: a note has at most %d bytes, this one %d", ErrClaim, MaxNote, len(note))
	}
	return nil
}
