package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

var errNobody = errors.New("nobody is there")

// aBetween returns the arbiter of a host that has the generation held, 0 for none, in a
// state; there is what the other host says.
func aBetween(held uint64, s protect.State, open bool, there protect.Standing, err error) *between {
	b := &between{
		term: time.Minute, state: func() protect.State { return s }, open: func() bool { return open },
		about:   func() (event.Mode, uint64, string) { return event.ModePrimary, 7, "two\nlines" },
		ask:     func(context.Context) (protect.Standing, error) { return there, err },
		changed: make(chan struct{}),
	}
	if held > 0 {
		b.record = failover.Record{Generation: held, Holder: "me", Token: "mine"}
	}
	return b
}

func claim(after uint64) failover.Claim {
	return failover.Claim{Holder: "me", Token: "mine", After: after, Term: time.Minute}
}

func TestWhoGoesOnBetweenTwoHosts(t *testing.T) {
	says := func(s protect.State, generation uint64) protect.Standing {
		return protect.Standing{Host: "other", State: s, Generation: generation}
	}
	const no, later = 0, -1
	for name, c := range map[string]struct {
		held, after uint64
		state       protect.State
		open        bool
		there       protect.Standing
		err         error
		want        int // the generation
	}{
		"a primary that is sure asks nobody":           {4, 4, protect.Asking, true, says(protect.Alone, 5), nil, 5},
		"a primary's verb asks nobody":                 {4, 4, protect.Protected, true, says(protect.Following, 4), nil, 5},
		"a primary whose other host is dead":           {4, 4, protect.Asking, false, says(0, 0), errNobody, 5},
		"a primary whose other host has gone on":       {4, 4, protect.Asking, false, says(protect.Alone, 5), nil, no},
		"a primary whose other host still follows":     {4, 4, protect.Asking, false, says(protect.Following, 4), nil, 5},
		"a primary whose other host asks":              {4, 4, protect.Asking, false, says(protect.Asking, 4), nil, 5},
		"a primary whose other host goes on":           {4, 4, protect.Asking, false, says(protect.TakingOver, 4), nil, later},
		"a secondary whose primary is dead":            {0, 4, protect.Asking, false, says(0, 0), errNobody, 5},
		"a secondary that had the guest before":        {2, 4, protect.Asking, false, says(0, 0), errNobody, 5},
		"a secondary whose primary lives":              {0, 4, protect.Asking, false, says(protect.Protected, 4), nil, later},
		"a secondary whose primary asks":               {0, 4, protect.Asking, false, says(protect.Asking, 4), nil, later},
		"a secondary whose primary has gone on":        {0, 4, protect.Asking, false, says(protect.Alone, 5), nil, no},
		"a secondary whose primary hands over":         {0, 4, protect.Asking, false, says(protect.SwitchingOver, 4), nil, 5},
		"a secondary whose primary has given up":       {0, 4, protect.Asking, false, says(protect.Waiting, 4), nil, 5},
		"a secondary, by an operator's word":           {0, 4, protect.TakingOver, false, says(protect.Protected, 4), nil, 5},
		"an old copy":                                  {4, 3, protect.Asking, false, says(0, 0), errNobody, no},
		"a first start":                                {0, 0, protect.Created, false, says(0, 0), errNobody, 1},
		"a first start beside a host that waits":       {0, 0, protect.Created, false, says(protect.Waiting, 0), nil, 1},
		"a first start after another guest's life":     {0, 0, protect.Created, false, says(protect.Waiting, 6), nil, 7},
		"a first start beside a host that runs it":     {0, 0, protect.Created, false, says(protect.Alone, 1), nil, no},
		"a start from disks":                           {0, 3, protect.Created, false, says(0, 0), errNobody, 4},
		"a start from disks, the other's are newer":    {0, 3, protect.Created, false, says(protect.Waiting, 4), nil, no},
		"a start from disks, the other's are as old":   {0, 3, protect.Created, false, says(protect.Waiting, 3), nil, 4},
		"a cold start while the other runs the guest":  {0, 3, protect.Waiting, false, says(protect.Alone, 4), nil, no},
		"a cold start while nobody is there":           {0, 3, protect.Waiting, false, says(0, 0), errNobody, 4},
		"a grant whose answer was lost is given again": {4, 3, protect.Asking, true, says(0, 0), errNobody, 4},
	} {
		b := aBetween(c.held, c.state, c.open, c.there, c.err)
		if name == "an old copy" {
			b.record.Token = "another's"
		}
		g, err := b.Acquire(t.Context(), claim(c.after))
		switch {
		case c.want > 0 && (err != nil || g.Generation != uint64(c.want) || g.Term != time.Minute || g.Sent.IsZero()):
			t.Errorf("%s: %+v, %v", name, g, err)
		case c.want == no && !errors.Is(err, failover.ErrRefused):
			t.Errorf("%s: %+v, %v", name, g, err)
		case c.want == later && (err == nil || errors.Is(err, failover.ErrRefused)):
			t.Errorf("%s: %+v, %v", name, g, err)
		}
	}
}

// While the pair is in step the other host's promises are what a primary has; what it
// was granted before is over before the first of them can be.
func TestAPrimaryInStepHasNothingToRenew(t *testing.T) {
	for s, want := range map[protect.State]time.Duration{
		protect.Alone: time.Minute, protect.Paused: time.Minute, protect.TakingOver: time.Minute, protect.Cancelled: time.Minute,
		protect.Synchronising: time.Minute / 2, protect.Protected: 0, protect.SwitchingOver: 0, protect.Asking: 0,
	} {
		b := aBetween(0, protect.Created, false, protect.Standing{}, errNobody)
		g, err := b.Acquire(t.Context(), claim(0))
		if err != nil {
			t.Fatal(err)
		}
		b.state = func() protect.State { return s }
		g, err = b.Renew(t.Context(), g, "a note")
		if want == 0 && (err == nil || errors.Is(err, failover.ErrRefused)) || want > 0 && (err != nil || g.Term != want) {
			t.Errorf("%v: %+v, %v", s, g, err)
		}
	}
}

func TestWhatIsReleasedIsNobodys(t *testing.T) {
	b := aBetween(0, protect.Created, false, protect.Standing{}, errNobody)
	seen, _ := b.Record(t.Context())
	g, err := b.Acquire(t.Context(), claim(0))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := b.Watch(t.Context(), seen); err != nil || r.Holder != "me" || r.Generation != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if err := b.Release(t.Context(), g, "left"); err != nil {
		t.Error(err)
	}
	if r, err := b.Record(t.Context()); err != nil || r.Held() || r.Generation != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if err := b.Release(t.Context(), g, "again"); !errors.Is(err, failover.ErrRefused) {
		t.Errorf("a second release: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, _ := b.Record(t.Context())
	if _, err := b.Watch(ctx, r); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestACommandIsToldWhatItIsAbout(t *testing.T) {
	dir := t.TempDir()
	b := aBetween(4, protect.Asking, true, protect.Standing{}, errNobody)
	b.command = `[ "$LOCKSTEP_MODE $LOCKSTEP_EPOCH $LOCKSTEP_GENERATION $LOCKSTEP_CAUSE" = "primary 7 5 two; lines" ] && mkdir ` + dir + `/$LOCKSTEP_GENERATION`
	if g, err := b.Acquire(t.Context(), claim(4)); err != nil || g.Generation != 5 {
		t.Errorf("%+v, %v", g, err)
	}
	b = aBetween(4, protect.Asking, true, protect.Standing{}, errNobody)
	b.command = "mkdir " + dir + "/$LOCKSTEP_GENERATION"
	if _, err := b.Acquire(t.Context(), claim(4)); !errors.Is(err, failover.ErrRefused) {
		t.Errorf("the second of two: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Acquire(ctx, claim(4)); err == nil || errors.Is(err, failover.ErrRefused) {
		t.Errorf("a command that did not answer: %v", err)
	}
}

func TestAHostWithNothingToBootOnlyTakesOver(t *testing.T) {
	for s, ok := range map[protect.State]bool{protect.Created: false, protect.Waiting: false, protect.Asking: true, protect.Protected: true} {
		a := &onlyTakes{aBetween(4, s, true, protect.Standing{}, errNobody), func() protect.State { return s }}
		if _, err := a.Acquire(t.Context(), claim(4)); (err == nil) != ok || !ok && !errors.Is(err, failover.ErrRefused) {
			t.Errorf("%v: %v", s, err)
		}
	}
}
