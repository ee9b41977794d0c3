package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/examples/internal/arbiter"
	"github.com/gocolo/lockstep/failover"
)

// newArbiter returns the arbiter that decides which of the two hosts has the guest: one at a
// place that both reach, which -arbiter names, or this host itself (between), with or without
// a command that is asked. The caller calls end when it has asked the arbiter for the last time.
func newArbiter(o options, d *disk, h *host) (a failover.Arbiter, end func(), err error) {
	a, end = &between{
		host: o.host, disks: d != nil, fresh: d != nil && d.fresh, word: o.anyway,
		command: o.command, term: o.term, lost: o.lost, state: h.state, open: h.open, about: h.about,
		ask:       h.ask,
		undecided: func(err error) { h.p.phase("undecided", "%s", oneLine(err)) },
		changed:   make(chan struct{}),
	}, func() {}
	if o.place != "" {
		if a, end, err = arbiter.Open(o.place, o.name, func(line string) { h.p.say("-arbiter: %s", line) }); err != nil {
			return nil, nil, fmt.Errorf("-arbiter %w", err)
		}
	}
	if o.kernel == "" && o.resume == "" {
		a = &onlyTakes{a, h.state}
	}
	return a, end, nil
}

// decides returns what decides here who goes on, in the words that the other host is told. Each
// place that both reach is an arbiter: that the two hosts name the same one is seen in its record.
func (o options) decides() string {
	switch {
	case o.place != "":
		return "an arbiter"
	case o.command != "":
		return "a command"
	}
	return "the two hosts themselves"
}

// onlyTakes is the arbiter of a host that has nothing to boot: it can take the guest
// over, and not start it.
type onlyTakes struct {
	failover.Arbiter
	state func() protect.State
}

// HeedsFrom implements failover.HandoverArbiter.
func (a *onlyTakes) HeedsFrom() bool { return failover.HeedsFrom(a.Arbiter) }

func (a *onlyTakes) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	if starts(a.state()) {
		return failover.Grant{}, fmt.Errorf("%w: there is no -kernel to start the guest with", failover.ErrRefused)
	}
	return a.Arbiter.Acquire(ctx, c)
}

// starts reports whether a claim in a state is to start the guest, rather than to go on
// with it.
func starts(s protect.State) bool { return s == protect.Created || s == protect.Waiting }

// A between is the arbiter of two hosts that have no third place to ask: each has one,
// and they ask each other. It is right if a host that cannot be reached is a dead one.
// If it may be a network that is cut, both hosts would go on, and no two hosts can
// find out alone: then -arbiter must name a place, or a command, that both reach.
//
//   - A primary goes on at once while the secondary's promise not to take the guest
//     lasts: the promise, for a term, keeps the gate open. Later, after it was stopped
//     or very slow, it asks the other host, and goes on if that cannot be reached, or
//     does not have the guest.
//   - A secondary goes on when its promise is over, unless it has heard that the primary
//     goes on: a primary that does seeks its secondary at once. A secondary that can
//     ask the primary does, and waits as long as that lives and has not decided.
//   - A start needs the other host's answer, or the word of a person who knows
//     (-start), unless the guest is a new one, as its disk says. A host that has the
//     guest, or a later copy of it, refuses.
//
// In step a primary has no grant that it could renew: the promises count.
type between struct {
	host    string // this one's name
	disks   bool   // the guest has some
	fresh   bool   // which no guest has ever used
	word    bool   // a person says that the other host is dead, or has nothing newer
	command string // is asked before either goes on; "": nothing is
	term    time.Duration
	lost    time.Duration // ask, once, takes half of it at most
	state   func() protect.State
	open    func() bool                                          // reports whether this host's gate is open
	about   func() (mode event.Mode, epoch uint64, cause string) // returns the side, the checkpoint and the cause, for the command
	ask     func(context.Context) (protect.Standing, error)      // the other host
	// undecided is called with the reason why nothing is decided, once for each. Nil: not
	// called.
	undecided func(error)

	mu      sync.Mutex
	record  failover.Record
	changed chan struct{} // closed and replaced with each change of the record
	busy    chan struct{} // nil: nobody decides; else closed when that is over
	told    string        // what undecided was told last
	yes     uint64        // the generation for which the command has said yes
	asking  struct {      // when the other host was first heard to ask, too
		after uint64
		since time.Time
	}
}

// Acquire implements failover.Arbiter.
func (b *between) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	done, err := b.turn(ctx)
	if err != nil {
		return failover.Grant{}, err
	}
	defer done()
	b.mu.Lock()
	mine, present := b.record.Token == c.Token, b.record.Generation
	b.mu.Unlock()
	if present > c.After && !(mine && present == c.After+1) { // that was granted, and the answer lost
		return failover.Grant{}, fmt.Errorf("%w: generation %d is over, the present one is %d", failover.ErrRefused, c.After, present)
	}
	after, at := c.After, time.Now()
	if present <= c.After {
		// The decision rests on an answer that was true at the time at. A process that was
		// stopped since then asks anew: the other host may have gone on.
		for again := true; again; again = time.Since(at) > b.term/4 {
			if after, at, err = b.decide(ctx, c, present == c.After); err != nil {
				b.tell(err)
				return failover.Grant{}, err
			}
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.told = ""
	if b.record.Generation <= after {
		b.set(failover.Record{Generation: after + 1, Holder: c.Holder, Token: c.Token, Term: b.term, Note: c.Note, Writes: b.record.Writes + 1})
	}
	return failover.Grant{Generation: b.record.Generation, Token: c.Token, Term: b.term, Sent: at}, nil
}

// turn waits until no other goroutine decides. The caller calls done when it has decided.
func (b *between) turn(ctx context.Context) (done func(), err error) {
	for {
		b.mu.Lock()
		busy := b.busy
		if busy == nil {
			busy = make(chan struct{})
			b.busy = busy
			b.mu.Unlock()
			return func() {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.busy = nil
				close(busy)
			}, nil
		}
		b.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// tell tells a person why nothing is decided.
func (b *between) tell(err error) {
	b.mu.Lock()
	why := lasting(err.Error())
	known := b.told == why
	if errors.Is(err, errUndecided) {
		b.told = why
	}
	b.mu.Unlock()
	if !known && b.undecided != nil && errors.Is(err, errUndecided) {
		b.undecided(err)
	}
}

// decide returns nil if a claim is granted, the generation that the grant comes after, and the
// time at which the answer that this rests on was true. held says that this host had the
// generation that it claims to go on from.
func (b *between) decide(ctx context.Context, c failover.Claim, held bool) (after uint64, at time.Time, err error) {
	state, now := b.state(), time.Now()
	switch {
	case starts(state):
		there, at, unheard := b.hear(ctx)
		if ctx.Err() != nil {
			return 0, at, context.Cause(ctx)
		}
		after, err := aStart{b.host, c.After, b.disks, b.fresh, b.word}.decide(there, unheard)
		return after, at, err
	case !held && state != protect.Asking: // an operator's word
		return c.After, now, nil
	case held && b.open():
		return c.After, now, b.run(ctx, c.After)
	}
	there, at, unheard := b.hear(ctx)
	if ctx.Err() != nil {
		return 0, at, context.Cause(ctx)
	}
	if err := goesOn(held, b.command != "", c.After, there, unheard); err != nil {
		return 0, at, err
	}
	if unheard == nil && there.State == protect.SwitchingOver {
		return c.After, at, nil // to here
	}
	if held && b.command == "" && b.early(c.After, unheard == nil && there.State == protect.Asking) {
		return 0, at, fmt.Errorf("%w: %s asks as well; what it has asked before this host could answer must be over", errUndecided, there.Host)
	}
	return c.After, at, b.run(ctx, c.After)
}

// early reports whether the other host, which asks as well, may still be about to go on
// because it got no answer while this one stood still. Its questions take less time than
// that, and then it says how it has decided.
func (b *between) early(after uint64, asks bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !asks {
		b.asking.since = time.Time{}
		return false
	}
	if b.asking.after != after || b.asking.since.IsZero() {
		b.asking.after, b.asking.since = after, time.Now()
	}
	return time.Since(b.asking.since) < 2*b.lost
}

// errPromises means that this host has no grant to renew.
var errPromises = fmt.Errorf("%w: in step, the other host's promises count", failover.ErrNotRenewed)

// Renew implements failover.Arbiter. What is granted while a pair synchronises is over
// before the secondary's first promise can be.
func (b *between) Renew(_ context.Context, g failover.Grant, note string) (failover.Grant, error) {
	g.Term, g.Sent = b.term, time.Now()
	switch b.state() {
	case protect.Protected, protect.SwitchingOver, protect.Following, protect.Asking:
		return failover.Grant{}, errPromises
	case protect.Synchronising:
		g.Term /= 2
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	next, err := b.record.Renew(g, note)
	if err != nil {
		return failover.Grant{}, err
	}
	b.set(next)
	return g, nil
}

// Release implements failover.Arbiter.
func (b *between) Release(_ context.Context, g failover.Grant, note string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	next, err := b.record.Release(g, note)
	if err == nil {
		b.set(next)
	}
	return err
}

// errElsewhere means that the other host knows, and this one does not.
var errElsewhere = errors.New("what the other host was granted is not known here")

// Record implements failover.Arbiter. While this host follows it does not know by which grant the
// other one acts.
func (b *between) Record(context.Context) (failover.Record, error) {
	if b.state() == protect.Following {
		return failover.Record{}, errElsewhere
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.record, nil
}

// Watch implements failover.Arbiter.
func (b *between) Watch(ctx context.Context, seen failover.Record) (failover.Record, error) {
	for {
		b.mu.Lock()
		r, changed := b.record, b.changed
		b.mu.Unlock()
		if r.Changed(seen) {
			return r, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return failover.Record{}, context.Cause(ctx)
		}
	}
}

func (b *between) set(r failover.Record) {
	b.record = r
	close(b.changed)
	b.changed = make(chan struct{})
}
