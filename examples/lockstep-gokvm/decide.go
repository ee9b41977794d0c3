package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/failover"
)

// errUndecided means that the other host has to be heard, or heard again, before anything is
// decided: the claim is made again.
var errUndecided = errors.New("not decided yet")

// errUnheard says that the other host cannot be reached, or said nothing at all.
var errUnheard = errors.New("the other host is not heard")

// silent reports whether an error of a question means that nothing was heard: there
// was no connection, or no word over it for as long as it may take. Any other error is
// something that the other host has said or done, so it lives.
func silent(err error) bool {
	var op *net.OpError
	switch {
	case errors.Is(err, errNoPeer), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return true
	case errors.Is(err, net.ErrClosed): // by this side, when the time was over
		return true
	}
	return errors.As(err, &op) && (op.Op == "dial" || op.Timeout())
}

// questions is how often a host that is not heard is asked.
const questions = 3

// hear asks the other host until it is heard, but not for ever. An error that matches
// errUnheard means that it was not; any other that it lives, and has not told its state. at
// is the time at which the result was true.
func (b *between) hear(ctx context.Context) (there protect.Standing, at time.Time, err error) {
	for unheard := 0; ; {
		at = time.Now()
		there, err = b.ask(ctx)
		took := time.Since(at)
		switch {
		case ctx.Err() != nil:
			return there, at, context.Cause(ctx)
		case errors.Is(err, errNoPeer):
			return there, at, fmt.Errorf("%w: %w", errUnheard, err)
		case err == nil || !silent(err):
			return there, at, err
		case b.lost > 0 && took > b.lost/2+b.term/4: // this process stood still: the silence was its own
		default:
			unheard++
		}
		at = at.Add(min(took, b.lost/2))
		if unheard == questions {
			return there, at, fmt.Errorf("%w: %w", errUnheard, err)
		}
		select {
		case <-time.After(min(b.lost/16, retry)):
		case <-ctx.Done():
			return there, at, context.Cause(ctx)
		}
	}
}

// aStart is a claim to start the guest, from the disks of a host or for the first time.
type aStart struct {
	host  string
	after uint64 // the generation of the disks; 0: none
	disks bool   // the guest has some
	fresh bool   // which no guest has ever used
	word  bool   // -start was given: the operator's word that the other host is dead
}

// decide returns the generation that the start comes after, given the answer of the other host.
func (a aStart) decide(there protect.Standing, err error) (after uint64, _ error) {
	switch {
	case err != nil && a.word:
		return a.after, nil
	case errors.Is(err, errUnheard) && a.after == 0 && a.fresh:
		return 0, nil // a new guest, which nobody else can have had
	case errors.Is(err, errUnheard):
		return 0, fmt.Errorf("%w: the guest may run on the other host, or have a newer disk there: start gokvm there; if that host is dead, or never had this guest, start this one with -start: %w", errUndecided, err)
	case err != nil:
		return 0, fmt.Errorf("%w: the other host is there, but does not say how it stands with the guest: %w", errUndecided, err)
	case there.State != protect.Created && there.State != protect.Waiting && there.State != protect.Concluded:
		return 0, fmt.Errorf("%w: %s is %v", failover.ErrRefused, there.Host, there.State)
	case there.Generation > a.after && a.word, there.Generation > a.after && a.after == 0 && !a.disks:
		return there.Generation, nil // what is there is no more
	case there.Generation > a.after:
		return 0, fmt.Errorf("%w: %s has a later copy, of generation %d, and here is that of %d: start the guest there; with -start it is started here, and the copy there replaced", failover.ErrRefused, there.Host, there.Generation, a.after)
	case there.Generation == a.after && there.State == protect.Created && !a.word && a.host >= there.Host:
		if a.host == there.Host {
			return 0, fmt.Errorf("%w: the other host is called %s as well: -peer leads to this host, or two hosts have the same -host", errUndecided, there.Host)
		}
		return 0, fmt.Errorf("%w: %s is about to start the guest as well, and comes first by its name", errUndecided, there.Host)
	}
	return a.after, nil
}

// goesOn says whether a host goes on with a guest of the generation after, given what
// the other host says: with nil it does, if the command says yes, where there is one.
func goesOn(held, command bool, after uint64, there protect.Standing, err error) error {
	switch {
	case errors.Is(err, errUnheard), err != nil && command:
		return nil
	case err != nil:
		return fmt.Errorf("%w: the other host lives, and has not said what it does: %w", errUndecided, err)
	case there.Generation > after:
		return fmt.Errorf("%w: %s has the guest, in generation %d", failover.ErrRefused, there.Host, there.Generation)
	case there.State == protect.SwitchingOver:
		return nil
	case there.State == protect.TakingOver,
		!held && there.State != protect.Waiting && there.State != protect.Concluded && !command:
		return fmt.Errorf("%w: %s is %v", errUndecided, there.Host, there.State)
	}
	return nil
}
