package replication

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Group is the disks of one guest, which are started, checkpointed and
// stopped together. It is itself a [Replicator], a [Marker], a [Preparer], a
// [Drainer] and a [Cutter]. A Group is used by one goroutine at a time; only Err,
// Cut, Drain and DiskInfo may be called from any.
//
// Where QEMU's replication_*_all functions stop at the first error and leave
// the rest as it was, a Group undoes a start that failed and stops all it can.
type Group []Replicator

var (
	_ Replicator = Group(nil)
	_ Marker     = Group(nil)
	_ Preparer   = Group(nil)
	_ Cutter     = Group(nil)
	_ Drainer    = Group(nil)
)

// MemberError tells which disk of a [Group] failed, by its index.
type MemberError struct {
	Index int
	Op    string // "start", "mark", "loaded", "prepare", "checkpoint", "stop" or "run"
	Err   error
}

func (e *MemberError) Error() string {
	return fmt.Sprintf("replication: disk %d: %s: %v", e.Index, e.Op, e.Err)
}

// Unwrap returns the cause.
func (e *MemberError) Unwrap() error { return e.Err }

// A starter, as a Secondary is, can be told before its Start that it is started with others, a
// promoter that not all of them could be told of the failover, and a completer that another one is at a checkpoint.
type (
	completer interface {
		Epoch() uint64
		outrunBy(epoch uint64)
	}
	starter interface {
		prepareStart(context.Context, ID) error
		// mayHaveStarted reports whether stable storage may say that a Start that has failed was made.
		mayHaveStarted() bool
		// startMissed says that the start that was prepared is to be made before anything else is, since other
		// disks have made it, or may have.
		startMissed()
	}
	promoter interface{ failOverAlone(context.Context) error }
)

func memberError(i int, op string, err error) error {
	if err == nil {
		return nil
	}
	return &MemberError{Index: i, Op: op, Err: err}
}

// Start starts the members in order. If one fails, those already started are
// stopped again, without failover and whatever becomes of ctx, and the errors
// are joined; of a [Secondary] all are then at the checkpoint of epoch 0, which the others make before
// they do anything else, or after a crash RecoverGroup does. Start may then be repeated; a [Primary] that was stopped again
// wants another Remote first.
func (g Group) Start(ctx context.Context) error {
	if len(g) > 1 {
		together := newID()
		err := each(g, "start", func(p starter) error { return p.prepareStart(ctx, together) })
		if err != nil {
			return err
		}
	}
	for i, r := range g {
		err := memberError(i, "start", r.Start(ctx))
		if err == nil {
			continue
		}
		errs := []error{err}
		if len(g) > 1 {
			g.tellMissed(i)
		}
		for j := i - 1; j >= 0; j-- {
			errs = append(errs, memberError(j, "stop", g[j].Stop(context.WithoutCancel(ctx), false)))
		}
		return errors.Join(errs...)
	}
	return nil
}

// tellMissed tells the members from number i on, the Start of which has failed, that they have missed it.
func (g Group) tellMissed(i int) {
	if s, ok := g[i].(starter); i == 0 && !(ok && s.mayHaveStarted()) {
		return // no disk is started
	}
	for _, m := range g[i:] {
		if s, ok := m.(starter); ok {
			s.startMissed()
		}
	}
}

// Prepare prepares those members that are Preparers, all at the same time,
// and joins their errors.
func (g Group) Prepare(ctx context.Context, epoch uint64) error {
	return each(g, "prepare", func(p Preparer) error { return p.Prepare(ctx, epoch) })
}

// Checkpoint makes all disks those of epoch. If there are several, all are prepared and
// asked for errors before the first is changed. If one fails after that, the host has
// failed and the group is torn; the error says which members. If the host crashes between
// two members, RecoverGroup brings them to one epoch.
func (g Group) Checkpoint(ctx context.Context, epoch uint64) error {
	if len(g) > 1 {
		if err := g.Prepare(ctx, epoch); err != nil {
			return err
		}
	}
	if err := g.Err(); err != nil {
		return err
	}
	return all(g, "checkpoint", func(r Replicator) error { return r.Checkpoint(ctx, epoch) })
}

// Err joins the errors of all members.
func (g Group) Err() error {
	return all(g, "run", Replicator.Err)
}

// Stop stops all members at the same time, also after one has failed, and joins the errors. A disk
// that hangs holds up no other, and its error, which matches ErrHung, names it; see
// PrimaryConfig.HungAfter and SecondaryConfig.HungAfter for how long it is waited for. If there are several members, a failover is ordered of all before the first carries it
// out. If a journal cannot record it, the guest may go on all the same, but not beyond the
// loss of this host: RecoverGroup then refuses disks of which some have gone on and others
// have not. Without failover, members that have prepared a checkpoint which others have made are taken to that one.
func (g Group) Stop(ctx context.Context, failover bool) error {
	if failover && len(g) > 1 {
		err := each(g, "stop", func(p FailoverPreparer) error { return p.PrepareFailover(ctx) })
		if err != nil { // it is Stop's again, as is one of these
			each(g, "stop", func(p promoter) error { return p.failOverAlone(ctx) })
		}
	}
	if !failover {
		g.tellOutrun()
	}
	return each(g, "stop", func(r Replicator) error { return r.Stop(ctx, failover) })
}

// tellOutrun tells each member that is a completer at which checkpoints the others are.
func (g Group) tellOutrun() {
	var all []completer
	for _, r := range g {
		if c, ok := r.(completer); ok {
			all = append(all, c)
		}
	}
	for _, c := range all {
		for _, other := range all {
			c.outrunBy(other.Epoch())
		}
	}
}

// Mark marks epoch on those members that are Markers, all at the same time
// since the guest is paused meanwhile, and joins their errors.
func (g Group) Mark(ctx context.Context, epoch uint64) error {
	return each(g, "mark", func(m Marker) error { return m.Mark(ctx, epoch) })
}

// Loaded tells those members that are Markers that epoch is loaded, and joins
// their errors.
func (g Group) Loaded(ctx context.Context, epoch uint64) error {
	return each(g, "loaded", func(m Marker) error { return m.Loaded(ctx, epoch) })
}

// Cut cuts those members that are Cutters, in order.
func (g Group) Cut() {
	for _, r := range g {
		if c, ok := r.(Cutter); ok {
			c.Cut()
		}
	}
}

// Drain drains those members that are Drainers.
func (g Group) Drain() {
	for _, r := range g {
		if d, ok := r.(Drainer); ok {
			d.Drain()
		}
	}
}

// DiskInfo returns the figures of those members that are Informers, in order.
// Unlike other methods it may be called from any goroutine.
func (g Group) DiskInfo() (all []DiskInfo) {
	for _, r := range g {
		if i, ok := r.(Informer); ok {
			all = append(all, i.DiskInfo())
		}
	}
	return all
}

func all(g Group, op string, do func(Replicator) error) error {
	errs := make([]error, len(g))
	for i, r := range g {
		errs[i] = memberError(i, op, do(r))
	}
	return errors.Join(errs...)
}

// each calls do for every member that is a T, concurrently if there are
// several, and returns when all have answered.
func each[T any](g Group, op string, do func(T) error) error {
	errs := make([]error, len(g))
	var wg sync.WaitGroup
	for i, r := range g {
		m, ok := r.(T)
		switch {
		case !ok:
		case len(g) == 1:
			errs[i] = memberError(i, op, do(m))
		default:
			wg.Go(func() { errs[i] = memberError(i, op, do(m)) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}
