package protect

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/internal/wait"
	"github.com/gocolo/lockstep/vmstate"
)

// What befalls one host and nobody else: it leaves in good order, a part of it does not work, it
// is given an empty disk, its configuration is not that of the other, it fences.

var errGuest = errors.New("the VMM fails")

// ailing says what of a host's own does not work.
type ailing struct {
	loaded                      atomic.Bool  // a load has failed: the memory may be that of a synchronisation that was given up
	ran                         atomic.Bool  // the guest was resumed here
	unpaused                    atomic.Bool  // the last pause has failed, so that the guest runs
	pause, resume, load, commit atomic.Int64 // so many calls fail
	paused                      atomic.Int64 // a pause takes so long, in nanoseconds
	tarries                     atomic.Int64 // each other method takes so long
	spare                       atomic.Int64 // but so many calls before those do not fail
	fence                       atomic.Int64 // so many calls of its fencer fail, each a while later
	cuts                        atomic.Int64 // how often it has fenced
}

// vmFails returns the error of a VMM that fails.
func (h *host) vmFails() error {
	h.w.ailed.Store(true)
	return errGuest
}

// An ailingGuest is a guest whose VMM fails when the host's is told to.
type ailingGuest struct {
	*colotest.VM
	h *host
}

func (g ailingGuest) Pause(ctx context.Context) error {
	if d := g.h.ails.paused.Load(); d > 0 {
		if err := wait.For(ctx, time.Duration(d)); err != nil {
			return err
		}
	}
	fails := g.h.ails.fails(&g.h.ails.pause)
	g.h.ails.unpaused.Store(fails)
	if fails {
		return g.h.vmFails()
	}
	return g.VM.Pause(ctx)
}

func (g ailingGuest) Resume(ctx context.Context) error {
	if err := wait.For(ctx, time.Duration(g.h.ails.tarries.Load())); err != nil {
		return err
	}
	// A guest that has run here may be resumed by the end of its session while its job waits already, deposed.
	first := !g.h.ails.ran.Swap(true)
	if s := g.h.job.State(); first && g.h.w.kept != nil && !g.h.restored && (s == Created || s == Waiting) {
		g.h.w.startsAnew(g.h)
	}
	if g.h.ails.fails(&g.h.ails.resume) {
		return g.h.vmFails()
	}
	return g.VM.Resume(ctx)
}

func (g ailingGuest) Register(reg *vmstate.Registry) error {
	g.h.ails.tarry()
	if err := g.VM.Register(reg); err != nil {
		return err
	}
	return reg.Register(vmstate.Entry{Name: "ailing", Version: 1, MinVersion: 1}, ailingDevice{g.h})
}

// An ailingDevice is one whose state cannot be loaded, or committed, when the host is told so.
type ailingDevice struct{ h *host }

func (d ailingDevice) VMState(f *vmstate.Fields) {
	d.h.ails.tarry()
	if f.Loading() && d.h.ails.fails(&d.h.ails.load) {
		d.h.ails.loaded.Store(true)
		f.Fail(d.h.vmFails())
	}
}

// PostLoad implements vmstate.PostLoader. Where it fails the guest is torn.
func (d ailingDevice) PostLoad(uint32) error {
	d.h.ails.tarry()
	if d.h.ails.fails(&d.h.ails.commit) {
		return d.h.vmFails()
	}
	return nil
}

// A stonith is the Fencer of a simulated host: it kills the other hosts.
type stonith struct {
	s *simulation
	h *host
}

func (f stonith) Fence(ctx context.Context, generation uint64) error {
	if f.h.ails.fence.Load() > 0 && f.h.ails.fence.Add(-1) >= 0 {
		if err := wait.For(ctx, 150*time.Millisecond); err != nil {
			return err
		}
		return errors.New("the power switch does not answer")
	}
	for _, o := range f.s.living() {
		if runs := o.job.State().runs(); o != f.h && runs && o.job.Gate().Open() && !f.s.t.Failed() {
			f.s.t.Errorf("%s fences for generation %d while the gate of %s is open", f.h.name, generation, o.name)
		}
	}
	f.h.ails.cuts.Add(1)
	return nil
}

// tarry takes the time that a method takes now, in which nothing ends it.
func (a *ailing) tarry() {
	if d := a.tarries.Load(); d > 0 {
		time.Sleep(time.Duration(d))
	}
}

// fails reports whether a call fails now, of which so many are left to fail.
func (a *ailing) fails(left *atomic.Int64) bool {
	return left.Load() > 0 && a.spare.Add(-1) < 0 && left.Add(-1) >= 0
}

// heal ends it all.
func (a *ailing) heal() {
	for _, left := range []*atomic.Int64{&a.pause, &a.resume, &a.load, &a.commit, &a.paused, &a.tarries, &a.fence, &a.spare} {
		left.Store(0)
	}
}

// isFresh chooses what a seed has of this.
func (s *simulation) isFresh(seed uint64) {
	s.fresh = rand.New(rand.NewPCG(seed, 8))
	s.uneven = s.fresh.IntN(3) == 0
	s.cuts = s.fresh.IntN(4) == 0
	s.insists = s.fresh.IntN(2) == 0
	s.alone = s.fresh.IntN(3) == 0
	s.ailing = true
}

// varies gives a host a configuration of its own.
func (s *simulation) varies(c *Config) {
	draw := s.fresh
	if draw == nil {
		return
	}
	guest := c.Guest.(ailingGuest)
	if s.uneven {
		term := s.term
		if term == 0 {
			term = time.Second
		}
		c.Term = term * time.Duration(1+draw.IntN(3))
		c.Lost = DefaultLost/2 + time.Duration(draw.IntN(1500))*time.Millisecond
		c.LateResume = draw.IntN(3) == 0
		c.NoMemoryCopy = s.lean || c.checkMemory() == nil && draw.IntN(4) == 0
		c.CheckpointTimeout = time.Duration(500+draw.IntN(5000)) * time.Millisecond
		c.PeerTimeout = c.Lost + time.Duration(draw.IntN(8000)+1)*time.Millisecond
	}
	if s.cuts {
		c.Fencer = stonith{s, guest.h}
	}
	if !s.manual && !s.disks && c.Host == "a" && s.insists {
		c.Start = true // as a service does whose configuration nobody has changed since the first start
	}
}

// befalls makes one fault of a host.
func (s *simulation) befalls(h *host) {
	draw := s.fresh
	much := draw.IntN(1000)
	switch what := draw.IntN(12); what {
	case 0, 1:
		s.departs(h)
	case 2:
		n := int64(1 + much%3)
		s.say("%s fails %d times to resume its guest", h.name, n)
		h.ails.resume.Store(n)
	case 3:
		s.say("%s fails once to pause its guest", h.name)
		h.ails.pause.Store(1)
	case 4:
		s.say("%s fails to load a device", h.name)
		if h.ails.load.Store(1); much%2 == 0 {
			h.ails.commit.Store(1)
		}
	case 5:
		h.ails.paused.Store(int64(much) * int64(time.Millisecond) / 2)
		s.say("%s takes %v to pause its guest", h.name, time.Duration(h.ails.paused.Load()))
	case 6:
		n := int64(much % 8)
		h.ails.fence.Store(n)
		s.say("the fencer of %s fails %d times", h.name, n)
	default:
		s.blip(h)
	}
}

// blip has an operator call a verb, and the host or its links fail for a moment meanwhile.
func (s *simulation) blip(h *host) {
	draw := s.fresh
	short := func() time.Duration { return time.Duration(draw.IntN(1<<draw.IntN(11))) * time.Millisecond }
	for range 1 + draw.IntN(3) {
		if h.gone.Load() || h.over() {
			return
		}
		switch draw.IntN(6) {
		case 0, 1:
			s.verb(h, "switchover", h.job.Switchover)
		case 2:
			s.migrate(h)
		case 3:
			s.verb(h, "pause and resume", func(ctx context.Context) error { return s.pauses(ctx, h) })
		case 4:
			s.verb(h, "failover", func(context.Context) error { return h.job.Failover() })
		}
		time.Sleep(short())
		long, others := short(), s.facing(h)
		switch draw.IntN(5) {
		case 0:
			s.say("%s is cut off for %v", h.name, long)
			for _, o := range others {
				s.f.ways.part(h.name, o)
			}
		case 1:
			s.say("what %s sends does not arrive for %v", h.name, long)
			for _, o := range others {
				s.f.ways.quiet(h.name, o)
			}
		case 2:
			s.say("what is sent to %s does not arrive for %v", h.name, long)
			for _, o := range others {
				s.f.ways.quiet(o, h.name)
			}
		case 3:
			s.say("%s stands still for %v", h.name, long)
			h.suspend()
		case 4:
			s.say("%s does not reach its arbiter for %v", h.name, long)
			h.noArbiter.Store(true)
		}
		time.Sleep(long)
		reset := draw.IntN(2) == 0
		s.say("that is over, with resets %v", reset)
		s.f.ways.mend(reset)
		h.resume()
		h.noArbiter.Store(false)
	}
}

// departs has a host leave in good order, if another has the guest as well or has it alone, and
// come back. Something may befall the others meanwhile.
func (s *simulation) departs(h *host) {
	if !s.survives(h) {
		return
	}
	draw := s.fresh
	s.say("%s (%v) leaves", h.name, h.job.State())
	h.resume()
	h.migrates.Store(true) // its Run may end before, by a verb
	h.stop(errHalt)
	if draw.IntN(2) == 0 {
		time.Sleep(time.Duration(draw.IntN(1<<draw.IntN(9))) * time.Millisecond)
		for _, o := range s.facing(h) {
			switch draw.IntN(3) {
			case 0:
				s.say("part %s and %s", h.name, o)
				s.f.ways.part(h.name, o)
			case 1:
				s.say("silence from %s to %s", h.name, o)
				s.f.ways.quiet(h.name, o)
			case 2:
				s.say("%s does not reach its arbiter", o)
				if other := s.live[o]; other != nil {
					other.noArbiter.Store(true)
				}
			}
		}
	}
	select {
	case <-h.done:
	case <-time.After(2 * time.Minute):
		s.t.Errorf("%s, which leaves, is %v for ever", h.name, h.job.State())
		return
	}
	h.leave()
	s.ended = append(s.ended, h)
	time.Sleep(time.Duration(draw.IntN(1<<draw.IntN(11))) * time.Millisecond)
	s.start(h.name, false)
}
