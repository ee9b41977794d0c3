package replication

import (
	"context"
	"fmt"
	"io"
	"time"
)

// copyStep is how much Synchronise locks, reads and sends at a time, in bytes.
const copyStep = 1 << 20

// Progress tells how far a synchronisation is.
type Progress struct {
	Total     int64 // what was to be copied when it began, in bytes
	Copied    int64 // what has been sent
	Same      int64 // what did not need to be, by its checksum
	Remaining int64 // what is still to be looked at
	// Rate is how fast Remaining has shrunk since the beginning, in bytes
	// per second; zero: not known yet.
	Rate    float64
	Elapsed time.Duration
}

// Left estimates how long the rest will take; zero: not known yet.
func (p Progress) Left() time.Duration {
	if p.Rate <= 0 {
		return 0
	}
	return time.Duration(float64(p.Remaining) / p.Rate * float64(time.Second))
}

func (p Progress) String() string {
	const mib = 1 << 20
	s := fmt.Sprintf("%d of %d MiB, %.0f MiB/s", (p.Total-p.Remaining)/mib, p.Total/mib, p.Rate/mib)
	if p.Same > 0 {
		s += fmt.Sprintf(", %d MiB were the same", p.Same/mib)
	}
	if left := p.Left(); left > 0 {
		s += fmt.Sprintf(", %v left", left.Round(time.Second))
	}
	return s
}

// SyncConfig says how Synchronise works.
type SyncConfig struct {
	// Sums reads the checksums of the secondary disk, see [Sums]. With it,
	// chunks that are the same already are not sent. Nil: all are.
	Sums io.ReaderAt
	// BytesPerSecond bounds how fast chunks are gone through; zero: as fast
	// as the secondary takes them.
	BytesPerSecond int64
	// OnProgress is called on Synchronise's goroutine, at the beginning, at
	// the end, and about every Interval between.
	OnProgress func(Progress)
	// Interval between two calls of OnProgress; zero means 1 s.
	Interval time.Duration
}

// Synchronise copies to the attached secondary what it does not have, while
// the guest runs: all of the disk the first time, and after that what was
// written since the last checkpoint that both sides know of. Writes to what
// has been copied are forwarded and writes to what has not are not, so it
// takes one pass, however much the guest writes. When it returns nil, the
// secondary has a stable copy, and remains one.
//
// If the Remote is lost the error is its *BrokenError; after attaching
// another, Synchronise goes on where it was. It also ends with ctx, with the
// same effect.
func (p *Primary) Synchronise(ctx context.Context, cfg SyncConfig) error {
	f := p.link.Load()
	if f == nil {
		return fmt.Errorf("%w: no secondary is attached", ErrNotSynchronised)
	}
	if cfg.Interval == 0 {
		cfg.Interval = time.Second
	}
	begin := time.Now()
	told := begin
	done := Progress{Total: p.dirty.Bytes()}
	tell := func(now time.Time) {
		if cfg.OnProgress == nil {
			return
		}
		told = now
		done.Remaining = p.dirty.Bytes()
		done.Elapsed = now.Sub(begin)
		if s := done.Elapsed.Seconds(); s > 0 {
			done.Rate = float64(done.Copied+done.Same) / s
		}
		cfg.OnProgress(done)
	}
	tell(begin)
	buf := make([]byte, copyStep)
	var passed int64
	for pos := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		start, n := p.dirty.next(pos, copyStep)
		if n == 0 && pos == 0 {
			break
		}
		pos = start + n // 0 after the last: another look from the beginning
		if n == 0 {
			continue
		}
		if err := p.copyRun(f, &cfg, buf[:n], start, &done); err != nil {
			return err
		}
		passed += n
		now := time.Now()
		if now.Sub(told) >= cfg.Interval {
			tell(now)
		}
		if cfg.BytesPerSecond > 0 {
			due := begin.Add(time.Duration(float64(passed) / float64(cfg.BytesPerSecond) * float64(time.Second)))
			if err := sleep(ctx, due.Sub(now)); err != nil {
				return err
			}
		}
	}
	if err := f.flush(ctx, nil); err != nil {
		return err
	}
	tell(time.Now())
	return nil
}

// copyRun copies one run of dirty chunks, which nobody writes meanwhile.
func (p *Primary) copyRun(f *Forwarder, cfg *SyncConfig, buf []byte, start int64, done *Progress) error {
	h := p.locks.lock(start, int64(len(buf)), false)
	defer p.locks.unlock(h)
	if err := readFull(p.local, buf, start); err != nil {
		return fmt.Errorf("replication: synchronise: %w", err)
	}
	send := func(off, n int64) error {
		_, err := f.send(buf[off-start:off-start+n], off, n, false)
		if err == nil {
			done.Copied += n
		}
		return err
	}
	if cfg.Sums == nil {
		// The bits are cleared first: if the answer is an error, perhaps at
		// once, they are set again.
		p.dirty.Clear(start, int64(len(buf)))
		if err := send(start, int64(len(buf))); err != nil {
			p.dirty.Set(start, int64(len(buf)))
			return err
		}
		return nil
	}
	var differ [][2]int64
	err := compareSums(cfg.Sums, start, buf, func(off, n int64) { differ = append(differ, [2]int64{off, n}) })
	if err != nil {
		return err
	}
	p.dirty.Clear(start, int64(len(buf)))
	done.Same += int64(len(buf))
	for _, d := range differ {
		if err := send(d[0], d[1]); err != nil {
			p.dirty.Set(start, int64(len(buf)))
			return err
		}
		done.Same -= d[1]
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
