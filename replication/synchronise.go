package replication

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/wait"
)

// copyStep is how much Synchronise locks, reads and sends at a time, in bytes.
const copyStep = 1 << 20

// SyncConfig says how Synchronise works.
type SyncConfig struct {
	// Sums reads the checksums of the secondary disk, see [Sums]. With it,
	// chunks that are the same already are not sent. Nil: all are.
	Sums io.ReaderAt
	// BytesPerSecond bounds how many bytes are read or skipped in a second, without holes;
	// zero: as many as the secondary takes.
	BytesPerSecond int64
	// Interval between two event.DiskSyncProgress; zero means 1 s.
	Interval time.Duration
}

// Synchronise copies to the attached secondary what it does not have, while
// the guest runs: all of the disk the first time, and after that what was
// written since the last checkpoint that both sides know of. Writes to what
// has been copied are forwarded and writes to what has not are not, so it
// takes one pass, however much the guest writes. Holes of the local disk are
// not read, and those that are zero on the secondary too, as far as that can
// tell, are not sent. When it returns nil, the secondary has a stable copy, and
// remains one.
//
// The configured bus is told about it on this goroutine: an
// event.DiskSyncProgress at the beginning, about every Interval, and when the
// copy is to be made stable; at the end an event.DiskSynchronised, or an
// event.DiskResynchronised if a secondary has been a copy before.
//
// If the Remote is lost the error is its *BrokenError; after attaching
// another, Synchronise goes on where it was. It also ends with ctx, with the
// same effect, and with a *BrokenError when the local disk fails (LocalErr), unless the guest is being
// brought away from that.
func (p *Primary) Synchronise(ctx context.Context, cfg SyncConfig) error {
	return p.dog.call(ctx, func() error { return p.synchronise(ctx, cfg) })
}

func (p *Primary) synchronise(ctx context.Context, cfg SyncConfig) error {
	f := p.link.Load()
	if f == nil {
		return fmt.Errorf("%w: no secondary is attached", ErrNotSynchronised)
	}
	if cfg.Interval == 0 {
		cfg.Interval = time.Second
	}
	t := teller{events: p.cfg.Events, dirty: p.peer.dirty, begin: time.Now(), again: p.synced}
	t.progress = event.DiskSyncProgress{Disk: p.cfg.Name, Phase: event.SyncCopy, Total: p.peer.dirty.Bytes()}
	t.tell(t.begin)
	buf := make([]byte, min(copyStep, p.size.Load()))
	var passed int64
	for pos := int64(0); ; {
		if err := cmp.Or(ctx.Err(), p.localFailed()); err != nil {
			return err
		}
		start, n, hole := p.nextStep(pos)
		if n == 0 && pos == 0 {
			break
		}
		pos = start + n // 0 after the last: then it begins again
		if n == 0 {
			continue
		}
		if hole {
			var err error
			if hole, err = p.copyHole(f, &cfg, start, n, &t.progress); err != nil {
				return err
			}
		}
		if !hole {
			n = min(n, int64(len(buf)))
			pos = start + n
			if err := p.copyRun(f, &cfg, buf[:n], start, &t.progress); err != nil {
				return err
			}
			passed += n
		}
		now := time.Now()
		if now.Sub(t.told) >= cfg.Interval {
			t.tell(now)
		}
		if cfg.BytesPerSecond > 0 {
			due := t.begin.Add(time.Duration(float64(passed) / float64(cfg.BytesPerSecond) * float64(time.Second)))
			if wait.For(ctx, due.Sub(now)) != nil {
				return ctx.Err()
			}
		}
	}
	t.progress.Phase = event.SyncFlush
	t.tell(time.Now())
	if err := f.flush(ctx, true, nil); err != nil {
		return err
	}
	p.synced = true
	t.end(time.Now())
	return nil
}

// teller publishes how far a synchronisation is.
type teller struct {
	events      *event.Bus
	dirty       *Bitmap
	again       bool // a synchronisation has completed before
	begin, told time.Time
	progress    event.DiskSyncProgress
}

func (t *teller) tell(now time.Time) {
	t.told = now
	e := &t.progress
	e.Remaining = t.dirty.Bytes()
	elapsed := now.Sub(t.begin)
	e.ElapsedNS = elapsed.Nanoseconds()
	if s := elapsed.Seconds(); s > 0 {
		e.Rate = int64(float64(e.Copied+e.Same) / s)
	}
	t.events.Publish(*e)
}

func (t *teller) end(now time.Time) {
	e := event.DiskSynchronised{
		Disk: t.progress.Disk, Copied: t.progress.Copied, Same: t.progress.Same, ElapsedNS: now.Sub(t.begin).Nanoseconds(),
	}
	if t.again {
		t.events.Publish(event.DiskResynchronised(e))
	} else {
		t.events.Publish(e)
	}
}

// copyRun copies one run of dirty chunks. Nobody writes them while they are read and sent. The
// other side's sums are read before that, so that no write waits for them: nothing but
// Synchronise changes there what is dirty.
func (p *Primary) copyRun(f *Forwarder, cfg *SyncConfig, buf []byte, start int64, done *event.DiskSyncProgress) error {
	n := int64(len(buf))
	var theirs chunkTable
	sums := cfg.Sums != nil && !p.onTheWay(f, start, n)
	if sums {
		if err := theirs.read(cfg.Sums, start, len(buf)); err != nil {
			return err
		}
	}
	h := p.locks.lock(start, n, false)
	defer p.locks.unlock(h)
	if err := readFull(p.local, buf, start); err != nil {
		return fmt.Errorf("replication: synchronise: %w", err)
	}
	differ := [][2]int64{{start, n}}
	if sums {
		differ = differ[:0]
		theirs.compare(start, buf, func(off, n int64) { differ = append(differ, [2]int64{off, n}) })
	}
	p.peer.copying(start, n)
	done.Same += n
	for _, d := range differ {
		if _, err := f.send(buf[d[0]-start:][:d[1]], d[0], d[1], false); err != nil {
			p.peer.dirty.Set(start, n)
			return err
		}
		done.Same -= d[1]
		done.Copied += d[1]
	}
	return nil
}

// onTheWay reports whether a write to dirty chunks is on its way to the other side, from before
// they were dirty. Where none is, none will be: writes to them are not forwarded.
func (p *Primary) onTheWay(f *Forwarder, off, n int64) bool {
	h := p.locks.lock(off, n, false) // nobody who has yet to look whether they are dirty
	defer p.locks.unlock(h)
	return f.overlapsAny(off, n)
}
