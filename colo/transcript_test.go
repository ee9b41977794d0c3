package colo_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

// transcript records what one side did and was told, in order. A line that begins
// with > or < is a message.
type transcript struct {
	mu     sync.Mutex
	lines  []string
	status failover.Status
	now    func() failover.Status
}

func (s *transcript) add(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, fmt.Sprintf(format, args...))
	if s.now == nil {
		return
	}
	if st := s.now(); st != s.status {
		s.status = st
		s.lines = append(s.lines, "status "+st.String())
	}
}

func (s *transcript) message(dir string, m colo.Message, v uint64) {
	if m == colo.VMStateSize {
		s.add("%s %v %d", dir, m, v)
		return
	}
	s.add("%s %v", dir, m)
}

func (s *transcript) event(r event.Record) {
	switch e := r.Event.(type) {
	case event.COLOExit:
		if e.Error != "" {
			s.add("event COLO_EXIT %s %s: %s", e.Mode, e.Reason, e.Error)
			return
		}
		s.add("event COLO_EXIT %s %s", e.Mode, e.Reason)
	case event.Migration:
		s.add("event MIGRATION %s", e.Status)
	case event.MigrationPass:
		s.add("event MIGRATION_PASS %d", e.Pass)
	case event.CheckpointStart:
		s.add("event CHECKPOINT_START %d %s", e.Epoch, e.Cause)
	case event.CheckpointCommit:
		line := fmt.Sprintf("event CHECKPOINT_COMMIT %d %s", e.Epoch, e.Cause)
		if e.EarlyResume {
			line += " early-resume"
		}
		s.add("%s", strings.TrimSpace(line))
	case event.FailoverDone:
		s.add("event FAILOVER %s %d %s", e.Mode, e.Epoch, e.Status)
	default:
		s.add("event %s", e.Name())
	}
}

// merge interleaves the two sides as the messages force it: a side speaks until
// it waits for what the other has not said yet. So the result does not depend on
// which of them happened to be quicker.
func merge(p, s []string) string {
	var out strings.Builder
	type cursor struct {
		name  string
		lines []string
		sent  int
		heard int
	}
	a, b := &cursor{name: "P", lines: p}, &cursor{name: "S", lines: s}
	for idle := 0; idle < 2; {
		idle++
		for len(a.lines) > 0 {
			line := a.lines[0]
			switch line[0] {
			case '<':
				a.heard++
			case '>':
				a.sent++
			}
			if a.heard > b.sent && len(b.lines) > 0 && idle < 2 {
				a.heard--
				break
			}
			fmt.Fprintf(&out, "%s %s\n", a.name, line)
			a.lines = a.lines[1:]
			idle = 0
		}
		a, b = b, a
	}
	return out.String()
}

// scene is one scenario: what is different from a pair that makes one requested
// checkpoint and is then stopped.
type scene struct {
	name      string
	options   options
	ours      bool                           // the two sides know each other
	last      uint64                         // the checkpoint after which it stops; 0: 1
	cause     event.Cause                    // of the checkpoints; empty: request
	primary   func(x *pair, step string)     // at each step of checkpoint 1
	secondary func(x *pair, step string)     //
	prepare   func(x *pair)                  //
	want      func(t *testing.T, p, s error) // besides the transcript
}

func at(step string, do func(*pair)) func(*pair, string) {
	return func(x *pair, op string) {
		if op == step {
			do(x)
		}
	}
}

func wantErrors(p, s error) func(*testing.T, error, error) {
	return func(t *testing.T, gotP, gotS error) {
		t.Helper()
		if !errors.Is(gotP, p) {
			t.Errorf("the primary ended with %v, want %v", gotP, p)
		}
		if !errors.Is(gotS, s) {
			t.Errorf("the secondary ended with %v, want %v", gotS, s)
		}
	}
}

var errDisk = errors.New("disk on fire")

// breakLink loses what has not been read, which is much where reads are tiny.
func breakLink(x *pair) { x.sc.Break() }

var tiny = options{ps: colotest.Flow{Chunk: 16, Drop: true}}

func refuse(m event.Mode) func(*pair) {
	return func(x *pair) {
		x.witness.Deny = func(c colo.Claim) error {
			if c.Mode == m {
				return colotest.ErrHeld
			}
			return nil
		}
	}
}

// endAt has the primary end the protection after a checkpoint.
func endAt(epoch uint64) func(*pair) {
	return func(x *pair) {
		event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
			if c.Epoch == epoch {
				x.primary.End()
			}
		})
	}
}

func failDisk(h func(*pair) *host, name string, do func(*pair) error) func(*pair) {
	return func(x *pair) {
		h(x).disk.Fail = func(c colotest.Call) error {
			if c == (colotest.Call{Name: name, Epoch: 1}) {
				return do(x)
			}
			return nil
		}
	}
}

func ofSecondary(x *pair) *host { return x.s }

// order has a side go on alone.
func order(of func(*pair) (runner, *transcript)) func(*pair) {
	return func(x *pair) {
		r, s := of(x)
		if err := r.Failover(); err != nil {
			x.p.t.Error(err)
		}
		s.add("failover ordered")
	}
}

func thePrimary(x *pair) (runner, *transcript)   { return x.primary, &x.said[0] }
func theSecondary(x *pair) (runner, *transcript) { return x.secondary, &x.said[1] }

var scenes = []scene{
	{name: "idle", want: wantErrors(context.Canceled, context.Canceled)},
	{name: "divergence", cause: event.CauseDivergence,
		options: options{primary: func(c *colo.PrimaryConfig) { c.AheadThreshold = 1 }}},
	{name: "late-resume", options: options{primary: func(c *colo.PrimaryConfig) { c.LateResume = true }}},
	{name: "ahead", last: 2, cause: event.CauseTimer,
		options: options{primary: func(c *colo.PrimaryConfig) { c.AheadThreshold, c.CheckpointDelay = 1, time.Second }}},
	{name: "early", ours: true, last: 9, cause: event.CauseTimer, primary: at("send ram early", func(x *pair) { x.p.step(1) }),
		prepare: endAt(2), want: wantErrors(nil, colo.ErrGoodbye),
		options: options{primary: func(c *colo.PrimaryConfig) { c.EarlyShare, c.CheckpointDelay = 0.5, time.Second }}},
	{name: "failover-between-early-pages", ours: true, last: 9, cause: event.CauseTimer, primary: at("send ram early", func(x *pair) { x.p.step(1) }),
		secondary: at("stage ram early", order(theSecondary)), prepare: refuse(event.ModePrimary), want: wantErrors(colo.ErrRefused, nil),
		options: options{primary: func(c *colo.PrimaryConfig) { c.EarlyShare, c.CheckpointDelay = 0.5, time.Second }}},
	{name: "failover-before-commit", secondary: at("stage device state", order(theSecondary)),
		prepare: refuse(event.ModePrimary), want: wantErrors(colo.ErrRefused, nil)},
	{name: "failover-during-commit", prepare: func(x *pair) {
		refuse(event.ModePrimary)(x)
		failDisk(ofSecondary, "checkpoint", func(x *pair) error {
			order(theSecondary)(x)
			return nil
		})(x)
	}, want: wantErrors(colo.ErrRefused, nil)},
	{name: "failover-after-commit", secondary: at("resume", order(theSecondary)),
		prepare: refuse(event.ModePrimary), want: wantErrors(colo.ErrRefused, nil)},
	{name: "failover-of-the-primary", primary: at("send ram", order(thePrimary)),
		want: wantErrors(nil, colo.ErrRefused), prepare: refuse(event.ModeSecondary)},
	{name: "primary-lost-while-staging", secondary: at("stage device state", breakLink), options: tiny,
		prepare: refuse(event.ModePrimary), want: wantErrors(colo.ErrRefused, nil)},
	{name: "secondary-lost-while-staging", secondary: at("stage device state", breakLink), options: tiny,
		prepare: refuse(event.ModeSecondary), want: wantErrors(nil, colo.ErrRefused)},
	{name: "both-refused", secondary: at("stage device state", breakLink), options: tiny,
		prepare: func(x *pair) { x.witness.Deny = func(colo.Claim) error { return colotest.ErrHeld } },
		want:    wantErrors(colo.ErrRefused, colo.ErrRefused)},
	{name: "heartbeat-lost", secondary: at("stage ram", func(x *pair) { x.secondary.Lost(errDisk) }),
		prepare: refuse(event.ModePrimary), want: wantErrors(colo.ErrRefused, nil)},
	{name: "oversized-device-state", prepare: refuse(event.ModeSecondary),
		options: options{secondary: func(c *colo.SecondaryConfig) { c.MaxDeviceState = 16 }},
		want:    wantErrors(nil, colo.ErrSize)},
	{name: "unknown-message", prepare: refuse(event.ModeSecondary),
		options: options{sp: colotest.Flow{Corrupt: map[int64]byte{6: 0x40}}}},
	{name: "torn-commit", prepare: failDisk(ofSecondary, "checkpoint", func(*pair) error { return errDisk }),
		want: wantErrors(nil, failover.ErrTorn)},
	{name: "goodbye-of-the-primary", ours: true, last: 9, want: wantErrors(nil, colo.ErrGoodbye),
		primary: at("expect vmstate-loaded", func(x *pair) { x.primary.End() })},
	{name: "goodbye-of-the-secondary", ours: true, last: 9, want: wantErrors(nil, colo.ErrGoodbye),
		secondary: at("stage device state", func(x *pair) { x.secondary.End() })},
	{name: "failover-during-torn-commit", prepare: failDisk(ofSecondary, "checkpoint", func(x *pair) error {
		order(theSecondary)(x)
		return errDisk
	}), want: wantErrors(nil, failover.ErrTorn)},
}

func TestTranscripts(t *testing.T) {
	for _, sc := range scenes {
		t.Run(sc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { sc.play(t) })
		})
	}
}

func (sc scene) play(t *testing.T) {
	var x *pair
	said := new([2]transcript)
	p, s := &said[0], &said[1]
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	hook := func(do func(*pair, string)) func(string, uint64) {
		return func(op string, epoch uint64) {
			if do != nil && epoch == 1 {
				do(x, op)
			}
		}
	}
	o := sc.options
	o.qemu = !sc.ours
	o.primary = func(c *colo.PrimaryConfig) {
		c.CheckpointDelay, c.Trace = time.Hour, p.message
		step := hook(sc.primary)
		c.Step = func(op string, epoch uint64) {
			if op == "early resume" {
				x.p.step(1) // before the pause
			}
			step(op, epoch)
		}
		if sc.options.primary != nil {
			sc.options.primary(c)
		}
	}
	o.secondary = func(c *colo.SecondaryConfig) {
		c.Trace, c.Step = s.message, hook(sc.secondary)
		if sc.options.secondary != nil {
			sc.options.secondary(c)
		}
	}
	x = newPair(t, o)
	defer x.close()
	x.said = said
	p.now, s.now = func() failover.Status { return x.primary.Info().Failover }, func() failover.Status { return x.secondary.Info().Failover }
	x.p.bus.SubscribeAll(p.event)
	x.s.bus.SubscribeAll(s.event)
	event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
		switch {
		case c.Epoch == max(sc.last, 1):
			cancel()
		case sc.cause == "":
			x.primary.RequestCheckpoint(event.CauseRequest)
		case sc.cause != event.CauseTimer:
			x.primary.RequestCheckpoint(sc.cause)
		}
	})
	if sc.prepare != nil {
		sc.prepare(x)
	}
	x.start(ctx)
	perr, serr := x.wait()
	if sc.want != nil {
		sc.want(t, perr, serr)
	}
	p.add("run: %v", perr)
	s.add("run: %v", serr)
	got := merge(p.lines, s.lines)
	file := filepath.Join("testdata", sc.name+".txt")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); d != "" {
		t.Errorf("the conversation is another one (-want +got):\n%s", d)
	}
}
