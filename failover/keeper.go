package failover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
)

// DefaultTerm is how long a grant lasts after each renewal if a configuration
// does not say.
const DefaultTerm = 3 * time.Second

// KeeperConfig names the arbiter of a guest and the host that is to keep it. Arbiter and
// Holder are required.
type KeeperConfig struct {
	Arbiter Arbiter
	Holder  string // this host's name
	Token   string // "": a new one. See Claim
	// Term of the grants. 0: DefaultTerm. At least MinTerm. Negative: grants
	// have no deadline, which is right for a Manual arbiter only.
	Term time.Duration
	// Lost, if set, is called when the arbiter says that a grant that was held
	// is over, on the goroutine in Run and with the gate shut.
	Lost func(generation uint64, why error)
	// Failed, if set, is told of each renewal that could not be asked for, on
	// the goroutine in Run.
	Failed func(error)
}

// A Keeper keeps one guest for one host: it claims it, renews the grant for as
// long as Run runs, and opens and shuts a Gate accordingly. It is a Holder with
// a clock and an arbiter. Its methods may be called from any goroutine.
type Keeper struct {
	cfg  KeeperConfig
	gate *Gate
	kick chan struct{} // wakes Run: the grant or its times have changed

	mu     sync.Mutex
	holder Holder
	grant  Grant
	note   string
	asked  []*asked // for grants without a deadline
}

// NewKeeper returns a Keeper that holds nothing.
func NewKeeper(cfg KeeperConfig) (*Keeper, error) {
	if cfg.Term == 0 {
		cfg.Term = DefaultTerm
	}
	cfg.Term = max(0, cfg.Term)
	if cfg.Token == "" {
		cfg.Token = NewToken()
	}
	if cfg.Arbiter == nil {
		return nil, errors.New("failover: KeeperConfig needs an Arbiter")
	}
	if cfg.Term > 0 && cfg.Term < MinTerm {
		return nil, fmt.Errorf("failover: a term of %v is too short, the least is %v", cfg.Term, MinTerm)
	}
	if err := (Claim{Holder: cfg.Holder, Token: cfg.Token}).Check(); err != nil {
		return nil, err
	}
	return &Keeper{cfg: cfg, gate: NewGate(), kick: make(chan struct{}, 1)}, nil
}

// Gate returns the gate that is open while this host may act as the guest's
// holder. It is always the same Gate.
func (k *Keeper) Gate() *Gate { return k.gate }

// Generation returns the generation that is held, though its time may have run
// out; 0 if none is.
func (k *Keeper) Generation() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.holder.Generation()
}

// Until returns when the gate shuts if nothing is renewed; see Endless.
func (k *Keeper) Until() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.holder.Until()
}

// SetNote sets the note that renewals carry from now on. A note of more than MaxNote bytes
// is an error that matches ErrClaim.
func (k *Keeper) SetNote(note string) error {
	if err := checkNote(note); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.note = note
	return nil
}

// Acquire claims the guest after a generation that this host has held or
// followed, and returns the generation that it got; the gate is open then, if it is not barred. While
// nobody can be asked it asks again, for as long as ctx lasts. A refusal matches
// ErrRefused. A grant that breaks the rules of Arbiter gives another error, and does not
// open the gate. While Acquire asks, a grant that this host has stays as it is. A grant without a
// deadline that this host has of the generation after that one is not asked for again: a person
// who has said yes to one of two questions is not waited for with the other.
func (k *Keeper) Acquire(ctx context.Context, after uint64) (uint64, error) {
	return k.AcquireFrom(ctx, after, "")
}

// AcquireFrom does what Acquire does where the holder of that generation, whose token from is, has given the guest up
// for this host by Yield and has told it so. See Claim.From.
func (k *Keeper) AcquireFrom(ctx context.Context, after uint64, from string) (uint64, error) {
	var last error
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		k.mu.Lock()
		if held := k.holder.Generation(); k.cfg.Term == 0 && held == after+1 && k.grant.Generation == held {
			k.gate.Until(k.holder.Until())
			k.mu.Unlock()
			return held, nil
		}
		c := Claim{Holder: k.cfg.Holder, Token: k.cfg.Token, After: after, Term: k.cfg.Term, Note: k.note, From: from}
		ask, end := k.asks(ctx, after)
		k.mu.Unlock()
		g, err := k.cfg.Arbiter.Acquire(ask, c)
		given := ask.Err() != nil && ctx.Err() == nil
		end()
		switch {
		case err == nil:
			if err := k.check(g, after+1); err != nil {
				return 0, err
			}
			k.granted(g)
			return g.Generation, nil
		case given:
			continue
		case errors.Is(err, ErrRefused), errors.Is(err, ErrClaim):
			k.over(after)
			return 0, err
		case ctx.Err() == nil:
			last = err
		}
		if err := wait.For(ctx, pause); err != nil {
			return 0, errors.Join(err, last)
		}
	}
}

// asks returns a context for a question for the generation after one, which ends with ctx or end, or, of a
// grant without a deadline, when that generation is granted by the answer to another question. The caller
// holds mu; end takes it.
func (k *Keeper) asks(ctx context.Context, after uint64) (ask context.Context, end func()) {
	ask, cancel := context.WithCancel(ctx)
	if k.cfg.Term > 0 {
		return ask, cancel
	}
	q := &asked{after, cancel}
	k.asked = append(k.asked, q)
	return ask, func() {
		cancel()
		k.mu.Lock()
		defer k.mu.Unlock()
		k.asked = slices.DeleteFunc(k.asked, func(o *asked) bool { return o == q })
	}
}

// An asked is a question that waits for a person.
type asked struct {
	after uint64
	end   func()
}

// Promised records a promise of the follower; see Holder.Promised.
func (k *Keeper) Promised(generation uint64, sent time.Time, term time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	was := k.holder.Until()
	k.holder.Promised(generation, sent, term)
	if now := k.holder.Until(); !now.Equal(was) { // what somebody has shut stays shut by a promise that changes nothing
		k.gate.Until(now)
	}
}

// Fenced opens the gate by an operator's word that no other host can act as the
// guest's holder, for the generation after that one, which it returns. The caller
// acquires the guest after the same generation as soon as the arbiter can be
// asked, so that others know; a refusal then means that the word was wrong, and
// the caller drops what it holds.
func (k *Keeper) Fenced(after uint64) uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.holder.Fenced(after + 1)
	k.gate.Until(k.holder.Until())
	return after + 1
}

// Bar shuts the gate, and keeps it shut whatever is granted, renewed, promised or said by
// Fenced, until Unbar. It is for a host that may hold the guest and must not act for it yet:
// one that is about to claim it, and whose fencer is to make sure first that the host before
// it does nothing any more. The grant is held and renewed all the same. Barring it again does
// nothing.
func (k *Keeper) Bar() { k.gate.bar() }

// Unbar ends Bar: the gate is open for as long as it would be if it had never been barred. A
// gate that is not barred stays as it is.
func (k *Keeper) Unbar() { k.gate.unbar() }

// Drop shuts the gate and forgets the grant without telling the arbiter, whose
// term runs out by itself.
func (k *Keeper) Drop() {
	k.mu.Lock()
	generation := k.holder.Generation()
	k.mu.Unlock()
	k.over(generation)
}

// Release shuts the gate and then gives the guest back to the arbiter, with a
// last note. The gate stays shut whatever the arbiter says.
func (k *Keeper) Release(ctx context.Context, note string) error {
	k.mu.Lock()
	g, held := k.grant, k.holder.Generation()
	k.mu.Unlock()
	k.over(held)
	if held == 0 || g.Generation != held { // held by Fenced, of which the arbiter does not know
		return nil
	}
	return k.cfg.Arbiter.Release(ctx, g, note)
}

// ReleaseGeneration does what Release does, for one generation alone: if another is held by
// now, or none, it does nothing and its error matches ErrRefused. It is for a caller that has
// decided to give the guest back while another goroutine may have claimed it anew.
func (k *Keeper) ReleaseGeneration(ctx context.Context, generation uint64, note string) error {
	k.mu.Lock()
	g, held := k.grant, k.holder.Generation()
	k.mu.Unlock()
	if held != generation || g.Generation != generation {
		return fmt.Errorf("%w: to release generation %d, where %d is held", ErrRefused, generation, held)
	}
	k.shut(generation)
	defer k.wake() // which the guest, which may stand still for this, need not wait for
	return k.cfg.Arbiter.Release(ctx, g, note)
}

// Yield shuts the gate for a generation for good and returns the token under which the arbiter knows this
// host as its holder. It asks the arbiter nothing: the caller tells the token to the one host
// that is to go on, which claims the guest by AcquireFrom. Nothing is renewed from then on, so a
// claim that does not name this holder is granted at the end of the term. A claim by this Keeper after the same
// generation is granted if that host has not been: it is the arbiter that decides between the two.
// If another generation is held by now, or none, or the arbiter does not know of it, Yield does nothing,
// and its error matches ErrRefused.
func (k *Keeper) Yield(generation uint64) (token string, err error) {
	k.mu.Lock()
	g, held := k.grant, k.holder.Generation()
	k.mu.Unlock()
	if generation == 0 || held != generation || g.Generation != generation {
		return "", fmt.Errorf("%w: to give up generation %d, where %d is held", ErrRefused, generation, held)
	}
	k.shut(generation)
	k.wake()
	return g.Token, nil
}

// Run renews what is held until ctx ends, and returns the context's cause. What
// is held then is not released: its term runs out. The end of a grant does not
// end Run; another can be acquired.
func (k *Keeper) Run(ctx context.Context) error {
	slow := false // the last renewal had no answer within half a term
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		k.mu.Lock()
		at, ok := k.holder.Renewal()
		g, note := k.grant, k.note
		k.mu.Unlock()
		if !ok {
			select {
			case <-k.kick:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if left := time.Until(at); left > 0 {
			timer := time.NewTimer(left)
			select {
			case <-timer.C: // what is held may be over by now
			case <-k.kick:
				timer.Stop()
			case <-ctx.Done():
				timer.Stop()
			}
			continue
		}
		patience := g.Term / 2
		if slow {
			patience = g.Term
		}
		asked := time.Now()
		k.renew(ctx, g, note, patience)
		slow = time.Since(asked) >= g.Term/2
	}
}

// renew asks once, and waits a moment if nobody can be asked. A renewal that is not answered
// within patience is given up, and the next one is sent at once. Run gives half a term to the
// first: if its answer is lost, there is still time for another one before the gate shuts. The
// renewal after it has a whole term: the arbiter may only be slow.
func (k *Keeper) renew(ctx context.Context, g Grant, note string, patience time.Duration) {
	ask, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	next, err := k.cfg.Arbiter.Renew(ask, g, note)
	if err == nil {
		err = k.check(next, g.Generation)
	}
	switch {
	case err == nil:
		k.granted(next)
	case errors.Is(err, ErrRefused):
		if k.own(ask, g) {
			return
		}
		if k.over(g.Generation) && k.cfg.Lost != nil {
			k.cfg.Lost(g.Generation, err)
		}
	case ctx.Err() == nil:
		if k.cfg.Failed != nil && !errors.Is(err, ErrNotRenewed) {
			k.cfg.Failed(err)
		}
		if ask.Err() == nil {
			wait.For(ctx, g.Term/10)
		}
	}
}

// own is called when the arbiter has refused to renew g. It reports whether this
// keeper itself has acquired the generation after g, perhaps by a claim whose answer
// was lost, and then takes that grant. It also returns true if the arbiter cannot be
// asked: Run renews again after a moment, and so comes here again.
func (k *Keeper) own(ctx context.Context, g Grant) bool {
	r, err := k.cfg.Arbiter.Record(ctx)
	if err == nil && (r.Token != g.Token || r.Generation != g.Generation+1) {
		return false
	}
	defer func() {
		if k.Generation() == g.Generation {
			wait.For(ctx, g.Term/10)
		}
	}()
	if err != nil {
		return true
	}
	k.mu.Lock()
	c := Claim{Holder: k.cfg.Holder, Token: k.cfg.Token, After: g.Generation, Term: k.cfg.Term, Note: k.note}
	held := k.holder.Generation() == g.Generation
	k.mu.Unlock()
	if held {
		if next, err := k.cfg.Arbiter.Acquire(ctx, c); err == nil && k.check(next, g.Generation+1) == nil {
			k.granted(next)
		}
	}
	return true
}

// check returns an error for a grant that breaks the rules of Arbiter, as one does in which a host's
// own Arbiter has left a field out: without an end it would keep the gate open for ever,
// without a beginning it would be renewed without a pause, and from a time of day it would last
// for as long as that clock is set back. least is the least generation that it
// can be of.
func (k *Keeper) check(g Grant, least uint64) error {
	switch {
	case g.Generation < least:
		return fmt.Errorf("failover: the arbiter grants generation %d, where %d is the least", g.Generation, least)
	case k.cfg.Term == 0:
		return nil
	case g.Term < MinTerm:
		return fmt.Errorf("failover: the arbiter grants a term of %v, where %v was asked for", g.Term, k.cfg.Term)
	case g.Sent.IsZero(), time.Until(g.Sent) > 0:
		return errors.New("failover: the arbiter's grant does not say from when it counts, or from a time to come")
	case isDate(g.Sent) && !isDate(time.Now()): // a step of the clock of the day would prolong it
		return errors.New("failover: the arbiter's grant counts from a time without a monotonic reading")
	}
	return nil
}

// isDate reports whether a time has no monotonic reading, as none has in a bubble of
// testing/synctest.
func isDate(t time.Time) bool { return t == t.Round(0) }

func (k *Keeper) granted(g Grant) {
	k.mu.Lock()
	k.holder.Granted(g)
	if k.holder.Generation() == g.Generation {
		k.grant = g
	}
	k.gate.Until(k.holder.Until())
	for _, q := range k.asked {
		if q.after+1 == k.holder.Generation() {
			q.end()
		}
	}
	k.mu.Unlock()
	k.wake()
}

// over ends a generation, and reports whether this Keeper held it.
func (k *Keeper) over(generation uint64) bool {
	defer k.wake()
	return k.shut(generation)
}

// shut does what over does, and lets Run find out when it looks the next time.
func (k *Keeper) shut(generation uint64) (held bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	held = generation != 0 && k.holder.Generation() == generation
	k.holder.Over(generation)
	k.gate.Until(k.holder.Until())
	return held
}

func (k *Keeper) wake() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}
