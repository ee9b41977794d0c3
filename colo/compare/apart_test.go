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

// Without a Pace of the host, a flow that is set apart waits no longer from one mark
// to the next than a checkpoint takes.
func TestThePaceIsWhatACheckpointTakes(t *testing.T) {
	for _, c := range []struct{ takes, waits time.Duration }{
		{time.Millisecond, time.Millisecond},
		{2500 * time.Microsecond, 2500 * time.Microsecond},
		{20 * time.Millisecond, 5 * time.Millisecond},
		{0, 5 * time.Millisecond}, // nothing is known of it
	} {
		t.Run(c.takes.String(), func(t *testing.T) {
			cfg := adaptive()
			cfg.Pace, cfg.Retry = 0, time.Hour
			x := newRig(t, cfg)
			x.checkpoint(0)
			for n := range 3 {
				x.differ(n)
				x.now = x.now.Add(time.Second)
				x.Tick(x.now)
				x.mark(uint64(n + 1))
				x.now = x.now.Add(c.takes)
				x.Tick(x.now)
				x.received(uint64(n + 1))
				if _, err := x.SecondaryMark(uint64(n + 1)); err != nil {
					t.Fatal(err)
				}
			}
			x.now = x.now.Add(time.Second)
			x.Tick(x.now)
			x.mark(4)
			p, _ := x.differ(3)
			x.want("it waits", p, "")
			if d := x.Deadline(); !d.Equal(x.now.Add(c.waits)) {
				t.Errorf("until %v after the mark, want %v", d.Sub(x.now), c.waits)
			}
		})
	}
}
