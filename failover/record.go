package failover

import (
	"crypto/rand"
	"fmt"
	"time"
)

// A Record is the state of one guest at an arbiter. Its methods are the rules that
// every arbiter follows: pure, they return the record that takes the place of
// this one, which the arbiter writes in one indivisible step or not at all.
type Record struct {
	Generation uint64        // of the last grant. It only grows. 0: there was none
	Holder     string        // who has the guest, by name. "": nobody, it was released
	Token      string        // of the holder's process
	Term       time.Duration // of the holder's grant. 0: until it is released
	Note       string        // a text of the holder, such as its last checkpoint. It outlives the grant
	Writes     uint64        // counts grants, renewals and releases
}

// Held reports whether somebody has the guest, as far as the record says: the
// term may have run out.
func (r Record) Held() bool { return r.Token != "" }

// Acquire returns the record in which the claim is granted, under a generation
// that is the next one:
//
//   - If nobody has the guest, or its holder's term has run out (lapsed), or the
//     claimant has it itself, or its holder has given it up for the claimant (From), the claim is granted.
//   - If somebody else has it, granted is false: the claim waits.
//   - If the generation has changed since the one that the claimant has held or
//     followed, its copy of the guest is old. The error matches ErrRefused. So a
//     holder that goes on without its secondary acquires the guest once more, and
//     the secondary that it left behind is refused from then on.
//   - If the claimant knows a later generation than the record, the record was
//     lost or put back. The error matches ErrRefused: a person has to look.
//
// A claim that was granted already, whose answer was lost, is granted again,
// under the same generation.
func (r Record) Acquire(c Claim, lapsed bool) (next Record, granted bool, err error) {
	if err := c.Check(); err != nil {
		return r, false, err
	}
	mine := r.Held() && r.Token == c.Token
	switch {
	case mine && r.Generation == c.After+1: // its answer was lost
		r.Term, r.Note = c.Term, c.Note
		r.Writes++
		return r, true, nil
	case r.Generation > c.After:
		return r, false, fmt.Errorf("%w: generation %d is over, the present one is %d%s", ErrRefused, c.After, r.Generation, r.by())
	case r.Generation < c.After:
		return r, false, r.wentBack(c.After)
	case r.Held() && !mine && !lapsed && r.Token != c.From:
		return r, false, nil
	}
	return Record{
		Generation: r.Generation + 1, Holder: c.Holder, Token: c.Token, Term: c.Term, Note: c.Note, Writes: r.Writes + 1,
	}, true, nil
}

// Renew returns the record in which the grant is prolonged. A grant whose term
// has run out can be renewed for as long as nobody else has got the guest; after
// that the error matches ErrRefused. If the record ends with an earlier generation than the
// grant's, it was lost or put back, which the error says; it matches ErrRefused as well, since that
// record may let another host in. An error for a note that is too long matches ErrClaim.
func (r Record) Renew(g Grant, note string) (Record, error) {
	if err := r.has(g, note); err != nil {
		return r, err
	}
	r.Note = note
	r.Writes++
	return r, nil
}

// Release returns the record in which nobody has the guest. Its errors are those of Renew.
func (r Record) Release(g Grant, note string) (Record, error) {
	if err := r.has(g, note); err != nil {
		return r, err
	}
	return Record{Generation: r.Generation, Note: note, Writes: r.Writes + 1}, nil
}

// Changed reports whether another record differs in generation or holder, which
// is what Arbiter.Watch waits for.
func (r Record) Changed(o Record) bool {
	return r.Generation != o.Generation || r.Token != o.Token
}

func (r Record) has(g Grant, note string) error {
	if err := checkNote(note); err != nil {
		return err
	}
	if r.Generation < g.Generation && g.Token != "" {
		return r.wentBack(g.Generation)
	}
	if g.Token == "" || r.Token != g.Token || r.Generation != g.Generation {
		return fmt.Errorf("%w: the grant of generation %d is over, the present one is %d%s", ErrRefused, g.Generation, r.Generation, r.by())
	}
	return nil
}

// wentBack refuses somebody who knows a later generation than the record.
func (r Record) wentBack(known uint64) error {
	return fmt.Errorf("%w: the record ends with generation %d, but there was a generation %d", ErrRefused, r.Generation, known)
}

func (r Record) by() string {
	if r.Held() {
		return ", of " + r.Holder
	}
	return ", of nobody"
}

// NewToken returns a token that no other process has.
func NewToken() string { return rand.Text() }
