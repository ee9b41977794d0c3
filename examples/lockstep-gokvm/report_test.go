package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
)

// printed runs fn with a printer and returns the two streams.
func printed(o options, fn func(*printer)) (out, errs string) {
	var b, e bytes.Buffer
	std := stdio{strings.NewReader(""), &b, &e}
	fn(newPrinter(o, std, newConsole(std, o.json, nil)))
	return b.String(), e.String()
}

// aRun is the events of a primary that loses its secondary.
func aRun(p *printer) {
	at := time.Unix(1000, 0)
	for _, s := range []protect.State{protect.Alone, protect.Synchronising, protect.Protected} {
		p.changed(event.JobStatusChange{State: s.String()})
	}
	for i, pause := range []time.Duration{0, 1, 9, 2, 3} {
		cause := event.CauseTimer
		if i == 2 {
			cause = event.CauseDivergence
		}
		p.event(event.Record{Time: at, Event: event.CheckpointCommit{
			Mode: event.ModePrimary, Epoch: uint64(i), Cause: cause, Pages: uint64(10 * i), PauseNS: int64(pause * time.Millisecond),
		}})
	}
	p.event(event.Record{Time: at, Event: event.COLOExit{Mode: event.ModePrimary, Reason: event.ExitError, Error: "gone"}})
	for _, s := range []protect.State{protect.Asking, protect.TakingOver, protect.Alone} {
		p.changed(event.JobStatusChange{State: s.String()})
	}
}

func TestTheLastLineIsTheSummary(t *testing.T) {
	out, errs := printed(options{mode: modePrimary, json: true}, func(p *printer) { aRun(p); p.end(nil) })
	if errs != "" {
		t.Errorf("on standard error: %q", errs)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for _, l := range lines {
		if !json.Valid([]byte(l)) {
			t.Errorf("not JSON: %s", l)
		}
	}
	var last struct{ Summary summary }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
		t.Fatal(err)
	}
	s := last.Summary
	if s.Mode != "primary" || s.Checkpoints != 4 || s.Causes[event.CauseTimer] != 3 || s.Causes[event.CauseDivergence] != 1 ||
		s.DirtyPagesP50 != 20 || s.PauseP50 != 2000 || s.PauseP99 != 9000 ||
		s.Failover == nil || s.Failover.Epoch != 4 || s.Failover.Cause != "gone" || s.Failover.Reason != "error" || s.Failover.Resume <= 0 {
		t.Errorf("%+v, failover %+v", s, s.Failover)
	}
}

func TestPeopleAreToldInLines(t *testing.T) {
	out, errs := printed(options{mode: modePrimary, mem: 64 << 20}, func(p *printer) { aRun(p); p.end(errors.New("broken")) })
	if out != "" {
		t.Errorf("the console got %q", out)
	}
	for _, want := range []string{"lockstep-gokvm: protected: 64M of memory", "lockstep-gokvm: alone: the guest goes on here, unprotected, from checkpoint 4", "4 checkpoints (1 divergence, 3 timer), dirty"} {
		if !strings.Contains(errs, want) {
			t.Errorf("not told: %q in\n%s", want, errs)
		}
	}
}

// A host that has only followed does not know why there was a checkpoint, and says nothing of that.
func TestCausesThatAreNotKnownAreNotTold(t *testing.T) {
	printed(options{mode: modeSecondary}, func(p *printer) {
		if got := p.progress(); !strings.HasPrefix(got, "0 checkpoints, dirty") {
			t.Errorf("%q", got)
		}
	})
}

// What goes wrong is told once: not again as trouble where it is why the state is what it is, or where the
// arbiter that cannot decide has told it.
func TestWhatGoesWrongIsToldOnce(t *testing.T) {
	_, errs := printed(options{mode: modeSecondary}, func(p *printer) {
		lost := errors.New("the peer\nis lost")
		p.changed(event.JobStatusChange{State: protect.Waiting.String(), Reason: lost.Error()})
		p.trouble(lost)
		p.trouble(fmt.Errorf("the arbiter does not answer: %w", errUndecided))
		for range 2 {
			p.trouble(errors.New("connection refused"))
		}
		p.trouble(lost)
		p.changed(event.JobStatusChange{State: protect.Following.String(), Reason: "follows a"})
		p.trouble(errors.New("the disk is full"))
		for _, port := range []string{"1", "2"} {
			p.trouble(fmt.Errorf("read tcp 10.0.0.1:%s->10.0.0.2:7654: connection reset", port))
		}
	})
	const want = "lockstep-gokvm: waiting: the peer; is lost\nlockstep-gokvm: trouble: connection refused\n" +
		"lockstep-gokvm: following: follows a\nlockstep-gokvm: trouble: the disk is full\n" +
		"lockstep-gokvm: trouble: read tcp 10.0.0.1:1->10.0.0.2:7654: connection reset\n"
	if errs != want {
		t.Errorf("%q, want %q", errs, want)
	}
}

func TestFiguresAreOfTheLastCheckpoints(t *testing.T) {
	var s samples[int64]
	if s.quantile(0.5) != 0 {
		t.Error("of none")
	}
	for i := range int64(maxSamples + 10) {
		s.add(i)
	}
	if len(s.values) != maxSamples || s.quantile(0) != 10 || s.quantile(1) != maxSamples+9 {
		t.Errorf("%d values, %d to %d", len(s.values), s.quantile(0), s.quantile(1))
	}
}

// A host that was refused when it would start the guest has said so, and follows: nothing is wrong.
func TestARefusalForWhichAHostWaitsIsNoTrouble(t *testing.T) {
	_, errs := printed(options{mode: modePrimary}, func(p *printer) {
		refusal := errors.New("the arbiter refuses")
		p.changed(event.JobStatusChange{State: protect.Waiting.String(), Reason: refusal.Error()})
		p.changed(event.JobStatusChange{State: protect.Following.String(), Reason: "follows a"})
		p.trouble(refusal)
	})
	if want := "lockstep-gokvm: waiting: the arbiter refuses\nlockstep-gokvm: following: follows a\n"; errs != want {
		t.Errorf("%q, want %q", errs, want)
	}
}

func TestWhatAPeerChoosesMakesNoLineOfItsOwn(t *testing.T) {
	_, errs := printed(options{mode: modeSecondary}, func(p *printer) {
		p.changed(event.JobStatusChange{State: protect.Following.String(), Reason: "follows a\nlockstep-gokvm: alone: \x1b[2Jhere"})
		p.changed(event.JobStatusChange{}) // the job is dismissed
	})
	if want := `lockstep-gokvm: following: follows a; lockstep-gokvm: alone: \x1b[2Jhere` + "\n"; errs != want {
		t.Errorf("%q, want %q", errs, want)
	}
}

func TestEachTimeThatTheArbiterIsAwayIsToldAndItsEnd(t *testing.T) {
	const away, back = "trouble: protect: the arbiter does not answer: no such directory", "arbiter: it answers again"
	_, said := printed(options{}, func(p *printer) {
		answers := func(a event.ArbiterAnswer, why string) {
			p.event(event.Record{Event: event.Arbitration{Answer: a, Error: why}})
			if why != "" { // and it is in LastError, from where it is told, too
				p.trouble(errors.New("protect: the arbiter does not answer: " + why))
			}
		}
		answers(event.ArbiterGranted, "") // nothing was wrong
		for range 3 {
			answers(event.ArbiterUnreachable, "no such directory")
			answers(event.ArbiterUnreachable, "no such directory")
			answers(event.ArbiterGranted, "")
			answers(event.ArbiterGranted, "")
		}
	})
	want := strings.Repeat("lockstep-gokvm: "+away+"\nlockstep-gokvm: "+back+"\n", 3)
	if said != want {
		t.Errorf("it says\n%swant\n%s", said, want)
	}
}
