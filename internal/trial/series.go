package trial

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/cli"
)

// The names of the hosts of a series.
const (
	hostA = "a"
	hostB = "b"
)

// A Series is two hosts that take one guest from each other, again and again, by package
// protect: the one that has it is killed, or stopped for longer than it may act for the
// guest, or hands it over; the other goes on and is protected again by the first, which
// comes back.
type Series struct {
	pair
	again    map[string]time.Time // when the host was protected; set by the first such event since it was cleared, zero before it
	dead     map[*process]bool    // it is meant to end
	lead     string               // the host that has the guest, as far as changes are planned
	switched *Switched
	counted  int      // checkpoints since ready has begun to wait
	banked   Traffic  // of the sides that have ended
	from     *process // whose Traffic came last
}

// A Change is one change of sides.
type Change struct {
	Kind       string        // in a word: "killed", "stopped" or "switched"
	From, To   string        // hosts
	Downtime   time.Duration // from the kill, or the last frame of the old host, to the first of the new
	Stood      time.Duration // of a switchover: how long the guest stood still, as its old host measures it
	Again      time.Duration // from the return of the old host, or the change, to the protection of the new
	LateFrames int           // that left the old host after it was woken
}

// The kinds of a Change.
const (
	changeKilled   = "killed"
	changeStopped  = "stopped"
	changeSwitched = "switched"
)

// NewSeries makes a series with processes of this program on a backend, that draws its
// random choices from seed and is shown by out.
func NewSeries(o Config, backend string, seed uint64, out *Printer) *Series {
	return &Series{
		pair: newPair(o, backend, seed, out, hostA, hostB), again: make(map[string]time.Time), dead: make(map[*process]bool),
	}
}

// Do carries the series out and leaves nothing of it behind. The error is why there is no
// verdict.
func (s *Series) Do(ctx context.Context) error { return s.do(ctx, s.drive) }

// drive carries the series out.
func (s *Series) drive(ctx context.Context) error {
	s.lead = hostA
	if err := s.await(ctx, "the first synchronisation", func() bool { return s.state[s.lead] == stateProtected }); err != nil {
		return err
	}
	s.protected = time.Now()
	what := fmt.Sprintf("%v of memory", cli.Bytes(s.o.Mem))
	if s.o.Disk > 0 {
		what += fmt.Sprintf(" and %v of disk", cli.Bytes(s.o.Disk))
	}
	s.out.phase("protected", "the guest runs on host a (pid %d) and is protected by host b (pid %d): %s synchronised in %s",
		s.sides[hostA].pid(), s.sides[hostB].pid(), what, round3(s.protected.Sub(s.started)))
	for _, change := range s.kinds() {
		c, err := s.change(ctx, change)
		for tries := 1; errors.Is(err, errNotNow) && tries < maxTries; tries++ {
			c, err = s.change(ctx, change)
		}
		if err != nil {
			return err
		}
		s.lead = c.To
		s.changes = append(s.changes, c)
		s.out.change(c)
	}
	return s.judge(ctx)
}

// kinds returns the kinds of the changes to make, in their order: failovers and
// switchovers by turns, until there are as many of both as the configuration says.
func (s *Series) kinds() []string {
	failover := changeKilled
	if s.o.Signal == SignalStop {
		failover = changeStopped
	}
	var kinds []string
	for f, w := s.o.Failovers, s.o.Switchovers; f+w > 0; {
		if f > 0 {
			kinds = append(kinds, failover)
			f--
		}
		if w > 0 {
			kinds = append(kinds, changeSwitched)
			w--
		}
	}
	return kinds
}

// ready waits until the guest may be taken from the host that has it: some checkpoints have been
// made there, and a random instant has come. It returns which host that is.
func (s *Series) ready(ctx context.Context) (lead string, err error) {
	want := 1 + int(s.rng.Uint64N(RepeatCheckpoints))
	if s.o.Checkpoints > 0 {
		want = s.o.Checkpoints
	}
	s.counted = 0
	protected := func() bool {
		lead = hostA
		if s.state[hostB] == stateProtected {
			lead = hostB
		}
		return s.state[lead] == stateProtected
	}
	w := s.wait(s.handle)
	w.progress = func() int { return s.counted }
	if err := s.crew.await(ctx, w, "the checkpoints", func() bool { return s.counted >= want && protected() }); err != nil {
		return "", s.states(ctx, err)
	}
	if lead != s.lead { // a host that had no processor for too long, say
		s.unplanned++
		s.out.phase("unplanned", "host %s has lost the guest to host %s", s.lead, lead)
		s.lead = lead
	}
	return lead, s.sleep(ctx, time.Duration(s.rng.Int64N(int64(s.o.Interval))))
}

// A host that has lost its protection at the moment that it is told to switch over says so, and is told
// again when it is protected.
const maxTries = 5

var errNotNow = errors.New("could not switch over")

// change takes the guest from the host that has it and waits until it is protected on the other.
func (s *Series) change(ctx context.Context, kind string) (Change, error) {
	lead, err := s.ready(ctx)
	if err != nil {
		return Change{}, err
	}
	c := Change{Kind: kind, From: lead, To: s.other(lead)}
	err = s.carryOut(ctx, &c)
	return c, err
}

// carryOut takes the guest from one host to the other.
func (s *Series) carryOut(ctx context.Context, c *Change) error {
	s.switched = nil
	delete(s.again, c.To)
	s.client.expect(c.To)
	old := s.sides[c.From]
	begin := time.Now()
	switch c.Kind {
	case changeKilled:
		s.dead[old] = true
		if err := old.kill(); err != nil {
			return err
		}
	case changeStopped:
		if err := old.pause(); err != nil {
			return err
		}
	default:
		old.tell(Command{Switchover: true})
		if err := s.await(ctx, "the switchover", func() bool { return s.switched != nil }); err != nil {
			return err
		}
		if s.switched.Error != "" {
			return fmt.Errorf("host %s %w: %s", c.From, errNotNow, s.switched.Error)
		}
		c.Stood = time.Duration(s.switched.DowntimeUS) * time.Microsecond
	}
	if err := s.await(ctx, "the output of host "+c.To, func() bool { return !s.client.firstAlone(c.To).IsZero() }); err != nil {
		return err
	}
	first := s.client.firstAlone(c.To)
	if c.Kind == changeSwitched {
		begin = s.client.lastFrame(c.From)
	}
	c.Downtime = max(0, first.Sub(begin))
	if err := s.progress(ctx, c.To, someRounds); err != nil {
		return err
	}
	back := time.Now()
	var heard int
	switch c.Kind {
	case changeKilled:
		if err := s.await(ctx, "the end of host "+c.From, func() bool { return s.state[c.From] == "" }); err != nil {
			return err
		}
		if err := s.start(s.config(c.From, false)); err != nil {
			return err
		}
	case changeStopped:
		heard = s.client.count(c.From)
		if err := old.resume(); err != nil {
			return err
		}
	default:
		back = first
	}
	if err := s.await(ctx, "the protection of host "+c.To, func() bool { return !s.again[c.To].IsZero() }); err != nil {
		return err
	}
	c.Again = max(0, s.again[c.To].Sub(back))
	if c.Kind == changeStopped {
		c.LateFrames = s.client.count(c.From) - heard
		s.late += c.LateFrames
	}
	return nil
}

// someRounds is how many rounds a guest goes on for before its old host comes back.
const someRounds = 100

// progress waits until each vCPU has gone so many rounds further, and has taken some input.
func (s *Series) progress(ctx context.Context, host string, rounds uint64) error {
	at := s.client.now()
	return s.await(ctx, "the progress of host "+host, func() bool {
		now := s.client.now()
		for v := range at.last {
			if now.last[v] < at.last[v]+rounds || now.answered[v] < at.answered[v]+TalkOn {
				return false
			}
		}
		return true
	})
}

// judge lets the guest go on for a while, stops it, and compares what has left with its memory
// and its disk.
func (s *Series) judge(ctx context.Context) error {
	if err := s.progress(ctx, s.lead, s.o.rounds()); err != nil {
		return err
	}
	lead, err := s.ready(ctx)
	if err != nil {
		return err
	}
	s.survivor, s.epoch = lead, s.epochs()
	for _, p := range s.sides {
		s.dead[p] = true
	}
	s.sides[lead].tell(Command{Stop: true})
	if err := s.await(ctx, "the end of all output", func() bool {
		return s.histories != nil && s.state[lead] == "" && s.client.hasEnded(lead)
	}); err != nil {
		return err
	}
	s.sides[s.other(lead)].tell(Command{Stop: true})
	if err := s.await(ctx, "the end of host "+s.other(lead), func() bool {
		return s.state[s.other(lead)] == "" && s.client.hasEnded(s.other(lead))
	}); err != nil {
		return err
	}
	if err := s.verified(); err != nil {
		return err
	}
	return s.verify(s.client, lead)
}

// handle takes one message of a process.
func (s *Series) handle(m message) error {
	rep := m.report
	switch {
	case m.ended:
		s.state[m.side] = ""
		if !s.dead[m.from] {
			return m.from.failure(m.err)
		}
	case rep.Handle != nil:
		s.out.handle(m.side, *rep.Handle)
	case rep.Claimed != nil:
		s.out.claim(*rep.Claimed)
	case m.event != nil:
		return s.event(m)
	case rep.Checkpoint != nil:
		c := *rep.Checkpoint
		s.checkpoints = withStopped(s.checkpoints, c)
		s.counted++
		s.count(m.from, *c.Traffic)
		s.out.checkpoint(c)
	case rep.Missed != nil:
		s.miss(m.side, *rep.Missed)
	case rep.Switched != nil:
		s.switched = rep.Switched
	case rep.Histories != nil:
		s.histories = rep.Histories
		s.count(m.from, *rep.Traffic)
	}
	return nil
}

// event takes an event of a host.
func (s *Series) event(m message) error {
	s.out.event(m.side, m.event)
	if !strings.Contains(string(m.event), `"`+event.JobStatusChange{}.Name()+`"`) {
		return nil
	}
	var rec event.Record
	if err := json.Unmarshal(m.event, &rec); err != nil {
		return fmt.Errorf("an event of host %s: %w", m.side, err)
	}
	if e, ok := rec.Event.(event.JobStatusChange); ok {
		s.state[m.side] = e.State
		if e.State == stateProtected && s.again[m.side].IsZero() {
			s.again[m.side] = time.Now()
		}
	}
	return nil
}

// count adds up what the sides have counted, each of which begins at zero.
func (s *Series) count(from *process, t Traffic) {
	last := s.traffic
	if from != s.from || t.Matched+t.AtCheckpoint+s.banked.Matched+s.banked.AtCheckpoint < last.Matched+last.AtCheckpoint {
		s.from, s.banked = from, last
	}
	s.traffic = t
	s.traffic.Matched += s.banked.Matched
	s.traffic.AtCheckpoint += s.banked.AtCheckpoint
	s.traffic.Diverged += s.banked.Diverged
}

// await waits for what must come soon.
func (s *Series) await(ctx context.Context, what string, done func() bool) error {
	return s.states(ctx, s.crew.await(ctx, s.wait(s.handle), what, done))
}

// sleep waits, and goes on listening.
func (s *Series) sleep(ctx context.Context, d time.Duration) error {
	return s.crew.sleep(ctx, d, s.settling(s.handle))
}
