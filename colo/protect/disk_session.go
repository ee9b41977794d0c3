package protect

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
	"github.com/gocolo/lockstep/replication"
)

// What a session does with the disks of its guest. Each call is noted for as long as it takes, so
// that one which a disk does not answer can be told of.

// group returns the disks as a session drives them.
func group(disks []*Disk) (g replication.Group) {
	for _, d := range disks {
		d.mu.RLock()
		if d.secondary != nil {
			g = append(g, &followed{d.secondary, d})
		} else {
			g = append(g, &led{d.primary, d})
		}
		d.mu.RUnlock()
	}
	return g
}

// A led is the primary of a Disk in the form that a session drives.
type led struct {
	*replication.Primary
	d *Disk
}

// Start implements replication.Replicator, as Checkpoint and Stop do, and Mark and Loaded
// replication.Marker.
func (l *led) Start(ctx context.Context) error {
	defer l.d.waits.end(l.d.waits.begin(opStart))
	return l.Primary.Start(ctx)
}

func (l *led) Mark(ctx context.Context, epoch uint64) error {
	defer l.d.waits.end(l.d.waits.begin(opMark))
	return l.Primary.Mark(ctx, epoch)
}

func (l *led) Loaded(ctx context.Context, epoch uint64) error {
	defer l.d.waits.end(l.d.waits.begin(opLoaded))
	return l.Primary.Loaded(ctx, epoch)
}

func (l *led) Checkpoint(ctx context.Context, epoch uint64) error {
	defer l.d.waits.end(l.d.waits.begin(opCheckpoint))
	return l.Primary.Checkpoint(ctx, epoch)
}

func (l *led) Stop(ctx context.Context, failover bool) error {
	defer l.d.waits.end(l.d.waits.begin(opStop))
	return l.Primary.Stop(ctx, failover)
}

// followed is the secondary of a Disk in the form that a session drives.
type followed struct {
	*replication.Secondary
	d *Disk
}

// Stop returns when no request of the primary is under way any more, whether the
// primary is dead or only slow. When this host goes on, the guest has this host's
// copy from then on. If the image hangs, the error matches replication.ErrHung, and nothing of what is
// under way is waited for.
func (f *followed) Stop(ctx context.Context, failover bool) error {
	defer f.d.waits.end(f.d.waits.begin(opStop))
	// A request of the primary may be one that hangs, which only the Secondary can tell.
	soon, cancel := context.WithCancel(ctx)
	if f.d.cfg.HungAfter >= 0 {
		soon, cancel = context.WithTimeout(ctx, cmp.Or(f.d.cfg.HungAfter, replication.DefaultHungAfter))
	}
	defer cancel()
	closed := f.closeExports(soon)
	if !failover {
		f.d.rest(soon, f.Secondary)
	}
	stopped := f.Secondary.Stop(ctx, failover)
	if errors.Is(stopped, replication.ErrHung) {
		return stopped
	}
	if soon.Err() != nil {
		closed = f.closeExports(ctx)
	}
	errs := []error{closed, stopped}
	if failover && !errors.Is(stopped, replication.ErrNotRunning) {
		over := f.d.image
		if stopped != nil {
			over = f.Secondary // the guest goes on over the overlays
		}
		f.d.mu.Lock()
		errs = append(errs, f.d.lead(over))
		f.d.mu.Unlock()
		f.d.tellGrown()
	}
	return errors.Join(errs...)
}

// closeExports returns when no request of the primary is under way.
func (f *followed) closeExports(ctx context.Context) error {
	var errs []error
	for _, e := range f.d.exports {
		errs = append(errs, e.Close(ctx))
	}
	return errors.Join(errs...)
}

// Start begins replication, with which the guest here may write again.
func (f *followed) Start(ctx context.Context) error {
	defer f.d.waits.end(f.d.waits.begin(opStart))
	err := f.Secondary.Start(ctx)
	if err == nil {
		f.d.idle.Store(false)
	}
	return err
}

// Prepare implements replication.Preparer.
func (f *followed) Prepare(ctx context.Context, epoch uint64) error {
	defer f.d.waits.end(f.d.waits.begin(opPrepare))
	return f.Secondary.Prepare(ctx, epoch)
}

// PrepareFailover implements replication.FailoverPreparer.
func (f *followed) PrepareFailover(ctx context.Context) error {
	defer f.d.waits.end(f.d.waits.begin(opStop))
	return f.Secondary.PrepareFailover(ctx)
}

// Checkpoint implements replication.Replicator.
func (f *followed) Checkpoint(ctx context.Context, epoch uint64) error {
	defer f.d.waits.end(f.d.waits.begin(opCheckpoint))
	return f.Secondary.Checkpoint(ctx, epoch)
}

// rest makes the disk take no more requests of the guest here, which does not go on. When a
// secondary has stopped, a request would reach the disk of the last checkpoint itself: one that
// was made before and comes late must not change that, nor wait at the gate, since this host
// could not follow again before that opens. A request that is still under way when ctx ends is not
// waited for: it is one that hangs.
func (d *Disk) rest(ctx context.Context, s *replication.Secondary) {
	d.mu.RLock()
	follows := d.secondary == s
	d.mu.RUnlock()
	if !follows {
		return
	}
	s.Drain()             // a write that is under way does not wait for room
	d.idle.Store(true)    // nothing more begins
	for !d.mu.TryLock() { // and not Lock, behind which others would wait for a request that hangs
		if wait.For(ctx, time.Millisecond) != nil {
			return
		}
	}
	d.mu.Unlock()
}
