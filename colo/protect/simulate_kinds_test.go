package protect

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Kinds of worlds of seeds from kindSeeds on, besides all that befalls the others: clocks that run
// at other rates, a clock of the day that is set, certificates that are renewed, three hosts with
// disks that outlive them. Of 32 seeds in a row eight are of each kind.

// kinds says what a seed has of this.
type kinds struct {
	draw  *rand.Rand // nil: of seeds below kindSeeds
	rates bool       // the clocks of its hosts run at rates of their own
	days  bool       // the clock of the day is set back and forth
	certs bool       // connections are by TLS, and certificates are renewed
	three bool       // there are three hosts, with disks that outlive them

	set    int  // how often the clock of the day was set
	really bool // the runtime has one

	severe   int // how often the host that had the guest was cut off from all
	tookOver int // and another took over
}

// kindsOf chooses what a seed has of this.
func kindsOf(seed uint64) (k kinds) {
	if seed < kindSeeds {
		return kinds{}
	}
	k.draw = rand.New(rand.NewPCG(seed, 10))
	kind := seed / 8 % 4
	k.rates, k.days, k.certs = kind == 0, kind == 1, kind == 2
	k.three = kind == 3 && seed%8 != 0 // there output is compared, between two
	if k.days = k.days || k.draw.IntN(4) == 0; k.days {
		k.really = setDay(0)
	}
	return k
}

// hasThree lets there be three hosts, in a seed of that kind.
func (s *simulation) hasThree() {
	if s.kinds.three && len(s.names) == 2 {
		s.addThird(s.kinds.draw)
	}
}

// hasItsKind lets a seed be of its kind, when it is known which hosts there are.
func (s *simulation) hasItsKind(seed uint64) {
	if s.kinds.rates || s.kinds.days {
		s.term, s.patience = 1500*time.Millisecond, 600*time.Millisecond // so that a takeover waits for the end of a grant
	}
	if s.kinds.rates {
		s.chooseRates(s.kinds.draw)
	}
	if s.kinds.certs {
		s.certificates = newCertificates(s.t, seed, s.names)
		s.certificates.days = s.kinds.days
	}
}

// befallsAKind makes one fault of those, and reports whether it has made one.
func (s *simulation) befallsAKind(h *host) bool {
	k := &s.kinds
	if k.draw == nil || k.draw.IntN(3) > 0 {
		return false
	}
	var all []func()
	if k.rates {
		all = append(all, s.cutsOffTheHolder)
	}
	if k.days {
		all = append(all, s.setsTheDay, s.setsTheDay, s.cutsOffTheHolder)
	}
	if k.certs {
		all = append(all, func() { s.renews(h) })
	}
	if k.three && s.kept != nil {
		all = append(all, s.coldStart)
	}
	if len(all) == 0 {
		return false
	}
	all[k.draw.IntN(len(all))]()
	return true
}

// cutsOffTheHolder cuts the host that has the guest off from the others and from the arbiter, for
// longer than its grant lasts: another takes over as soon as it may. The clock of the day may be
// set meanwhile.
func (s *simulation) cutsOffTheHolder() {
	h, draw := s.runs(), s.kinds.draw
	if most := 4; h == nil || h.over() || s.kinds.severe == most {
		return
	}
	s.kinds.severe++
	s.say("%s (%v) reaches nobody", h.name, h.job.State())
	h.noArbiter.Store(true)
	s.f.ways.mend(true)
	for _, o := range s.others(h.name) {
		if draw.IntN(2) == 0 {
			s.f.ways.part(h.name, o)
		} else {
			s.f.ways.quiet(h.name, o)
			s.f.ways.quiet(o, h.name)
		}
		if o := s.live[o]; o != nil {
			o.noArbiter.Store(false)
			o.deaf.Store(false)
			o.slow.Store(0)
		}
	}
	generation := h.copyOf.Load()
	defer func() {
		if r, _ := s.store.Load(s.t.Context()); r.Generation > generation && r.Held() && r.Holder != h.name {
			s.kinds.tookOver++
		}
	}()
	for begin, long := time.Now(), 2*s.longestTerm()+DefaultLost; time.Since(begin) < long; {
		time.Sleep(time.Duration(draw.Int64N(int64(long) / 4)))
		if s.kinds.days {
			s.setsTheDay()
		}
	}
}

// longestTerm is how long a grant lasts at most.
func (s *simulation) longestTerm() time.Duration {
	longest := s.term
	for _, h := range s.up() {
		longest = max(longest, h.job.cfg.Term)
	}
	return longest
}

// setsTheDay sets the clock of the day, by up to hours, as an operator does or a time server.
func (s *simulation) setsTheDay() {
	draw := s.kinds.draw
	ahead := time.Duration(draw.Int64N(int64(24*time.Hour))) - 12*time.Hour
	if draw.IntN(3) == 0 {
		ahead = time.Duration(draw.Int64N(int64(4*time.Second))) - 2*time.Second
	}
	s.kinds.set++
	s.say("the clock of the day is set to be %v ahead", ahead)
	s.kinds.really = setDay(ahead)
}

// ofKinds adds up what the seeds of these kinds have seen.
type ofKinds struct {
	rates, days, really, certs, threes int // seeds
	severe, tookOver, set              int
	given, shown, right, cold          int
}

func (o *ofKinds) add(s *simulation) {
	k := &s.kinds
	if k.draw == nil {
		return
	}
	o.severe += k.severe
	o.tookOver += k.tookOver
	if k.rates {
		o.rates++
	}
	if k.days {
		o.days++
		o.set += k.set
		if k.really {
			o.really++
		}
	}
	if c := s.certificates; c != nil {
		o.certs++
		o.given, o.shown, o.right = o.given+c.wrong, o.shown+c.refused, o.right+c.right
	}
	if k.three && s.kept != nil {
		o.threes++
		o.cold += s.coldStarts
	}
}

// check reports what the seeds have seen, and kinds of which many seeds have seen nothing.
func (o *ofKinds) check(t *testing.T) {
	if o.rates+o.days+o.certs+o.threes == 0 {
		return
	}
	t.Logf("in %d seeds clocks ran at other rates; in %d the clock of the day was set, %d times; %d times a host that had the guest was cut off, and %d times another took over",
		o.rates, o.really, o.set, o.severe, o.tookOver)
	t.Logf("in %d seeds certificates were renewed, %d times by a wrong one, which was shown %d times, and %d times a right one after that; in %d three hosts had disks that last, which all died %d times",
		o.certs, o.given, o.shown, o.right, o.threes, o.cold)
	const many = 12
	for what, none := range map[string]bool{
		"no host that was cut off was ever succeeded":     o.rates+o.days >= many && o.tookOver == 0,
		"the clock of the day was never set":              o.days >= many && o.set == 0,
		"no wrong certificate was ever shown":             o.certs >= 4*many && o.shown == 0,
		"no right certificate ever followed a wrong one":  o.certs >= 4*many && o.right == 0,
		"three hosts with disks that last never all died": o.threes >= many && o.cold == 0,
		"in some seeds the clock of the day stood":        o.really != 0 && o.really != o.days,
	} {
		if none {
			t.Error(what)
		}
	}
}
