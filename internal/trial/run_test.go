package trial

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
)

func TestAFailedRunTellsWhatItsSidesHaveSaid(t *testing.T) {
	r := newCrew()
	r.sides[Primary], r.sides[Secondary] = new(process), new(process)
	r.sides[Primary].stderr.Write([]byte("the reason\n"))
	r.sides[Secondary].stderr.Write([]byte(ErrOrphan.Error() + "\n"))
	lost := errors.New("lost")
	if err := r.explain(lost); !errors.Is(err, lost) || err.Error() != "lost\nthe primary said: the reason" {
		t.Errorf("%q", err)
	}
	if err := r.explain(nil); err != nil {
		t.Errorf("a run that did not fail: %v", err)
	}
}

func TestAMissedPageFailsTheRun(t *testing.T) {
	r := New(Config{}, "sim", 1, nil)
	if err := r.handle(message{side: Secondary, report: Report{Missed: &MissedPage{"guest.ram", 0x5000}}}); err != nil {
		t.Fatal(err)
	}
	if err := r.verified(); err == nil || !strings.Contains(err.Error(), "the secondary's guest.ram at 0x5000") {
		t.Errorf("%v", err)
	}
	s := NewSeries(Config{}, "sim", 1, new(Printer))
	if err := s.verified(); err != nil {
		t.Errorf("nothing is missing: %v", err)
	}
	if err := s.handle(message{side: hostB, report: Report{Missed: &MissedPage{"guest.ram", 0x5000}}}); err != nil {
		t.Fatal(err)
	}
	if err := s.verified(); err == nil || !strings.Contains(err.Error(), "host b's guest.ram at 0x5000") {
		t.Errorf("%v", err)
	}
}

func TestAThrottledGuestIsPartOfTheRun(t *testing.T) {
	r := New(Config{}, "sim", 1, new(Printer))
	at := time.Unix(3, 0)
	e, err := json.Marshal(event.Record{Time: at, Event: event.Throttled{Mode: event.ModePrimary, Percent: 20}})
	if err != nil {
		t.Fatal(err)
	}
	r.out.W = io.Discard
	if err := r.handle(message{side: Primary, event: e}); err != nil {
		t.Fatal(err)
	}
	if len(r.throttled) != 1 || !r.throttled[0].at.Equal(at) || r.throttled[0].percent != 20 {
		t.Errorf("%+v", r.throttled)
	}
}

// told returns the message by which a host reports its state.
func told(t *testing.T, host, state string) message {
	t.Helper()
	e, err := json.Marshal(event.Record{Event: event.JobStatusChange{State: state, Reason: "because"}})
	if err != nil {
		t.Fatal(err)
	}
	return message{side: host, event: e}
}

func TestARunKnowsWhoGoesOnByTheStatesOfTheHosts(t *testing.T) {
	const before, after = false, true // the kill
	for name, c := range map[string]struct {
		parted   bool
		host     string
		state    string
		want     string // in the error; "": none
		tookOver bool
		gaveUp   string
	}{
		"in step":                        {before, Secondary, stateFollowing, "", false, ""},
		"late word of the beginning":     {before, Secondary, stateWaiting, "", false, ""},
		"the primary asks unasked":       {before, Primary, stateAsking, "parted unasked: the primary is asking: because", false, ""},
		"the secondary asks unasked":     {before, Secondary, stateAsking, "parted unasked", false, ""},
		"the secondary ends unasked":     {before, Secondary, stateConcluded, "parted unasked", false, ""},
		"the survivor asks":              {after, Secondary, stateAsking, "", false, ""},
		"the survivor is about to go on": {after, Secondary, stateTakingOver, "", false, ""},
		"the survivor goes on":           {after, Secondary, stateAlone, "", true, ""},
		"the survivor does not":          {after, Secondary, stateWaiting, "did not take over: because", false, ""},
		"the victim gives up":            {after, Primary, stateWaiting, "", false, "because"},
		"the victim follows":             {after, Primary, stateFollowing, "", false, "because"},
		"the victim goes on too":         {after, Primary, stateTakingOver, "goes on too", false, ""},
		"the victim is protected":        {after, Primary, stateProtected, "goes on too", false, ""},
	} {
		r := New(Config{Kill: Primary}, "sim", 1, new(Printer))
		r.out.W = io.Discard
		r.protected, r.parted, r.survivor = time.Unix(1, 0), c.parted, Secondary
		err := r.handle(told(t, c.host, c.state))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) || r.tookOver != c.tookOver || r.gaveUp != c.gaveUp || r.state[c.host] != c.state {
			t.Errorf("%s: %v; took over: %v, gave up: %q", name, err, r.tookOver, r.gaveUp)
		}
	}
}

// The words of the two sides come on a pipe each: all that the primary says up to its death may be read
// before the first word of the secondary, which would then be what became of it.
func TestARunIsInStepWhenBothSidesHaveSaidSo(t *testing.T) {
	r := New(Config{Kill: Primary}, "sim", 1, new(Printer))
	r.out.W = io.Discard
	for i, c := range []struct {
		m    message
		want bool
	}{
		{told(t, Primary, stateProtected), false},
		{message{side: Primary, report: Report{Checkpoint: &Checkpoint{Traffic: new(Traffic)}}}, false},
		{told(t, Secondary, stateWaiting), false},
		{told(t, Secondary, stateFollowing), true},
	} {
		if err := r.handle(c.m); err != nil || r.inStep() != c.want {
			t.Errorf("message %d: in step: %v; %v", i, r.inStep(), err)
		}
	}
}

func TestASurvivorThatIsProtectedAgainIsNoMoreOfTheRun(t *testing.T) {
	r := New(Config{Kill: Primary}, "sim", 1, new(Printer))
	r.out.W = io.Discard
	r.protected, r.parted, r.survivor = time.Unix(1, 0), true, Secondary
	commit := func(epoch uint64) {
		e, err := json.Marshal(event.Record{Event: event.CheckpointCommit{Mode: event.ModePrimary, Epoch: epoch}})
		if err = errors.Join(err, r.handle(message{side: Secondary, event: e}), r.handle(message{side: Secondary, report: Report{Checkpoint: &Checkpoint{Epoch: epoch, Traffic: new(Traffic)}}})); err != nil {
			t.Fatal(err)
		}
	}
	commit(7)
	if err := r.handle(told(t, Secondary, stateAlone)); err != nil {
		t.Fatal(err)
	}
	commit(0)
	commit(1)
	if r.last[Secondary] != 7 || len(r.checkpoints) != 1 {
		t.Errorf("it went on from checkpoint %d, and there were %d", r.last[Secondary], len(r.checkpoints))
	}
}

func TestARunKnowsWhichCheckpointIsUnderWayAndWhichIsTheLast(t *testing.T) {
	r := New(Config{}, "sim", 1, new(Printer))
	r.out.W = io.Discard
	for _, c := range []struct {
		side        string
		e           event.Event
		under, last uint64 // after it, under way and the primary's last
	}{
		{Primary, event.CheckpointStart{Mode: event.ModePrimary, Epoch: 8, Cause: event.CauseTimer}, 8, 0},
		{Secondary, event.CheckpointStart{Mode: event.ModeSecondary, Epoch: 9}, 8, 0},
		{Secondary, event.CheckpointCommit{Mode: event.ModeSecondary, Epoch: 8}, 8, 0},
		{Primary, event.CheckpointCommit{Mode: event.ModePrimary, Epoch: 8, Pages: 3}, 0, 8},
	} {
		e, err := json.Marshal(event.Record{Event: c.e})
		if err = errors.Join(err, r.handle(message{side: c.side, event: e})); err != nil {
			t.Fatal(err)
		}
		if r.under != c.under || r.last[Primary] != c.last {
			t.Errorf("%+v of the %s: checkpoint %d under way, and %d the last, want %d and %d", c.e, c.side, r.under, r.last[Primary], c.under, c.last)
		}
	}
	if r.last[Secondary] != 8 {
		t.Errorf("the secondary's last checkpoint is %d, want 8", r.last[Secondary])
	}
}

func TestAHostMayEndThatWasKilledOrIsToEnd(t *testing.T) {
	for name, c := range map[string]struct {
		killed, closing bool
		signal          string
		err             error
		fine            bool
	}{
		"killed":                     {true, false, SignalKill, errors.New("signal: killed"), true},
		"before the kill":            {false, false, SignalKill, nil, false},
		"stopped, and died":          {true, false, SignalStop, errors.New("exit status 1"), false},
		"at the end":                 {true, true, SignalStop, nil, true},
		"at the end, with a failure": {false, true, SignalKill, errors.New("exit status 1"), false},
	} {
		r := New(Config{Kill: Primary, Signal: c.signal}, "sim", 1, new(Printer))
		p := &process{side: Primary}
		r.sides[Primary] = p
		if r.closing = c.closing; c.killed {
			r.killed = time.Unix(1, 0)
		}
		if err := r.handle(message{side: Primary, from: p, ended: true, err: c.err}); (err == nil) != c.fine || !r.gone[Primary] {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEachHostOfAPairKnowsTheOtherAndWhoOfThemStops(t *testing.T) {
	o := Config{Kill: Secondary, KillAt: "ram", Checkpoints: 4, Lost: 10 * time.Second, Term: time.Second, EarlyResume: true, Throttle: 25}
	r := New(o, "sim", 1, new(Printer))
	r.addr[Primary], r.addr[Secondary] = "here", "there"
	a, b := r.config(Primary, true), r.config(Secondary, false)
	if a.Listen != b.Dial || a.Dial != b.Listen || a.Arbiter != b.Arbiter || !a.Start || b.Start || a.StopAt != "" || b.StopAt != "ram" || b.StopEpoch != 5 {
		t.Errorf("%+v\n%+v", a, b)
	}
	if a.Beat != maxBeat || a.Lost != o.Lost || a.Term != o.Term || !a.EarlyResume || a.Throttle != 0.25 {
		t.Errorf("%+v", a)
	}
	r.o.Lost = time.Second
	if beat := r.config(Primary, false).Beat; beat != 100*time.Millisecond {
		t.Errorf("a beat every %v", beat)
	}
}

func TestImagesBeginEmptyWhateverARunHasLeft(t *testing.T) {
	r := &Result{o: Config{Disk: 64 << 10, DiskDir: t.TempDir()}}
	for range 2 {
		remove, err := r.createDisks(Primary, Secondary)
		if err == nil {
			err = remove()
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, side := range []string{Primary, Secondary} {
			b, err := os.ReadFile(r.images[side])
			if err != nil || len(b) != 64<<10 || len(bytes.Trim(b, "\x00")) > 0 {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			if known, err := os.ReadFile(r.images[side] + ".lockstep"); err == nil {
				t.Errorf("what is known of the image: %q", known)
			}
			err = errors.Join(os.WriteFile(r.images[side], []byte("the last one's"), 0o600), os.WriteFile(r.images[side]+".lockstep", []byte("generation 2"), 0o600))
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A side whose reports gather is killed somewhere after the last that has come.
func TestARunSaysWhereItsVictimWasAsFarAsThatIsKnown(t *testing.T) {
	for _, c := range []struct {
		interval time.Duration
		under    uint64
		stopped  *Stopped
		want     string
	}{
		{100 * time.Millisecond, 0, nil, "between checkpoints 7 and 8"},
		{100 * time.Millisecond, 8, nil, "in checkpoint 8"},
		{500 * time.Microsecond, 0, nil, "soon after checkpoint 7"},
		{500 * time.Microsecond, 8, nil, "soon after checkpoint 7"},
		{500 * time.Microsecond, 8, &Stopped{Epoch: 8, Detail: "at ram"}, "in checkpoint 8, at ram"},
	} {
		r := New(Config{Interval: c.interval}, "sim", 1, nil)
		r.checkpoints = []Checkpoint{{Epoch: 7}}
		r.under, r.stopped = c.under, c.stopped
		if got := r.where(); got != c.want {
			t.Errorf("%v, %d under way: %q, not %q", c.interval, c.under, got, c.want)
		}
	}
}
