package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/require"
)

var (
	errNobody = error(&net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED})
	errSilent = fmt.Errorf("%w: %w", protect.ErrHello, os.ErrDeadlineExceeded)
	errEOF    = fmt.Errorf("%w: %w", protect.ErrHello, io.EOF)
	errTLS    = error(&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}})
	errReset  = error(&net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET})
	errOther  = error(&protect.RefusedError{Reason: "there is no such guest", There: true})
)

// aBetween returns the arbiter of a host that has the generation held, 0 for none, in a
// state; there is what the other host says.
func aBetween(held uint64, s protect.State, open bool, there protect.Standing, err error) *between {
	b := &between{
		term: time.Minute, state: func() protect.State { return s }, open: func() bool { return open },
		about: func() (event.Mode, uint64, string) { return event.ModePrimary, 7, "two\nlines" },
		host:  "me", disks: true,
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
		"a primary that hears nothing":                 {4, 4, protect.Asking, false, says(0, 0), errSilent, 5},
		"a primary that has no address to ask":         {4, 4, protect.Asking, false, says(0, 0), errNoPeer, 5},
		"a primary whose other host lives: TLS":        {4, 4, protect.Asking, false, says(0, 0), errTLS, later},
		"a primary whose other host lives: no hello":   {4, 4, protect.Asking, false, says(0, 0), protect.ErrHello, later},
		"a primary whose other host has another guest": {4, 4, protect.Asking, false, says(0, 0), errOther, later},
		"a secondary that hears nothing":               {0, 4, protect.Asking, false, says(0, 0), errSilent, 5},
		"a secondary that has no address to ask":       {0, 4, protect.Asking, false, says(0, 0), errNoPeer, 5},
		"a secondary whose primary lives: TLS":         {0, 4, protect.Asking, false, says(0, 0), errTLS, later},
		"a secondary whose primary lives: no hello":    {0, 4, protect.Asking, false, says(0, 0), protect.ErrHello, later},
		"a secondary whose primary lives: EOF":         {0, 4, protect.Asking, false, says(0, 0), errEOF, later},
		"a secondary whose primary lives: a reset":     {0, 4, protect.Asking, false, says(0, 0), errReset, later},
		"a secondary whose primary lives: a refusal":   {0, 4, protect.Asking, false, says(0, 0), errOther, later},
		"a first start with nobody there":              {0, 0, protect.Created, false, says(0, 0), errNobody, later},
		"a first start beside a host that waits":       {0, 0, protect.Created, false, says(protect.Waiting, 0), nil, 1},
		"a first start before another by name":         {0, 0, protect.Created, false, says(protect.Created, 0), nil, 1},
		"a first start after another's copy":           {0, 0, protect.Created, false, says(protect.Waiting, 6), nil, no},
		"a first start after another guest's end":      {0, 0, protect.Created, false, says(protect.Concluded, 6), nil, no},
		"a first start beside a host that runs it":     {0, 0, protect.Created, false, says(protect.Alone, 1), nil, no},
		"a start from disks with nobody there":         {0, 3, protect.Created, false, says(0, 0), errNobody, later},
		"a start from disks, the other is silent":      {0, 3, protect.Created, false, says(0, 0), errSilent, later},
		"a start from disks, the other lives":          {0, 3, protect.Created, false, says(0, 0), errTLS, later},
		"a start from disks, the other reads its own":  {0, 3, protect.Created, false, says(0, 0), errOther, later},
		"a start from disks, the other's are newer":    {0, 3, protect.Created, false, says(protect.Waiting, 4), nil, no},
		"a start from disks, the other's will start":   {0, 3, protect.Created, false, says(protect.Created, 4), nil, no},
		"a start from disks, the other's are as old":   {0, 3, protect.Created, false, says(protect.Waiting, 3), nil, 4},
		"a start from disks, the other's are older":    {0, 3, protect.Created, false, says(protect.Created, 2), nil, 4},
		"a cold start while the other runs the guest":  {0, 3, protect.Waiting, false, says(protect.Alone, 4), nil, no},
		"a cold start with nobody there":               {0, 3, protect.Waiting, false, says(0, 0), errNobody, later},
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
		b := aBetween(0, protect.Created, false, protect.Standing{State: protect.Waiting}, nil)
		g, err := b.Acquire(t.Context(), claim(0))
		if err != nil {
			t.Fatal(err)
		}
		b.state = func() protect.State { return s }
		g, err = b.Renew(t.Context(), g, "a note")
		if want == 0 && (!errors.Is(err, failover.ErrNotRenewed) || errors.Is(err, failover.ErrRefused)) || want > 0 && (err != nil || g.Term != want) {
			t.Errorf("%v: %+v, %v", s, g, err)
		}
	}
}

func TestWhatIsReleasedIsNobodys(t *testing.T) {
	b := aBetween(0, protect.Created, false, protect.Standing{State: protect.Waiting}, nil)
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
	require.Outside(t, require.Processes)
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

// Of two hosts that would start the guest at the same moment, from disks equally new
// or for the first time, not both do.
func TestOfTwoThatStartOneDoes(t *testing.T) {
	for _, after := range []uint64{0, 3} {
		for _, states := range [][2]protect.State{{protect.Created, protect.Created}, {protect.Created, protect.Waiting}, {protect.Waiting, protect.Waiting}} {
			var granted []string
			for i, host := range []string{"a", "b"} {
				b := aBetween(0, states[i], false, protect.Standing{Host: other(host), State: protect.Created, Generation: after}, nil)
				b.host = host
				_, err := b.Acquire(t.Context(), claim(after))
				switch {
				case err == nil:
					granted = append(granted, host)
				case !errors.Is(err, errUndecided) || errors.Is(err, failover.ErrRefused):
					t.Errorf("%v after %d: host %s: %v", states, after, host, err)
				}
			}
			if len(granted) != 1 || granted[0] != "a" {
				t.Errorf("%v after %d: started on %v", states, after, granted)
			}
		}
	}
}

// A person's word stands for the answer of a host that is not heard, and against its
// older claim, never against a guest that runs there.
func TestAPersonsWordStartsTheGuest(t *testing.T) {
	for name, c := range map[string]struct {
		after uint64
		there protect.Standing
		err   error
		want  uint64 // the generation; 0: refused
	}{
		"nobody there":        {3, protect.Standing{}, errNobody, 4},
		"silence":             {0, protect.Standing{}, errSilent, 1},
		"it lives":            {3, protect.Standing{}, errTLS, 4},
		"it has a later copy": {3, protect.Standing{Host: "a", State: protect.Waiting, Generation: 6}, nil, 7},
		"it has a copy":       {0, protect.Standing{Host: "a", State: protect.Waiting, Generation: 6}, nil, 7},
		"it starts, too":      {3, protect.Standing{Host: "a", State: protect.Created, Generation: 3}, nil, 4},
		"it runs the guest":   {3, protect.Standing{Host: "a", State: protect.Alone, Generation: 3}, nil, 0},
		"it takes over":       {3, protect.Standing{Host: "a", State: protect.TakingOver, Generation: 3}, nil, 0},
	} {
		b := aBetween(0, protect.Created, false, c.there, c.err)
		b.word = true
		g, err := b.Acquire(t.Context(), claim(c.after))
		if c.want == 0 && !errors.Is(err, failover.ErrRefused) || c.want > 0 && (err != nil || g.Generation != c.want) {
			t.Errorf("%s: %+v, %v", name, g, err)
		}
	}
	b := aBetween(0, protect.Created, false, protect.Standing{State: protect.Waiting, Generation: 6}, nil)
	b.disks = false
	if g, err := b.Acquire(t.Context(), claim(0)); err != nil || g.Generation != 7 {
		t.Errorf("a guest without disks: %+v, %v", g, err)
	}
}

// A primary whose disk no guest has ever used starts one without the other host's
// answer, unless that lives and does not give one.
func TestANewGuestIsStartedWithoutAnAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		after uint64
		there protect.Standing
		err   error
		ok    bool
	}{
		"nobody there":              {0, protect.Standing{}, errNobody, true},
		"silence":                   {0, protect.Standing{}, errSilent, true},
		"it lives: TLS":             {0, protect.Standing{}, errTLS, false},
		"it lives: a refusal":       {0, protect.Standing{}, errOther, false},
		"it has a copy":             {0, protect.Standing{Host: "a", State: protect.Waiting, Generation: 6}, nil, false},
		"it runs the guest":         {0, protect.Standing{Host: "a", State: protect.Alone, Generation: 1}, nil, false},
		"a disk that has been used": {3, protect.Standing{}, errNobody, false},
	} {
		b := aBetween(0, protect.Created, false, c.there, c.err)
		b.fresh = true
		if g, err := b.Acquire(t.Context(), claim(c.after)); c.ok != (err == nil) || c.ok && g.Generation != 1 {
			t.Errorf("%s: %+v, %v", name, g, err)
		}
	}
}

// One question without an answer decides nothing.
func TestAHostIsAskedMoreThanOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := aBetween(0, protect.Asking, false, protect.Standing{}, nil)
		b.lost = 2 * time.Second
		asked := 0
		b.ask = func(context.Context) (protect.Standing, error) {
			if asked++; asked < questions {
				time.Sleep(time.Second)
				return protect.Standing{}, errSilent
			}
			return protect.Standing{Host: "other", State: protect.Protected, Generation: 4}, nil
		}
		if _, err := b.Acquire(t.Context(), claim(4)); !errors.Is(err, errUndecided) || asked != questions {
			t.Errorf("after %d questions: %v", asked, err)
		}
	})
}

// A process that stood still while it decided, or while it asked, decides again: the
// other host may have gone on since.
func TestADecisionOfAnotherMomentIsMadeAgain(t *testing.T) {
	const still = time.Hour
	for name, stop := range map[string]func(b *between){
		"after it looked at its gate": func(b *between) {
			b.open = func() bool {
				b.open = func() bool { return false }
				time.Sleep(still)
				return true
			}
		},
		"while it asked": func(b *between) {
			goneOn := b.ask
			b.ask = func(context.Context) (protect.Standing, error) {
				b.ask = goneOn
				time.Sleep(still)
				return protect.Standing{}, errSilent
			}
		},
		"after an answer": func(b *between) {
			goneOn := b.ask
			b.ask = func(context.Context) (protect.Standing, error) {
				b.ask = goneOn
				time.Sleep(still)
				return protect.Standing{Host: "other", State: protect.Following, Generation: 4}, nil
			}
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := aBetween(4, protect.Asking, false, protect.Standing{Host: "other", State: protect.Alone, Generation: 5}, nil)
			b.lost = 40 * time.Second
			stop(b)
			if g, err := b.Acquire(t.Context(), claim(4)); !errors.Is(err, failover.ErrRefused) {
				t.Errorf("%s: %+v, %v", name, g, err)
			}
		})
	}
}

// A primary that was stopped hears that the secondary asks, too: it may have asked this
// host in vain, and be about to go on. It says so if it has.
func TestALatePrimaryWaitsForWhatTheSecondaryHasAsked(t *testing.T) {
	for _, goesOn := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := aBetween(4, protect.Asking, false, protect.Standing{}, nil)
			b.lost = 2 * time.Second
			begin := time.Now()
			b.ask = func(context.Context) (protect.Standing, error) {
				if goesOn && time.Since(begin) > b.lost {
					return protect.Standing{Host: "other", State: protect.Alone, Generation: 5}, nil
				}
				return protect.Standing{Host: "other", State: protect.Asking, Generation: 4}, nil
			}
			for {
				g, err := b.Acquire(t.Context(), claim(4))
				if errors.Is(err, errUndecided) {
					time.Sleep(retry)
					continue
				}
				if goesOn != errors.Is(err, failover.ErrRefused) || !goesOn && (err != nil || g.Generation != 5 || time.Since(begin) <= b.lost) {
					t.Errorf("after %v: %+v, %v", time.Since(begin), g, err)
				}
				return
			}
		})
	}
}

// Why nothing is decided is said once.
func TestAPersonIsToldWhatIsWaitedFor(t *testing.T) {
	b := aBetween(0, protect.Created, false, protect.Standing{}, errNobody)
	var told []error
	b.undecided = func(err error) { told = append(told, err) }
	for range 3 {
		b.Acquire(t.Context(), claim(3))
	}
	if len(told) != 1 || !strings.Contains(told[0].Error(), "-start") {
		t.Errorf("told %v", told)
	}
}

// What is no answer of the command is asked again, and takes nothing from nobody.
func TestACommandThatWasNotRunHasNotAnswered(t *testing.T) {
	require.Outside(t, require.Processes)
	for command, refused := range map[string]bool{
		"exit 1": true, "exit 125": true, "exit 126": false, "no-such-command-here": false, "kill -9 $$": false, "exit 137": false,
	} {
		b := aBetween(4, protect.Asking, true, protect.Standing{}, errNobody)
		b.command = command
		if _, err := b.Acquire(t.Context(), claim(4)); err == nil || errors.Is(err, failover.ErrRefused) != refused {
			t.Errorf("%s: %v", command, err)
		}
	}
}

// Two claims of one generation, as when an operator speaks while it is asked, run the
// command once.
func TestACommandIsAskedOnceForAGeneration(t *testing.T) {
	require.Outside(t, require.Processes)
	b := aBetween(4, protect.Asking, true, protect.Standing{}, errNobody)
	b.command = "echo $LOCKSTEP_HOST; mkdir " + t.TempDir() + "/$LOCKSTEP_GENERATION"
	got := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := b.Acquire(t.Context(), claim(4))
			got <- err
		}()
	}
	for range 2 {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
}
