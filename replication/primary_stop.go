package replication

import (
	"context"
	"errors"
)

// Stop implements [Replicator]: the guest goes on with the local disk alone, with
// failover or without, and the secondary is detached. With failover the copy begins a
// new generation, so that it is known which side has gone on. Stop returns an error if
// it could not record that; each write of the guest then tries to record it again, and
// as long as that fails, returns the error and changes nothing. Without failover the
// copy begins the generation at the first write, if no Remote is attached before.
//
// Of a disk that hangs (ErrHung) only the connection is closed: the guest has no disk here.
func (p *Primary) Stop(ctx context.Context, failover bool) error {
	err := p.dog.call(ctx, func() error { return p.stop(failover) })
	if errors.Is(err, ErrHung) {
		p.Cut()
	}
	return err
}

func (p *Primary) stop(failover bool) error {
	defer p.tellFailed()
	// An Attach may be under way unless it runs, and is not waited for.
	if st := p.State(); st != Running {
		return notStopped(st)
	}
	p.steer.Lock()
	defer p.steer.Unlock()
	if st := p.State(); st != Running {
		return notStopped(st)
	}
	p.mu.Lock()
	p.state.Store(uint32(Done))
	p.mu.Unlock()
	// Writers who wait for room hold their ranges; this sends them on.
	p.link.Load().Stop(context.Background(), false)
	h := p.lockAll()
	defer p.locks.unlock(h)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.detach()
	p.changed()
	if failover {
		err := p.goAlone()
		p.resumed.Store(err != nil) // then no write may change what no record accounts for
		return err
	}
	p.resumed.Store(p.used) // the first write tells which way it goes on
	return nil
}

// notStopped returns what Stop returns in a state in which there is nothing to stop.
func notStopped(st State) error {
	if st == Done {
		return nil
	}
	return ErrNotRunning
}

// Cut implements [Cutter]: it closes the Remote. Writers that wait for room in the
// window, or for Loaded, go on with the local disk alone, and the account of what
// the secondary lacks has what they write. Err returns a *BrokenError that matches
// ErrCut; no event is published. Stop, or another Attach, follows.
func (p *Primary) Cut() {
	if f := p.link.Load(); f != nil {
		f.Cut()
	}
}

// devices returns what a watchdog watches: where the local disk is a Secondary that was promoted, the
// devices of that, whose Commit takes as long as there is to copy.
func (p *Primary) devices() []*stableDisk {
	all := []*stableDisk{p.local}
	if s, ok := p.local.Disk.(*Secondary); ok {
		all = s.devices()
	}
	return all
}
