package protect

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
)

// A simulation is a pair of hosts to which faults happen that a seed chooses, two
// and three at a time; in one seed of three it is three hosts, of which a pair has the
// guest: the third takes the place of one that has died, which comes back later to take
// the place of the next. What runs is this package and everything below it: sessions,
// leases, disks, the buffer of the NIC; in one seed of eight the comparing [Proxy],
// over guests that differ now and then; in one seed of four the guest has two NICs and two
// disks. From kindSeeds on clocks run at other rates, the clock of the day is set, certificates are
// renewed, or three hosts have disks that outlive them; from oddSeeds on persons make mistakes, too, and
// from furtherSeeds on verbs are given up and methods take their time; from growSeeds on disks grow, and from
// versionSeeds on hosts speak other versions, and from turnSeeds on more befalls a guest that is handed over. An operator switches over, migrates,
// pauses, and says who is dead. The network, the arbiter's store, the
// images, the clients and the clock are in memory. A seed chooses the same faults at
// the same times again, and every choice of the network's; which of the goroutines
// that can run at one instant runs first, the runtime chooses (see
// internal/simulate, with which a seed is the same to the last bit).
//
// What must hold, whatever happens: no frame leaves a host whose gate is shut, or
// while another's is open; no write is acknowledged by a host whose gate is shut;
// the client finds one guest's history; each guest is in a state that its history
// leads to, and its disk is what its memory says; once the faults have stopped the
// pair is in step again, in bounded time; and nothing is left running.
type simulation struct {
	*world
	rng       *rand.Rand
	stands    bool             // a host stands still for longer than anybody waits for it
	wears     bool             // the disk of a primary fails while its secondary dies
	breaks    bool             // a switchover is broken off
	begins    bool             // the beginning of a session is broken off
	more      *rand.Rand       // of what was added later, so that a seed does as before what it did
	newer     *rand.Rand       // and later still; nil: of a seed that is kept, and does none of that
	wide      *rand.Rand       // the same, of what was added then
	latest    *rand.Rand       // of what was added last; nil: of any seed that is kept
	fresh     *rand.Rand       // of what befalls one host and nobody else; nil: of seeds below freshSeeds
	later     *rand.Rand       // of what was added after that; nil: of seeds below laterSeeds
	kinds     kinds            // of seeds from kindSeeds on
	odd       odd              // of seeds from oddSeeds on
	further   further          // of seeds from furtherSeeds on
	growth    growth           // of seeds from growSeeds on
	versioned versioned        // of seeds from versionSeeds on
	turns     turns            // of seeds from turnSeeds on
	uneven    bool             // the hosts are configured differently
	cuts      bool             // they have fencers
	alone     bool             // there is no arbiter, unless there are three hosts
	insists   bool             // host a is always told to start the guest
	live      map[string]*host // by name, the process that was booted last; nil: none was
	dead      []*host
	ended     []*host // that followed nobody, and were booted anew
	steps     steps
	early     early
	swift     bool          // faults follow each other soon
	patience  time.Duration // for which a host that is not heard counts as alive; 0: what it is by default
	lostAt    time.Time     // when the guest was seen to be lost; zero: it is not

	pausing  atomic.Int64  // verbs that will resume what they pause
	migrated int           // hosts that have ended so
	fenced   atomic.Int64  // hosts that went on by an operator's word
	word     atomic.Uint64 // the last generation that one holds so, or held

	diskless   bool                  // the disks that are left start no guest
	coldStarts int                   // how often all hosts have died
	concluded  [len(conclusions)]int // how often the protection was ended on purpose

	begun  bool // a session was broken off while its first state was sent or loaded
	third  bool // the third host was in step with another
	tended int  // how many
	saying sync.Mutex
	log    []string // guarded by saying
	verbs  sync.WaitGroup
	reach  atomic.Int64 // how long making a connection takes at most, in nanoseconds
}

func (s *simulation) say(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	s.saying.Lock()
	defer s.saying.Unlock()
	s.log = append(s.log, fmt.Sprintf("%8s ", time.Since(s.began).Round(time.Millisecond))+line)
	s.record.add("fault", line, len(s.log))
}

// longest is more than a seed lasts, by the clock of its bubble; one from kindSeeds on may last twice as
// long.
const longest = 90 * time.Second

func (s *simulation) lastsAtMost() time.Duration {
	if s.kinds.draw != nil {
		return 2 * longest
	}
	return longest
}

// epochOfBubbles is when the clock of a bubble begins.
var epochOfBubbles = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// newSimulation makes the world of a seed.
func newSimulation(t *testing.T, seed uint64, record *trace, counts *counts) *simulation {
	kinds := kindsOf(seed) // before anybody looks at the clock
	w := newWorld(t)
	w.record, w.counts = record, counts
	if record != nil {
		record.began = w.began
	}
	w.lean = seed%4 == 1 && (&Config{NoMemoryCopy: true}).checkMemory() == nil
	s := &simulation{world: w, rng: rand.New(rand.NewPCG(seed, 0)), more: rand.New(rand.NewPCG(seed, 2)), live: map[string]*host{}, kinds: kinds}
	w.guest.Interval = time.Duration(10+2*s.rng.IntN(20)) * time.Millisecond
	s.paces(seed)
	s.sendsEarly(seed)
	if !slices.Contains(keptSeeds, seed) {
		s.newer = rand.New(rand.NewPCG(seed, 3))
		s.wide = rand.New(rand.NewPCG(seed, 6))
	}
	if s.newer != nil && !slices.Contains(keptAsTheyAre, seed) {
		s.latest = rand.New(rand.NewPCG(seed, 7))
		if seed >= freshSeeds {
			s.isFresh(seed)
			if seed >= laterSeeds {
				s.isLater(seed)
				s.isOdd(seed)
				s.isFurther(seed)
			}
		}
	}
	s.stands = seed%8 == 5
	if w.compared = seed%8 == 0; w.compared {
		w.guest.TSCPerMille = 1 + s.more.IntN(20) // more, and the guests would agree in nothing
	}
	s.widens(seed)
	s.remembers()
	if seed%8 == 4 {
		s.addThird(s.more)
		w.lean = s.more.IntN(4) == 0 && (&Config{NoMemoryCopy: true}).checkMemory() == nil
	}
	s.hasThree()
	// Memory remembers every round of a seed.
	for w.guest.Ring = 256; time.Duration(w.guest.Ring)*w.guest.Interval < s.lastsAtMost(); w.guest.Ring *= 2 {
	}
	if w.disks = s.rng.IntN(2) == 0 || s.kinds.three; w.disks {
		w.size = 64 << 10
		w.guest.Disk, w.guest.DiskEvery = uint64(w.size), 2
		w.makeImages()
	}
	w.manual = s.fresh != nil && s.alone && len(w.names) == 2
	s.lasts()
	s.mayGrow(seed)
	s.hasItsKind(seed)
	s.isVersioned(seed)
	s.mayTurn(seed)
	s.heed(seed)
	s.wears = w.disks && seed%8 == 6
	s.breaks = seed%8 == 2
	s.begins = seed%8 == 7 && s.newer != nil
	if seed%8 == 3 && s.newer != nil {
		w.channels = s.newer.IntN(4)
	}
	o, err := colotest.NewOracle(w.guest)
	if err != nil {
		t.Fatal(err)
	}
	w.oracle = o
	// How long a message takes, and by how much more some do. The network draws
	// for itself, so that its traffic does not change the faults.
	base := []time.Duration{0, 100 * time.Microsecond, time.Millisecond, 8 * time.Millisecond}[s.rng.IntN(4)]
	if s.begins && base == 0 {
		base = 4 * time.Millisecond // or all is over at once
	}
	jitter := []time.Duration{0, time.Millisecond, 30 * time.Millisecond}[s.rng.IntN(3)]
	network := rand.New(rand.NewPCG(seed, 1))
	var mu sync.Mutex
	w.f.ways = newWays(w.newest, func() time.Duration {
		mu.Lock()
		defer mu.Unlock()
		d := base
		if jitter > 0 && network.IntN(8) == 0 {
			d += time.Duration(network.Int64N(int64(jitter)))
		}
		return d
	})
	if s.newer != nil && s.newer.IntN(8) == 0 {
		s.reach.Store(int64(s.newer.IntN(300)) * int64(time.Millisecond))
	}
	w.f.ways.takes = func() time.Duration {
		most := s.reach.Load()
		if most == 0 {
			return 0
		}
		mu.Lock()
		defer mu.Unlock()
		return time.Duration(network.Int64N(most))
	}
	return s
}

// newest returns the host of that name that was booted last.
func (w *world) newest(name string) *host {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range slices.Backward(w.hosts) {
		if h.name == name {
			return h
		}
	}
	return nil
}

func (s *simulation) start(name string, first bool) {
	differs := s.differs(name)
	if first {
		differs = nil
	}
	h := s.boot(name, first, func(c *Config) {
		c.Channels.Count = s.channels
		c.Lost = s.patience
		c.Session.Step = s.steps.passes
		s.varies(c)
		s.listens(name, c)
		if c.Session.EarlyShare = s.early.share; s.early.share > 0 {
			c.Session.Trace = s.early.hears
		}
		if differs != nil {
			differs(c)
		}
	})
	if s.live[name] = h; differs != nil {
		s.odd.unlike[h] = true
	}
}

// up returns the hosts that run, as far as anybody knows.
func (s *simulation) up() (up []*host) {
	for _, name := range s.names {
		if h := s.live[name]; h != nil && !h.gone.Load() {
			up = append(up, h)
		}
	}
	return up
}

// living returns the same as up, in any order and on any goroutine.
func (w *world) living() (up []*host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.hosts {
		if !h.gone.Load() {
			up = append(up, h)
		}
	}
	return up
}

// run is one seed. It returns whether the guest died with the only host, or the
// only disk, that had it, which no pair survives.
func (s *simulation) run() (lost bool) {
	retires := s.operates()
	defer retires()
	if len(s.names) > 2 && s.more.IntN(2) == 0 {
		s.start("c", false)
	}
	s.start("b", false)
	s.start("a", true)
	s.live["a"].is(Protected)
	for range 3 + s.rng.IntN(10) {
		s.elapse(time.Duration(s.rng.IntN(1500)) * time.Millisecond)
		for range 1 + s.rng.IntN(3) {
			s.fault()
		}
	}
	s.elapse(time.Duration(s.rng.IntN(3000)) * time.Millisecond)
	within := time.Minute
	if s.stands {
		s.standStill()
		within = 25 * time.Second
	}
	if s.wears {
		s.wearOut()
	}
	if s.breaks {
		s.breakOff()
	}
	if s.begins {
		s.beginAnew()
	}
	concluded := s.later != nil && !s.odd.back && s.concludes()
	if !concluded {
		s.say("the faults stop")
		s.settles.Store(true)
		s.heal(s.rng.IntN(2) == 0)
		if s.odd.back {
			time.Sleep(2 * s.longestTerm()) // whoever has the guest hears that its grant is over
		}
		if lost = !s.inStep(within); !lost {
			s.haveGrown()
		}
	}
	if !concluded && !lost && !s.leaves() {
		s.t.Error("nothing leaves")
		s.standings()
	}
	s.answered()
	retires()
	for _, d := range s.dead {
		select {
		case <-d.done:
			d.bury()
		case <-time.After(2 * time.Minute):
			s.t.Fatalf("%s, which was killed, holds something for ever: it was %s", d.name, d.states())
		}
	}
	if !concluded && s.more.IntN(2) == 0 {
		s.cutOff()
	}
	all := s.up()
	for _, h := range append(all, s.dead...) {
		s.third = s.third || h.name == "c" && (h.whole() || strings.Contains(h.states(), Protected.String()))
	}
	for _, h := range all {
		h.halt()
	}
	s.answered()
	s.clean()
	return lost
}
