package replication

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/wait"
)

// Repair says which copy is overwritten with the other where they differ.
type Repair uint8

// The directions of a repair.
const (
	RepairNone      Repair = iota
	RepairSecondary        // the secondary's copy is overwritten
	RepairPrimary          // the primary's copy is overwritten; the guest then finds other data than it had
)

// VerifyConfig says how VerifyOnline works.
type VerifyConfig struct {
	// Sums reads the checksums of the secondary disk, see [Sums]. Nil: Secondary
	// is compared byte by byte.
	Sums io.ReaderAt
	// Secondary reads the secondary disk, for instance over a connection of its
	// own to the Export. It is needed without Sums, and for RepairPrimary.
	Secondary io.ReaderAt
	Repair    Repair
	// BytesPerSecond bounds how many bytes are compared in a second; zero: as many as both
	// sides can.
	BytesPerSecond int64
}

// VerifyOnline compares the local disk with that of the attached secondary, while the
// guest runs and replication does: step by step, with what is being compared locked
// against the guest's writes, and after those before have arrived. It returns the chunks
// that differ, as they were found, and repairs them if VerifyConfig says so; a repair of
// the secondary is forwarded like a write, and waits like one where the secondary has no
// room for what it replaces. What Synchronise is still to copy is left out.
//
// A write of the guest to the step, of 1 MiB, waits while the other side is read, since both sides
// have to stand still. Cut does not end that wait: close what VerifyConfig reads with as well when
// the secondary is given up, or give it a timeout, as an nbd.Client has.
//
// At the end the bus is told, with an event.DiskVerified. The error is
// ErrNotRunning without a secondary, ctx's, that of a side that could not be
// read or written, ErrFull if a repair has waited for ForwarderConfig.Timeout, or
// the *BrokenError; what was found until then is returned with it.
func (p *Primary) VerifyOnline(ctx context.Context, cfg VerifyConfig) (differ *Bitmap, err error) {
	differ = NewBitmap(p.size.Load())
	f := p.link.Load()
	if f == nil {
		return differ, ErrNotRunning
	}
	if cfg.Secondary == nil && (cfg.Sums == nil || cfg.Repair == RepairPrimary) {
		return differ, fmt.Errorf("replication: verify: nothing to read the secondary with")
	}
	v := verifier{p: p, f: f, cfg: cfg, differ: differ, ours: make([]byte, copyStep), theirs: make([]byte, copyStep)}
	begin := time.Now()
	for off := int64(0); off < p.size.Load(); off += copyStep {
		n := min(copyStep, p.size.Load()-off)
		if err := v.step(ctx, off, n); err != nil {
			return differ, err
		}
		if cfg.BytesPerSecond > 0 {
			due := begin.Add(time.Duration(float64(off+n) / float64(cfg.BytesPerSecond) * float64(time.Second)))
			if wait.For(ctx, time.Until(due)) != nil {
				return differ, ctx.Err()
			}
		}
	}
	p.cfg.Events.Publish(event.DiskVerified{
		Disk: p.cfg.Name, Compared: v.compared, Different: differ.Bytes(), Repaired: v.repaired, ElapsedNS: time.Since(begin).Nanoseconds(),
	})
	return differ, nil
}

// verifier is one run of Verify.
type verifier struct {
	p                  *Primary
	f                  *Forwarder
	cfg                VerifyConfig
	differ             *Bitmap
	ours, theirs       []byte
	compared, repaired int64
	half               bool // the room for pre-images is half full
}

// step compares a range, after the writes on their way to it have arrived.
func (v *verifier) step(ctx context.Context, off, n int64) error {
	compared := v.compared
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		freed := v.p.room.wait()
		h := v.p.locks.lock(off, n, false)
		if err := v.f.arrived(ctx, off, n); err != errHeld {
			if err == nil {
				err = v.compare(off, n)
			}
			v.p.locks.unlock(h)
			if v.half && !v.p.room.asked.Load() {
				v.p.askForCheckpoint(false)
			}
			if err == errNoRoom {
				if err = v.awaitRoom(ctx, freed); err == nil {
					v.compared = compared // once more, without what is repaired
					continue
				}
			}
			return err
		}
		// A write that is held arrives after Loaded, and Loaded must not wait for this
		// lock.
		v.p.locks.unlock(h)
		if err := v.f.unheld(ctx); err != nil {
			return err
		}
	}
}

// awaitRoom waits for the Mark after which the secondary has room for pre-images again. The
// caller holds no lock.
func (v *verifier) awaitRoom(ctx context.Context, freed <-chan struct{}) error {
	v.p.askForCheckpoint(true)
	t := time.NewTimer(v.p.cfg.Forward.timeout())
	defer t.Stop()
	select {
	case <-freed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return fmt.Errorf("replication: verify: no checkpoint has made room for a repair: %w", ErrFull)
	}
}

// compare compares a range that stands still on both sides.
func (v *verifier) compare(off, n int64) error {
	for end := off + n; off < end; {
		run, dirty := v.p.peer.dirty.run(off, end-off)
		if !dirty {
			if err := v.compareRun(off, run); err != nil {
				return err
			}
		}
		off += run
	}
	return nil
}

func (v *verifier) compareRun(off, n int64) error {
	ours := v.ours[:n]
	if err := readFull(v.p.local, ours, off); err != nil {
		return fmt.Errorf("replication: verify: %w", err)
	}
	v.compared += n
	var found [][2]int64
	note := func(off, n int64) { found = append(found, [2]int64{off, n}) }
	if v.cfg.Sums != nil {
		if err := compareSums(v.cfg.Sums, off, ours, note); err != nil {
			return err
		}
	} else {
		theirs := v.theirs[:n]
		if err := readFull(v.cfg.Secondary, theirs, off); err != nil {
			return fmt.Errorf("replication: verify: the secondary: %w", err)
		}
		for at := int64(0); at < n; at += ChunkSize {
			to := min(at+ChunkSize, n)
			if !bytes.Equal(ours[at:to], theirs[at:to]) {
				note(off+at, to-at)
			}
		}
	}
	for _, d := range found {
		v.differ.Set(d[0], d[1])
		if err := v.repair(ours[d[0]-off:][:d[1]], d[0]); err != nil {
			return err
		}
	}
	return nil
}

// repair overwrites one copy at off with the other; ours is the primary's content. The error
// is errNoRoom if the secondary has no room for all of what that replaces; a part may be
// repaired then.
func (v *verifier) repair(ours []byte, off int64) error {
	n := int64(len(ours))
	switch v.cfg.Repair {
	case RepairSecondary:
		if err := v.p.peer.begin(off, n); err != nil {
			return err
		}
		for c := int64(0); len(ours) > 0; ours, off = ours[c:], off+c {
			c = min(int64(len(ours)), v.p.room.most())
			half, err := v.p.room.takeData(off, c)
			switch v.half = v.half || half; {
			case err != nil && !v.p.room.ever(off, c):
				return fmt.Errorf("replication: verify: no checkpoint makes room for a repair: %w", ErrFull)
			case err != nil:
				return errNoRoom
			}
			if _, err := v.f.send(ours[:c], off, c, false); err != nil {
				v.p.peer.dirty.Set(off, c)
				return err
			}
		}
	case RepairPrimary:
		theirs := v.theirs[:n]
		if err := readFull(v.cfg.Secondary, theirs, off); err != nil {
			return fmt.Errorf("replication: verify: the secondary: %w", err)
		}
		if err := v.p.peer.begin(off, n); err != nil {
			return err
		}
		if err := writeFull(v.p.local, theirs, off); err != nil {
			v.p.peer.dirty.Set(off, n)
			return fmt.Errorf("replication: verify: %w", err)
		}
	default:
		return nil
	}
	v.repaired += n
	return nil
}
