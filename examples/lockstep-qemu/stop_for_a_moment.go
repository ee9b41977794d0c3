package main

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/event/qmp"
)

// A guest is stopped for a moment while the copy of a disk is ended, and has to run
// again whatever happens meanwhile; unless its guard has stopped it too, which must
// last.

// standing calls do while the guest stands still, for as long as that takes: to end a copy.
// If a job ends while a write of the guest is being copied, QEMU 7.2 writes to memory that it
// has freed; a guest that stands still writes nothing.
func (o *protectOptions) standing(ctx context.Context, m *qmp.Client, do func() error) (err error) {
	// To stop a guest is to wait for its writes, and so for the standby.
	for _, d := range o.disks {
		var refused *qmp.Error
		args := map[string]any{"instances": []map[string]string{{"type": "block-node", "node-name": d.node()}}}
		if err := m.Do(ctx, "yank", args, nil); err != nil && !errors.As(err, &refused) {
			return err
		}
	}
	if o.begins != nil {
		o.begins()
	}
	var st struct{ Status string }
	if err := m.Do(ctx, "query-status", nil, &st); err != nil {
		return err
	}
	if st.Status != "running" {
		return do()
	}
	if o.expectStop != nil {
		defer o.expectStop()()
	}
	// Whatever becomes of ctx, the guest runs again.
	defer func() {
		ctx, cancel := graced(ctx, 10*time.Second, o.slowness())
		defer cancel()
		err = errors.Join(err, o.resume(ctx, m))
	}()
	if err := m.Do(ctx, "stop", nil, nil); err != nil {
		return err
	}
	return do()
}

// answered reports whether a QEMU has done what it was told to, or has refused it.
func answered(err error) bool {
	var refused *qmp.Error
	return err == nil || errors.As(err, &refused)
}

// resume makes a guest run again that was stopped for a moment. It tries goOn until
// there is an answer or ctx ends, over a new connection if the last has failed: nothing else
// would let the guest run.
func (o *protectOptions) resume(ctx context.Context, m *qmp.Client) error {
	permit := o.permit
	if permit == nil {
		permit = func(cont func() error) error { return cont() }
	}
	for {
		if o.current != nil {
			m = o.current()
		}
		failed := false // the connection has, not only this once
		err := permit(func() error {
			ask, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			err := o.goOn(ask, m)
			failed = err != nil && ask.Err() == nil
			return err
		})
		if !answered(err) && failed && o.qmp != "" {
			if o.current == nil {
				m.Close() // a QEMU serves one at a time
			}
			err = permit(func() error {
				ask, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				m, err := qmp.Dial(ask, o.qmp)
				if err != nil {
					return err
				}
				defer m.Close()
				return o.goOn(ask, m)
			})
			if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) { // there is no QEMU any more
				return err
			}
		}
		if answered(err) {
			return err
		}
		select {
		case <-time.After(tick):
		case <-ctx.Done():
			return err
		}
	}
}

// goOn has a guest that was stopped run again. A QEMU 7.2 that is told to continue in the midst of a checkpoint
// deadlocks, and nobody can know whether one is about to begin. But in COLO it runs its guest itself at the end of
// each checkpoint, and begins one when it is given a delay.
func (o *protectOptions) goOn(ctx context.Context, m *qmp.Client) error {
	for asked := false; ; {
		var migration progress
		if err := m.Do(ctx, "query-migrate", nil, &migration); err != nil {
			return err
		}
		if migration.Status != "colo" {
			return m.Do(ctx, "cont", nil, nil)
		}
		if !asked {
			asked = true
			if err := m.Do(ctx, "migrate-set-parameters", map[string]any{"x-checkpoint-delay": o.delay.Milliseconds()}, nil); err != nil {
				return err
			}
		}
		var st struct{ Status string }
		if err := m.Do(ctx, "query-status", nil, &st); err != nil {
			return err
		}
		if st.Status != "paused" { // the checkpoint has begun, at least
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// halt stops the guest for the guard. A resume that has begun ends before, and none begins until
// the QEMU has the order.
func (g *guardian) halt(ctx context.Context) error {
	g.resuming.Lock()
	defer g.resuming.Unlock()
	g.halted = true
	return g.order(ctx, "stop", nil)
}

// unhalt lets the guest run again that halt has stopped.
func (g *guardian) unhalt(ctx context.Context) error {
	g.resuming.Lock()
	defer g.resuming.Unlock()
	g.halted = false
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return g.goOn(ctx, g.monitor())
}

// begins forgets that the guard had stopped the guest: if it runs now, somebody has
// given cont since, and what stops it from now on is said by halted.
func (g *guardian) begins() {
	g.resuming.Lock()
	defer g.resuming.Unlock()
	g.halted = false
}

// permit calls cont for a guest that was stopped for a moment, unless the guard has stopped
// it meanwhile.
func (g *guardian) permit(cont func() error) error {
	g.resuming.Lock()
	defer g.resuming.Unlock()
	if g.halted {
		return nil
	}
	return cont()
}

// expectStop notes that this program is about to stop the guest and to run it again, so
// that no operator is taken to have done it. The function that it returns notes that this
// is over.
func (g *guardian) expectStop() (over func()) {
	g.set(func() { g.settling++ })
	return func() { g.set(func() { g.settling, g.settled = g.settling-1, time.Now() }) }
}
