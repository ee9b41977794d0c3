package compare_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
)

func adaptive() compare.Config {
	return compare.Config{Marks: true, PatientAcks: true, ReleaseRetransmits: true, Adaptive: true,
		Pace: 10 * time.Millisecond, Retry: time.Second}
}

// checkpoint is all of one, and what it releases.
func (x *rig) checkpoint(e uint64) compare.Result {
	x.t.Helper()
	x.mark(e)
	r := x.received(e)
	out := compare.Result{Release: slices.Clone(r.Release)}
	for i, f := range out.Release {
		out.Release[i].Data = slices.Clone(f.Data)
	}
	if _, err := x.SecondaryMark(e); err != nil {
		x.t.Fatal(err)
	}
	return out
}

// differ lets the guests say different things, at a position that follows from n.
func (x *rig) differ(n int) (p, s compare.Result) {
	at := seg{port: 9, seq: uint32(100 + 4*n), ack: 1, flags: push}
	a, b := at, at
	a.data, b.data = fmt.Sprintf("p%03d", n), fmt.Sprintf("s%03d", n)
	p = x.p(a)
	p.Notes = slices.Clone(p.Notes)
	return p, x.s(b)
}

func TestAFlowThatNeverAgreesIsSetApart(t *testing.T) {
	x := newRig(t, adaptive())
	x.checkpoint(0)
	n := 0
	var notes []compare.Note
	epoch := uint64(1)
	for range 3 {
		_, r := x.differ(n)
		notes = append(notes, r.Notes...)
		x.want("it differs, and a checkpoint is asked for", r, "!data")
		x.now = x.now.Add(50 * time.Millisecond)
		x.Tick(x.now)
		x.want("which covers it", x.checkpoint(epoch), fmt.Sprintf("p%03d", n))
		n++
		epoch++
	}
	for i, k := range []compare.NoteKind{compare.NoteDiverged, compare.NoteDiverged, compare.NoteDiverged, compare.NoteApart} {
		if i >= len(notes) || notes[i].Kind != k || notes[i].Flow.String() != "10.0.0.1:80 > 10.0.0.2:9 proto 6" || notes[i].Reason != compare.ReasonData {
			t.Errorf("note %d of %v is not of kind %v", i, notes, k)
		}
	}
	if s := x.Stats(); s.Apart != 1 || s.SetApart != 1 {
		t.Errorf("%+v", s)
	}

	p, s := x.differ(n)
	x.want("apart: it waits for a checkpoint, and the last one is not long ago", p, "")
	x.want("and the other guest is not asked", s, "")
	x.now = x.now.Add(9 * time.Millisecond)
	x.want("not long enough", x.Tick(x.now), "")
	if d := x.Deadline(); !d.Equal(x.now.Add(time.Millisecond)) {
		t.Errorf("the deadline is %v away", d.Sub(x.now))
	}
	x.now = x.now.Add(time.Millisecond)
	x.want("but now", x.Tick(x.now), "!pace")
	x.want("once in an epoch", x.Tick(x.now.Add(time.Millisecond)), "")
	x.want("", x.checkpoint(epoch), fmt.Sprintf("p%03d", n))
	x.now = x.now.Add(time.Minute)
	n++
	epoch++
	p, _ = x.differ(n)
	x.want("a checkpoint that is long ago is no reason to wait", p, "!pace")
	x.want("what repeats leaves all the same", x.p(seg{port: 9, seq: 100, ack: 1, flags: push, data: "p000"}), "p000")
	x.want("", x.checkpoint(epoch), fmt.Sprintf("p%03d", n))
	n++

	// The time to try again has come with that mark.
	same := seg{port: 9, seq: uint32(100 + 4*n), ack: 1, flags: push, data: "same"}
	x.want("compared again", x.p(same), "")
	x.want("and it agrees", x.s(same), "same")
	n++
	_, s = x.differ(n)
	x.want("or does not", s, "!data")
	if len(s.Notes) != 2 || s.Notes[1].Kind != compare.NoteApart || s.Notes[1].Retry != 2*time.Second {
		t.Errorf("set apart again, for twice as long: %+v", s.Notes)
	}
}

func TestNewFlowsOfAServiceThatNeverAgreesAreNotTriedEach(t *testing.T) {
	x := newRig(t, adaptive())
	x.checkpoint(0)
	epoch := uint64(1)
	asked := 0
	for port := range 20 {
		f := seg{port: uint16(5000 + port), seq: 100, ack: 1, flags: push, data: "p"}
		g := f
		g.data = "s"
		r := x.p(f)
		asked += btoi(r.Diverged && r.Reason != compare.ReasonPace)
		r = x.s(g)
		asked += btoi(r.Diverged && r.Reason != compare.ReasonPace)
		x.now = x.now.Add(20 * time.Millisecond)
		x.checkpoint(epoch)
		epoch++
	}
	if asked != 6 {
		t.Errorf("%d checkpoints were asked for at once, of 20 connections", asked)
	}
	// A service of another port is tried as ever.
	f := packetTo(22, "p")
	x.want("", x.Primary(f, x.now), "")
	x.want("", x.Secondary(packetTo(22, "s"), x.now), "!data")
}

// packetTo is of another service of the guest.
func packetTo(port byte, data string) compare.Frame {
	f := seg{port: 6000, seq: 100, ack: 1, flags: push, data: data}.frame()
	f.Data[35] = port
	return f
}

func TestOneDivergenceIsForgottenWhereMuchAgrees(t *testing.T) {
	x := newRig(t, adaptive())
	x.checkpoint(0)
	seq := uint32(100)
	for epoch := uint64(1); epoch < 40; epoch++ {
		for range 20 {
			f := seg{port: 9, seq: seq, ack: 1, flags: push, data: "same"}
			x.want("", x.p(f), "")
			x.want("", x.s(f), "same")
			seq += 4
		}
		if epoch%4 == 0 {
			a := seg{port: 9, seq: seq, ack: 1, flags: push, data: "p"}
			b := a
			b.data = "s"
			x.p(a)
			x.want("now and then it differs", x.s(b), "!data")
			seq++
		}
		x.checkpoint(epoch)
	}
	if s := x.Stats(); s.SetApart != 0 {
		t.Errorf("%+v", s)
	}
}

// Without a Pace of the host, a flow that is set apart asks for a checkpoint when the
// secondary's guest runs from the last one; if that is not heard, all the same some time.
// A flow that is compared meanwhile is left the time that its twins take.
func TestTheNextCheckpointIsAskedForWhenTheSecondaryRunsFromTheLast(t *testing.T) {
	for _, c := range []struct {
		why   string
		twins time.Duration // how long those of another flow take; 0: there is none
		pace  time.Duration
		heard bool
		from  time.Duration // when it asks, since the mark
		to    time.Duration
	}{
		{"at once", 0, 0, true, 10 * time.Millisecond, 10 * time.Millisecond},
		{"for twins", 2 * time.Millisecond, 0, true, 12 * time.Millisecond, 13 * time.Millisecond},
		{"for twins that take long", time.Second, 0, true, 15 * time.Millisecond, 15 * time.Millisecond},
		{"unheard", 0, 0, false, 100 * time.Millisecond, 100 * time.Millisecond},
		{"as the host wants", 2 * time.Millisecond, 30 * time.Millisecond, true, 30 * time.Millisecond, 30 * time.Millisecond},
	} {
		t.Run(c.why, func(t *testing.T) {
			cfg := adaptive()
			cfg.Pace, cfg.Retry = c.pace, time.Hour
			x := newRig(t, cfg)
			x.checkpoint(0)
			agrees := seg{port: 7, seq: 1, ack: 1, flags: push, data: "agrees"}
			other := func() {
				if c.twins == 0 {
					return
				}
				x.Primary(agrees.frame(), x.now)
				x.now = x.now.Add(c.twins)
				if r := x.Secondary(agrees.frame(), x.now); len(r.Release) != 1 {
					t.Fatal("it does not agree")
				}
				agrees.seq += uint32(len(agrees.data))
			}
			for n := range 3 {
				x.differ(n)
				for range 40 {
					other()
				}
				x.now = x.now.Add(time.Second)
				x.Tick(x.now)
				x.checkpoint(uint64(n + 1))
			}
			x.now = x.now.Add(time.Second)
			x.Tick(x.now)
			x.mark(4)
			marked := x.now
			p, _ := x.differ(3)
			x.want("it waits", p, "")
			if c.twins > 0 {
				x.Primary(agrees.frame(), x.now)
			}
			if c.heard {
				x.now = x.now.Add(10 * time.Millisecond)
				x.Tick(x.now)
				x.received(4)
				if _, err := x.SecondaryMark(4); err != nil {
					t.Fatal(err)
				}
			}
			if at := x.Deadline().Sub(marked); at < c.from || at > c.to {
				t.Errorf("it asks %v after the mark, want %v to %v", at, c.from, c.to)
			}
			x.now = x.Deadline()
			if r := x.Tick(x.now); !r.Diverged || r.Reason != compare.ReasonPace {
				t.Errorf("%+v", r)
			}
		})
	}
}

// A flow that lives for weeks has more epochs with a divergence than are counted.
func TestAFlowThatHasNeverAgreedForLongIsNotTriedMoreOften(t *testing.T) {
	x := newRig(t, adaptive())
	apart, last := 0, time.Duration(0)
	for n := range 600 {
		x.checkpoint(uint64(n))
		_, r := x.differ(n)
		for _, note := range r.Notes {
			if note.Kind != compare.NoteApart {
				continue
			}
			if apart++; note.Retry < last {
				t.Errorf("the %d-th time it is set apart for %v, before for %v", apart, note.Retry, last)
			}
			last = note.Retry
		}
		x.now = x.now.Add(40 * time.Second)
	}
	if apart < 256 || last != 32*time.Second {
		t.Errorf("it was set apart %d times, at last for %v", apart, last)
	}
}
