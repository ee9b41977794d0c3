package replication

import (
	"time"

	"github.com/gocolo/lockstep/event"
)

// A write of the secondary's guest for which the active overlay has no room waits, without
// a lock, for the checkpoint that empties it. It must not wait while the guest is being
// paused, for that checkpoint or because the primary is lost: a vCPU that waits in a write
// would keep the guest from being paused. An eighth of the overlay is kept spare for the
// writes that wait at that moment.

// minSpare is the smallest bound, in slots, of an overlay that keeps some spare.
const minSpare = 64

// keepSpare reserves an eighth of an overlay for writes that cannot wait, unless the
// overlay has room for a whole disk of size bytes.
func (o *overlay) keepSpare(size int64) {
	b0, b1 := blockRange(0, size)
	if o.max >= minSpare && !o.fits(b0, b1, true) {
		o.spare = o.max / 8
	}
}

func (c *SecondaryConfig) fullTimeout() time.Duration {
	if c.FullTimeout == 0 && c.Events != nil {
		return defaultTimeout
	}
	return c.FullTimeout
}

// awaitCheckpoint waits until it is worth trying again to write [off, off+n), which
// needs slots in the overlay if withSlots, and returns nil then. It returns ErrFenced,
// or err if there will be no room in time. The caller has read freed and urgent before
// its last try, so that a change since then makes it try again. until is when the
// write has waited long enough; the zero time: it begins to wait now. The caller holds
// no lock.
func (s *Secondary) awaitCheckpoint(freed <-chan struct{}, urgent bool, off, n int64, withSlots bool, until *time.Time, err error) error {
	b0, b1 := blockRange(off, n)
	timeout := s.cfg.fullTimeout()
	if timeout <= 0 || urgent || !s.active.fits(b0, b1, withSlots) {
		return err
	}
	if s.active.urgent.Load() {
		return nil // writes have become urgent since, and may take the spare room
	}
	if until.IsZero() {
		*until = time.Now().Add(timeout)
		s.cfg.Events.Publish(event.DiskOverlayFull{
			Mode: event.ModeSecondary, Disk: s.cfg.Name, Overlay: s.active.name, Epoch: s.Epoch(),
			Bytes: s.active.usedBytes(), Bound: int64(s.active.max) * BlockSize,
		})
	}
	t := time.NewTimer(time.Until(*until))
	defer t.Stop()
	select {
	case <-freed:
		return nil
	case <-s.gate.fenced:
		return ErrFenced
	case <-t.C:
		return err
	}
}

// Drain implements [Drainer]: writes that wait for a checkpoint are made in what
// the active overlay has to spare, and those for which that is too little get
// ErrFull, as do all until the next Checkpoint or the end of the run.
func (s *Secondary) Drain() {
	s.active.urgent.Store(true)
	s.full.free()
}

// Cut implements [Cutter]: a Secondary's guest waits for the primary in nothing but
// a checkpoint that makes room, so it is Drain.
func (s *Secondary) Cut() { s.Drain() }
