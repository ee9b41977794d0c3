package protect

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// Mistakes of persons, in seeds from oddSeeds on: the arbiter's record is put back to what it was before,
// or deleted, or is no record for a while; a host comes back with a configuration that is not that of the
// other; and two operators call verbs at random, on both hosts at once.

// oddSeeds is the first of them.
const oddSeeds = 1 << 35

// odd says what a seed has of this.
type odd struct {
	draw   *rand.Rand        // nil: of seeds below oddSeeds
	past   []failover.Record // that the arbiter has had
	back   bool              // the record was put back to one of an earlier generation, and nobody has written it anew
	unlike map[*host]bool    // hosts whose configuration is not that of the others
	calm   bool              // no host comes with another one

	backs, anew, spoilt, unlikes, bursts int
}

// isOdd chooses whether a seed has any of it.
func (s *simulation) isOdd(seed uint64) {
	if seed >= oddSeeds {
		s.odd = odd{draw: rand.New(rand.NewPCG(seed, 11)), unlike: map[*host]bool{}}
	}
}

// befallsByMistake makes one fault of those, and reports whether it has made one.
func (s *simulation) befallsByMistake() bool {
	o := &s.odd
	if o.draw == nil {
		return false
	}
	if r, err := s.store.Load(s.t.Context()); err == nil && !o.back {
		o.past = append(o.past, r)
	}
	if o.draw.IntN(4) > 0 {
		return false
	}
	switch o.draw.IntN(6) {
	case 0:
		s.putsTheRecordBack()
	case 1, 2:
		s.say("what the arbiter has is no record")
		o.spoilt++
		s.spoilt.Store(true)
		time.Sleep(time.Duration(o.draw.IntN(4000)) * time.Millisecond)
		s.say("it is one again")
		s.spoilt.Store(false)
	default:
		s.twoOperators()
	}
	return true
}

// putsTheRecordBack gives the arbiter a record that it has had before, as it is restored from a backup
// then, or none. Whoever does that looks first whether some host has an older copy of the guest, with which it might ask
// for the guest: the record would be that of its generation.
func (s *simulation) putsTheRecordBack() {
	o := &s.odd
	was, _ := s.store.Load(s.t.Context())
	if s.manual || !s.allKnow(was.Generation) {
		return
	}
	r := failover.Record{}
	if n := len(o.past); n > 0 && (s.insists || o.draw.IntN(4) > 0) {
		r = o.past[o.draw.IntN(n)]
	}
	s.say("the record is that of generation %d again, and not of %d", r.Generation, was.Generation)
	o.backs++
	o.back = o.back || r.Generation < was.Generation
	s.rewrite(r)
	if s.kept != nil { // a host that dies alone may have disks of that generation
		s.elapse(time.Duration(o.draw.IntN(2000)) * time.Millisecond)
		s.coldStart()
	}
}

// allKnow reports whether each host that may ask for the guest knows of a generation. One that waits asks only
// where its disks start the guest, as may those of a host that is down.
func (s *simulation) allKnow(generation uint64) bool {
	up := s.up()
	for _, h := range up {
		knows := h.job.keeper.Generation()
		if s := h.job.session(); s != nil {
			knows = max(knows, s.peer.generation)
		}
		if (h.job.State() != Waiting || h.job.mayStart()) && knows < generation {
			return false
		}
	}
	return s.kept == nil || len(up) == len(s.names)
}

// mayStart reports whether the disks here may start the guest by themselves.
func (j *Job) mayStart() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.claims || !j.known
}

// writesTheRecordAnew is what a person does who has ended the jobs of all hosts: the record is of nobody, in
// the last generation that any of them knows.
func (s *simulation) writesTheRecordAnew() {
	if !s.odd.back {
		return
	}
	var last uint64
	for _, h := range s.booted {
		last = max(last, h.copyOf.Load())
	}
	s.say("a person writes the record of generation %d", last)
	s.odd.anew++
	s.odd.back, s.odd.past = false, nil
	s.rewrite(ofNobody(last))
}

// twoOperators call verbs without a look at what the other one does.
func (s *simulation) twoOperators() {
	draw := s.odd.draw
	s.odd.bursts++
	for range 3 + draw.IntN(8) {
		hosts := s.up()
		if len(hosts) == 0 {
			return
		}
		h := hosts[draw.IntN(len(hosts))]
		verbs := []struct {
			name string
			do   func(context.Context) error
		}{
			{"switchover", h.job.Switchover},
			{"pause and resume", func(ctx context.Context) error { return s.pauses(ctx, h) }},
			{"resume", func(context.Context) error { return h.job.Resume() }},
			{"checkpoint", func(context.Context) error { return h.job.Checkpoint() }},
			{"failover", func(context.Context) error { return h.job.Failover() }},
			{"another delay", func(context.Context) error {
				return h.job.SetDelay(time.Duration(20+draw.IntN(300)) * time.Millisecond)
			}},
		}
		if v := verbs[draw.IntN(len(verbs))]; v.name == "another delay" {
			v.do(s.t.Context()) // it waits for nothing
		} else {
			s.verb(h, v.name, v.do)
		}
		if draw.IntN(2) == 0 {
			time.Sleep(time.Duration(draw.IntN(1<<draw.IntN(9))) * time.Millisecond)
		}
	}
}

// differs gives a host that comes back a configuration that is not that of the others, now and then. It follows
// nobody with it, but for the order of its disks.
func (s *simulation) differs(name string) (change func(*Config)) {
	o := &s.odd
	if o.draw == nil || o.calm || s.live["a"] == nil || s.kept != nil || o.draw.IntN(3) > 0 {
		return nil
	}
	o.unlikes++
	switch o.draw.IntN(4) {
	case 0:
		s.say("%s comes as another machine", name)
		return func(c *Config) { c.Machine = "another" }
	case 1:
		s.say("%s comes with a guest of another name", name)
		return func(c *Config) { c.Name = "another" }
	case 2:
		other := s.others(name)[0]
		s.say("%s comes by the name of %s", name, other)
		return func(c *Config) { c.Host = other }
	default:
		s.say("%s comes with its disks in another order", name)
		return func(c *Config) {
			for i, k := 0, len(c.Disks)-1; i < k; i, k = i+1, k-1 {
				c.Disks[i], c.Disks[k] = c.Disks[k], c.Disks[i]
			}
		}
	}
}

// alike gives each host that follows nobody the configuration of the others.
func (s *simulation) alike() {
	s.spoilt.Store(false)
	s.odd.calm = true
	for _, name := range s.names {
		if h := s.live[name]; h != nil && s.odd.unlike[h] && h.job.State() == Waiting {
			delete(s.odd.unlike, h)
			h.resume()
			s.again(h)
		}
	}
}

// ofOdds adds up what the seeds have seen of this.
type ofOdds struct{ seeds, backs, anew, spoilt, unlikes, bursts int }

func (a *ofOdds) add(s *simulation) {
	if o := s.odd; o.draw != nil {
		*a = ofOdds{a.seeds + 1, a.backs + o.backs, a.anew + o.anew, a.spoilt + o.spoilt, a.unlikes + o.unlikes, a.bursts + o.bursts}
	}
}

// check reports it, and what many seeds have seen nothing of.
func (a *ofOdds) check(t *testing.T) {
	if a.seeds == 0 {
		return
	}
	t.Logf("in %d seeds persons made mistakes: %d times the record was put back, and %d times written anew, %d times it was none; %d times a host came back with another configuration; %d times two operators called verbs",
		a.seeds, a.backs, a.anew, a.spoilt, a.unlikes, a.bursts)
	if a.seeds >= 200 && min(a.backs, a.anew, a.spoilt, a.unlikes, a.bursts) == 0 {
		t.Error("some mistake was never made")
	}
}

// errNoRecord is what a store says that holds something else than a record.
var errNoRecord = fmt.Errorf("state 7: %w: it is empty", failover.ErrRecord)
