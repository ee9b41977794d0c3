package protect

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Seeds from growSeeds on are those in which a disk grows, besides all that befalls the others: an operator
// has it made longer, wherever the guest runs or does not, and some images cannot be made longer for a
// while. What must hold: who runs the guest has a disk that is as long as the guest was told, and in the end
// both hosts have disks of one length.

// growSeeds is the first of them.
const growSeeds = 1 << 37

// growth says what a seed has of this.
type growth struct {
	draw *rand.Rand // nil: of seeds below growSeeds, or without disks that know whose copy they are

	mu    sync.Mutex
	told  int64        // how long the guest was told that the disk is, at most
	fails atomic.Int64 // so many images are not made longer

	asked         int
	grown, failed atomic.Int64
}

// maxGrowths bounds how often the disk of a seed grows.
const maxGrowths = 12

// mayGrow chooses whether a seed has any of it.
func (s *simulation) mayGrow(seed uint64) {
	if seed < growSeeds || s.kept == nil {
		return
	}
	o := &s.growth
	o.draw = rand.New(rand.NewPCG(seed, 14))
	s.world.growing = true
	s.grows = func(*host, int64) error {
		if o.fails.Load() > 0 && o.fails.Add(-1) >= 0 {
			o.failed.Add(1)
			return errSmall
		}
		return nil
	}
}

// befallsGrowth makes one fault of those, and reports whether it has made one.
func (s *simulation) befallsGrowth(h *host) bool {
	o := &s.growth
	if o.draw == nil || o.asked == maxGrowths || o.draw.IntN(4) > 0 {
		return false
	}
	o.asked++
	if o.draw.IntN(4) == 0 {
		o.fails.Store(int64(1 + o.draw.IntN(2)))
	}
	if r := s.runs(); r != nil && o.draw.IntN(4) > 0 {
		h = r
	}
	size := h.disk.Size() + int64(o.draw.IntN(3))*4096
	for _, image := range s.images { // one that is behind
		if o.draw.IntN(4) == 0 {
			size = max(size, image.Size())
		}
	}
	s.say("%s (%v): the disk is to have %d bytes, and %d images cannot", h.name, h.job.State(), size, o.fails.Load())
	within := 10 * time.Second
	if o.draw.IntN(3) == 0 {
		within = time.Duration(o.draw.IntN(1<<o.draw.IntN(30))) * time.Microsecond / 1000
	}
	s.verbs.Go(func() {
		ctx, cancel := context.WithTimeout(s.t.Context(), within)
		defer cancel()
		if h.job.Grow(ctx, "root", size) != nil {
			return
		}
		o.grown.Add(1)
		if h.gone.Load() {
			return
		}
		if is := h.disk.Size(); is < size {
			s.t.Errorf("%s has a disk of %d bytes, after it was made to have %d", h.name, is, size)
		}
		s.isTold(size)
	})
	if o.draw.IntN(2) == 0 { // and something befalls it meanwhile
		s.elapse(time.Duration(o.draw.IntN(1<<o.draw.IntN(8))) * time.Millisecond)
	}
	return true
}

// isTold notes that the guest was told how long its disk is.
func (s *simulation) isTold(size int64) {
	s.growth.mu.Lock()
	defer s.growth.mu.Unlock()
	s.growth.told = max(s.growth.told, size)
}

// haveGrown checks the disks of a pair that is in step.
func (s *simulation) haveGrown() {
	o := &s.growth
	if o.draw == nil {
		return
	}
	runs := s.runs()
	if runs == nil {
		return
	}
	o.mu.Lock()
	told := o.told
	o.mu.Unlock()
	if size := runs.disk.Size(); size < told && s.coldStarts == 0 && s.odd.backs == 0 {
		s.t.Errorf("the guest was told of %d bytes, and has %d on %s", told, size, runs.name)
	}
	all := int(o.grown.Load()) == o.asked // otherwise one may have ended between the two hosts, in a session that went on
	for _, h := range s.up() {
		if h.job.State() != Following || runs.job.State() != Protected {
			continue
		}
		if is, there := h.disk.Size(), runs.disk.Size(); is < there || all && is > there {
			s.t.Errorf("%s follows with a disk of %d bytes, and that of %s has %d", h.name, is, runs.name, there)
		}
	}
}

// ofGrowth adds up what the seeds have seen of this.
type ofGrowth struct{ seeds, asked, grown, failed int }

func (a *ofGrowth) add(s *simulation) {
	if o := &s.growth; o.draw != nil {
		*a = ofGrowth{a.seeds + 1, a.asked + o.asked, a.grown + int(o.grown.Load()), a.failed + int(o.failed.Load())}
	}
}

// check reports it, and what many seeds have seen nothing of.
func (a *ofGrowth) check(t *testing.T) {
	if a.seeds == 0 {
		return
	}
	t.Logf("in %d seeds disks grew, %d times of %d, and %d times an image did not become longer", a.seeds, a.grown, a.asked, a.failed)
	if a.seeds >= 100 && min(a.grown, a.failed) == 0 {
		t.Error("some of it has never happened")
	}
}
