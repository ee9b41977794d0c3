package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/sharedfile"
)

// newArbiter returns who decides which of the two hosts has the guest: a directory
// that both reach (-arbiter file:PATH), or this host itself (between), with or without
// a command that is asked.
func newArbiter(o options, peer protect.Peer, h *host) (failover.Arbiter, error) {
	var a failover.Arbiter = &between{
		command: o.command, term: o.term, state: h.state, open: h.open, about: h.about,
		ask: func(ctx context.Context) (protect.Standing, error) {
			if o.peer == "" {
				return protect.Standing{}, errNoPeer
			}
			ctx, cancel := context.WithTimeout(ctx, o.lost)
			defer cancel()
			return protect.Ask(ctx, peer, o.name, o.host)
		},
		changed: make(chan struct{}),
	}
	if o.shared != "" {
		f, err := sharedfile.New(o.shared)
		if err != nil {
			return nil, fmt.Errorf("-arbiter: %w", err)
		}
		a = f
	}
	if o.kernel == "" {
		a = &onlyTakes{a, h.state}
	}
	return a, nil
}

// onlyTakes is the arbiter of a host that has nothing to boot: it can take the guest
// over, and not start it.
type onlyTakes struct {
	failover.Arbiter
	state func() protect.State
}

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
//   - A primary goes on at once while it is sure that the secondary does not: that has
//     promised not to, for a term, which keeps the gate open. Later, after it was
//     stopped or very slow, it asks the other host, and goes on if that does not
//     answer, or does not have the guest.
//   - A secondary goes on when its promise is over and the primary has not been heard
//     to go on, which that says as soon as it can: it seeks its secondary. One that can
//     ask, does, and waits as long as the primary lives and has not decided.
//   - A start is refused by a host that has the guest, or a later copy of it.
//
// In step a primary has no grant that it could renew: the promises count.
type between struct {
	command string // is asked before either goes on; "": nothing is
	term    time.Duration
	state   func() protect.State
	open    func() bool                                          // the gate
	about   func() (mode event.Mode, epoch uint64, cause string) // what a claim is about
	ask     func(context.Context) (protect.Standing, error)      // the other host

	mu      sync.Mutex
	record  failover.Record
	changed chan struct{} // closed and replaced with each change of the record
}

// errUndecided says that the other host lives and is about to decide.
var errUndecided = errors.New("the other host has not decided yet")

// Acquire implements failover.Arbiter.
func (b *between) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	sent := time.Now()
	b.mu.Lock()
	mine, present := b.record.Token == c.Token, b.record.Generation
	b.mu.Unlock()
	if present > c.After && !(mine && present == c.After+1) { // that was granted, and the answer lost
		return failover.Grant{}, fmt.Errorf("%w: generation %d is over, the present one is %d", failover.ErrRefused, c.After, present)
	}
	after := c.After
	if present <= c.After {
		var err error
		if after, err = b.decide(ctx, c, present == c.After); err != nil {
			return failover.Grant{}, err
		}
		sent = time.Now() // nobody else counts a term from an earlier moment
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.record.Generation <= after {
		b.set(failover.Record{Generation: after + 1, Holder: c.Holder, Token: c.Token, Term: b.term, Note: c.Note, Writes: b.record.Writes + 1})
	}
	return failover.Grant{Generation: b.record.Generation, Token: c.Token, Term: b.term, Sent: sent}, nil
}

// decide says whether a claim is granted, and which generation the grant is after.
// held says that this host had the generation that it claims to go on from.
func (b *between) decide(ctx context.Context, c failover.Claim, held bool) (after uint64, err error) {
	state := b.state()
	if starts(state) {
		return b.decideStart(ctx, c.After)
	}
	if !held && state != protect.Asking { // an operator's word
		return c.After, nil
	}
	if held && b.open() {
		return c.After, b.run(ctx, c.After)
	}
	there, unheard := b.ask(ctx)
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case unheard == nil && there.Generation > c.After:
		return 0, fmt.Errorf("%w: %s has the guest, in generation %d", failover.ErrRefused, there.Host, there.Generation)
	case unheard == nil && there.State == protect.SwitchingOver:
		return c.After, nil // to here
	case unheard == nil && there.State == protect.TakingOver:
		return 0, errUndecided
	case unheard == nil && !held && there.State != protect.Waiting && there.State != protect.Concluded && b.command == "":
		return 0, errUndecided
	}
	return c.After, b.run(ctx, c.After)
}

// decideStart says whether the guest is started here.
func (b *between) decideStart(ctx context.Context, after uint64) (uint64, error) {
	there, err := b.ask(ctx)
	if err != nil {
		return after, nil // nobody is there
	}
	switch there.State {
	case protect.Created, protect.Waiting, protect.Concluded:
		if after == 0 {
			return there.Generation, nil // of a guest that is no more
		}
		if there.Generation > after {
			return 0, fmt.Errorf("%w: %s has a later copy, of generation %d", failover.ErrRefused, there.Host, there.Generation)
		}
		return after, nil
	}
	return 0, fmt.Errorf("%w: %s is %v", failover.ErrRefused, there.Host, there.State)
}

// run asks the command, if there is one.
func (b *between) run(ctx context.Context, after uint64) error {
	if b.command == "" {
		return nil
	}
	mode, epoch, cause := b.about()
	cmd := exec.CommandContext(ctx, "sh", "-c", b.command)
	cmd.Env = append(os.Environ(), "LOCKSTEP_MODE="+string(mode), fmt.Sprintf("LOCKSTEP_EPOCH=%d", epoch),
		fmt.Sprintf("LOCKSTEP_GENERATION=%d", after+1), "LOCKSTEP_CAUSE="+oneLine(errors.New(cause)))
	if out, err := cmd.CombinedOutput(); err != nil {
		refused := error(nil) // a command that cannot be run has not answered
		if errors.As(err, new(*exec.ExitError)) && ctx.Err() == nil {
			refused = failover.ErrRefused
		}
		return errors.Join(refused, fmt.Errorf("-arbiter-command %s: %w: %s", b.command, err, strings.TrimSpace(string(out))))
	}
	return nil
}

// errPromises says that this host has no grant to renew.
var errPromises = errors.New("in step, the other host's promises count")

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

// Record implements failover.Arbiter.
func (b *between) Record(context.Context) (failover.Record, error) {
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
