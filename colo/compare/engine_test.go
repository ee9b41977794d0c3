package compare_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// An engine is driven by scripts: each test gives it packets and steps of checkpoints, and
// says what it must release, and which reasons it must have, after each.

func TestStalePacketOfTheSecondaryReleasesNothing(t *testing.T) {
	for _, marks := range []bool{true, false} {
		x := newRig(t, compare.Config{Marks: marks})
		begin := func(e uint64) compare.Result {
			t.Helper()
			if !marks {
				if err := x.Loaded(e); err != nil {
					t.Fatal(err)
				}
				return compare.Result{}
			}
			r, err := x.SecondaryMark(e)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		x.mark(0)
		x.want("the synchronisation releases what there was", x.received(0), "")
		begin(0)
		x.want("", x.Primary(udp("a"), x.now), "")
		x.want("equal packets of one epoch", x.Secondary(udp("a"), x.now), "a")
		x.want("held at the mark", x.Primary(udp("b"), x.now), "")
		x.mark(1)
		x.want("the primary goes on", x.Primary(udp("c"), x.now), "")
		x.want("a packet of the old epoch, equal to one of the new", x.Secondary(udp("c"), x.now), "")
		x.want("or to one that is marked", x.Secondary(udp("b"), x.now), "")
		x.want("a receipt releases what was marked and no more", x.received(1), "b")
		x.want("still of the old epoch", x.Secondary(udp("c"), x.now), "")
		if marks {
			x.Loaded(1)
			x.want("only the marker ends it", x.Secondary(udp("c"), x.now), "")
		}
		x.want("", begin(1), "")
		x.want("the secondary of the new epoch says it too", x.Secondary(udp("c"), x.now), "c")
		if s := x.Stats(); s.Stale != uint64(3+btoi(marks)) || s.Matched != 2 || s.Checkpoint != 1 || s.Held != 0 || s.HeldBytes != 0 {
			t.Errorf("%+v", s)
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestSecondarysMarkerIsAReceipt(t *testing.T) {
	x := newRig(t, compare.Config{Marks: true})
	x.Primary(udp("a"), x.now)
	x.mark(0)
	r, err := x.SecondaryMark(0)
	if err != nil {
		t.Fatal(err)
	}
	x.want("who commits an epoch has it", r, "a")
	x.Primary(udp("b"), x.now)
	x.want("and speaks of the next", x.Secondary(udp("b"), x.now), "b")
	x.want("the message comes later and changes nothing", x.received(0), "")
}

func TestStepsOutOfOrderAreRefused(t *testing.T) {
	for _, strict := range []bool{false, true} {
		e := compare.NewEngine(compare.Config{Strict: strict, Marks: true})
		second := func(_ compare.Result, err error) error { return err }
		for why, err := range map[string]error{
			"a mark left out":                 e.Mark(1),
			"a receipt of what is not marked": second(e.Received(0)),
			"a load of what is not marked":    e.Loaded(0),
			"a marker of what is not marked":  second(e.SecondaryMark(0)),
		} {
			if !errors.Is(err, compare.ErrEpoch) {
				t.Errorf("%s: %v", why, err)
			}
		}
	}
}

func TestFailoverReleasesEverythingInOrderAndThenPasses(t *testing.T) {
	for _, strict := range []bool{false, true} {
		x := newRig(t, compare.Config{Strict: strict})
		x.p(seg{port: 1, seq: 100, flags: push, data: "a", ack: 1})
		x.mark(0)
		x.p(seg{port: 1, seq: 101, flags: push, data: "b", ack: 1})
		x.Primary(udp("c"), x.now)
		x.want("all of it", x.Failover(), "a b c")
		x.want("packets pass", x.Primary(udp("d"), x.now), "d")
		x.want("a secondary that is not there has nothing to say", x.Secondary(udp("d"), x.now), "")
		x.mark(0)
		x.want("until there is another one", x.Primary(udp("e"), x.now), "")
	}
}

func TestConnectionOpensTalksAndCloses(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		x := newRig(t, compare.Config{})
		s := func(seq, ack uint32, flags uint8, data string, id uint16) seg {
			return seg{port: 9, seq: seq, ack: ack, flags: flags, data: data, id: id, v6: v6}
		}
		x.want("the opening waits for the secondary's", x.p(s(1000, 501, packet.SYN|packet.ACK, "", 1)), "")
		x.want("which has another number", x.s(s(9000, 501, packet.SYN|packet.ACK, "", 2)), "SYN")
		x.want("", x.p(s(1001, 501, push, "hello,", 3)), "")
		x.want("", x.p(s(1007, 501, push, "world", 4)), "")
		x.want("cut otherwise", x.s(s(1001, 501, push, "hello,wor", 5)), "hello,")
		x.want("", x.s(s(1010, 501, push, "ld", 6)), "world")
		x.want("the client must not hear what the secondary has not acknowledged", x.p(s(1012, 600, ackOnly, "", 7)), "")
		x.want("until it has", x.s(s(1012, 600, ackOnly, "", 8)), "ack600")
		x.want("the same acknowledgment again waits for nobody", x.p(s(1012, 600, ackOnly, "", 9)), "ack600")
		x.want("the end", x.p(s(1012, 600, packet.FIN|packet.ACK, "!", 10)), "")
		x.want("data without the end", x.s(s(1012, 600, push, "!", 11)), "")
		x.want("the end itself", x.s(s(1013, 600, packet.FIN|packet.ACK, "", 12)), "!FIN")
		x.want("", x.p(s(1014, 601, ackOnly, "", 13)), "")
		x.want("", x.s(s(1014, 601, ackOnly, "", 14)), "ack601")
		if st := x.Stats(); st.Held != 0 || st.HeldBytes != 0 {
			t.Errorf("%+v", st)
		}
	}
}

func TestEventsOfTheStreamMustAgree(t *testing.T) {
	d := seg{port: 9, seq: 100, ack: 1, flags: push, data: "abcd"}
	with := func(s seg, flags uint8, data string) seg { s.flags, s.data = flags, data; return s }
	for _, c := range []struct {
		why  string
		p, s seg
		want string
	}{
		{"an end against more data", with(d, packet.FIN|packet.ACK, "ab"), d, "!flags"},
		{"data against an end", d, with(d, packet.FIN|packet.ACK, "ab"), "!flags"},
		{"data against a reset", d, with(d, packet.RST, ""), "!flags"},
		{"an end against a reset", with(d, packet.FIN|packet.ACK, ""), with(d, packet.RST, ""), "!flags"},
		{"a reset against an end", with(d, packet.RST, ""), with(d, packet.FIN|packet.ACK, ""), "!flags"},
		{"an opening against a reset", with(d, packet.SYN|packet.ACK, ""), with(d, packet.RST|packet.ACK, ""), "!flags"},
		{"an answer against an opening", with(d, packet.SYN|packet.ACK, ""), with(d, packet.SYN, ""), "!flags"},
		{"an opening with data against one with other data", with(d, packet.SYN, "abcd"), with(d, packet.SYN, "efgh"), ""},
		{"a reset against a reset", with(d, packet.RST, ""), with(d, packet.RST|packet.ACK, ""), "RST"},
	} {
		x := newRig(t, compare.Config{})
		alone := ""
		if c.p.flags&packet.SYN != 0 && c.p.data != "" {
			alone = "!flags" // nobody can agree with it
		}
		x.want(c.why+": alone it waits", x.p(c.p), alone)
		x.want(c.why, x.s(c.s), c.want)
		if c.p.flags&packet.SYN != 0 && c.s.flags&packet.RST != 0 || alone != "" {
			continue // what was reset before may have been another connection
		}
		y := newRig(t, compare.Config{})
		y.want(c.why+": the other way round it waits", y.s(c.s), "")
		y.want(c.why+": the other way round", y.p(c.p), c.want)
	}
}

func TestDivergenceNamesItsFlow(t *testing.T) {
	x := newRig(t, compare.Config{})
	x.p(seg{port: 9, seq: 1, ack: 1, flags: push, data: "a"})
	r := x.s(seg{port: 9, seq: 1, ack: 1, flags: push, data: "b"})
	if got := r.Flow.String(); got != "10.0.0.1:80 > 10.0.0.2:9 proto 6" {
		t.Errorf("%s", got)
	}
	if got := (compare.Flow{}).String(); got != "-" {
		t.Errorf("%s", got)
	}
}

func TestPatientEngineWaitsForAcknowledgments(t *testing.T) {
	x := newRig(t, compare.Config{PatientAcks: true, ReleaseRetransmits: true})
	a := seg{port: 9, seq: 100, ack: 50, flags: push, data: "abcd"}
	b := a
	b.ack = 40
	x.want("", x.p(a), "")
	x.want("the data agrees, the acknowledgment may come", x.s(b), "")
	x.want("", x.s(seg{port: 9, seq: 104, ack: 50, flags: ackOnly}), "abcd")
	x.want("a retransmission goes", x.p(a), "abcd")
	a.ack = 60
	x.want("but not with news", x.p(a), "")
	x.now = x.now.Add(4 * time.Second)
	x.want("for ever", x.Tick(x.now), "!timeout")
}

func TestPatienceWithAcknowledgmentsMayBeShorter(t *testing.T) {
	x := newRig(t, compare.Config{PatientAcks: true, ReleaseRetransmits: true, AckTimeout: 200 * time.Millisecond})
	x.Tick(x.now)
	a := seg{port: 9, seq: 100, ack: 50, flags: push, data: "abcd"}
	b := a
	b.ack = 40
	x.want("", x.p(a), "")
	x.want("no twin yet", x.s(seg{port: 8, seq: 1, ack: 1, flags: ackOnly}), "")
	x.now = x.now.Add(300 * time.Millisecond)
	x.want("data is waited for as long as ever", x.Tick(x.now), "")
	x.want("", x.s(b), "")
	x.now = x.now.Add(300 * time.Millisecond)
	x.want("that guest had no room for the input, it seems", x.Tick(x.now), "!ack")
	x.now = x.now.Add(300 * time.Millisecond)
	x.want("once in an epoch", x.Tick(x.now), "")
	x.want("", x.s(seg{port: 9, seq: 104, ack: 50, flags: ackOnly}), "abcd")
	if s := x.Stats(); s.Recovered != 1 {
		t.Errorf("%+v", s)
	}
}

func TestCheckpointInTheMiddleOfAConnectionLeavesNothingBehind(t *testing.T) {
	x := newRig(t, compare.Config{})
	s := func(seq, ack uint32, flags uint8, data string) seg {
		return seg{port: 9, seq: seq, ack: ack, flags: flags, data: data}
	}
	x.p(s(1000, 501, packet.SYN|packet.ACK, ""))
	x.s(s(9000, 501, packet.SYN|packet.ACK, ""))
	x.want("", x.p(s(1001, 501, push, "differs")), "")
	x.want("", x.s(s(1001, 501, push, "DIFFERS")), "!data")
	x.want("", x.p(s(1008, 700, push, "more")), "")
	x.mark(0)
	x.want("in the order of the guest's sending", x.received(0), "differs more")
	x.Loaded(0)
	x.want("the next data is found though its predecessor was never compared", x.p(s(1012, 700, push, "next")), "")
	x.want("", x.s(s(1012, 700, push, "next")), "next")
	x.want("what was acknowledged before the mark is known to the secondary", x.p(s(1016, 700, ackOnly, "")), "ack700")
	x.s(s(1001, 700, push, "differsmore")) // it sends again what the mark covers
	x.now = x.now.Add(time.Minute)
	x.want("and nobody waits for the primary's", x.Tick(x.now), "")
}

// A host that calls Tick at each Deadline, and at no other time, is asked for a checkpoint.
func TestWhoTicksAtTheDeadlinesAloneIsAsked(t *testing.T) {
	for _, strict := range []bool{false, true} {
		x := newRig(t, compare.Config{Strict: strict, Timeout: 200 * time.Millisecond, Scan: 100 * time.Millisecond})
		if d := x.Deadline(); !d.IsZero() {
			t.Errorf("strict %t: there is a deadline, %v, and no packet", strict, d)
		}
		begun := x.now
		x.Primary(udp("a"), x.now)
		for ticks := 0; ; ticks++ {
			d := x.Deadline()
			if d.IsZero() || ticks == 10 {
				t.Errorf("strict %t: not asked; after %d ticks the deadline is %v", strict, ticks, d)
				break
			}
			x.now = d
			if x.Tick(x.now).Diverged {
				if waited := x.now.Sub(begun); waited > 400*time.Millisecond {
					t.Errorf("strict %t: asked after %v", strict, waited)
				}
				break
			}
		}
	}
}

func TestAStepOutOfTurnSaysWhichMarksThereAre(t *testing.T) {
	x := newRig(t, compare.Config{})
	_, err := x.Received(0)
	want := "compare: epoch out of order: received 0, and none is marked"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if err := errors.Join(x.Mark(0), x.Mark(1)); err != nil {
		t.Fatal(err)
	}
	want = "compare: epoch out of order: mark 3, and the last that is marked is 1"
	if err := x.Mark(3); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	x.Failover()
	want = "compare: epoch out of order: loaded 1, while packets pass, until mark 0"
	if err := x.Loaded(1); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestTimeoutsAskAgainAtEachScan(t *testing.T) {
	for _, strict := range []bool{false, true} {
		x := newRig(t, compare.Config{Strict: strict, Timeout: 200 * time.Millisecond, Scan: 100 * time.Millisecond})
		x.want("", x.Tick(x.now), "")
		x.Primary(udp("a"), x.now)
		asked := 0
		for range 100 {
			x.now = x.now.Add(10 * time.Millisecond)
			r := x.Tick(x.now)
			if len(r.Release) > 0 {
				t.Error("a timer releases nothing")
			}
			asked += btoi(r.Diverged)
		}
		if asked != 8 { // at 0.3, 0.4 ... 1.0 s
			t.Errorf("strict %t: asked %d times in a second", strict, asked)
		}
		if x.Deadline().Sub(x.now) > 100*time.Millisecond {
			t.Errorf("deadline %v at %v", x.Deadline(), x.now)
		}
	}
}

func TestLimitsHoldAndAskAndLoseNothing(t *testing.T) {
	x := newRig(t, compare.Config{MaxConns: 2, MaxBytes: 4096})
	one := func(port uint16) seg { return seg{port: port, seq: 1, flags: push, data: fmt.Sprint(port), ack: 1} }
	x.want("", x.p(one(1)), "")
	x.want("", x.p(one(2)), "")
	x.want("a connection too many waits", x.p(one(3)), "!limit")
	x.want("and is asked for once", x.p(one(4)), "")
	var got []string
	n := 0
	for ; n < 100; n++ {
		r := x.Primary(udp("x"), x.now)
		if r.Full {
			break
		}
	}
	if n == 100 {
		t.Error("never full")
	}
	if s := x.Stats(); s.HeldBytes > 4096 || s.HeldBytes < 4096*3/4 {
		t.Errorf("full with %d bytes", s.HeldBytes)
	}
	x.mark(0)
	r := x.received(0)
	got = strings.Fields(show(r))
	if want := append([]string{"1", "2", "3", "4"}, slices.Repeat([]string{"x"}, n)...); !slices.Equal(got, want) {
		t.Errorf("released %v", got)
	}
	x.Loaded(0)
	x.want("room again: an idle connection gives way", x.p(one(5)), "")
	x.want("", x.s(one(5)), "5")
	if s := x.Stats(); s.Conns != 2 || s.Held != 0 {
		t.Errorf("%+v", s)
	}
}

func TestIdleConnectionsAreForgotten(t *testing.T) {
	x := newRig(t, compare.Config{Idle: time.Minute})
	x.s(seg{port: 1, seq: 1, flags: ackOnly, ack: 1})
	x.want("", x.p(seg{port: 1, seq: 1, flags: ackOnly, ack: 1}), "ack1")
	x.now = x.now.Add(2 * time.Minute)
	x.p(seg{port: 2, seq: 1, flags: ackOnly, ack: 1})
	x.Tick(x.now)
	if n := x.Stats().Conns; n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestPolicyForWhatCannotBeCompared(t *testing.T) {
	arp := compare.Frame{Data: append(make([]byte, 12), 8, 6, 0, 1)}
	tagged := func(data string) compare.Frame {
		f := udp(data).Data
		return compare.Frame{Data: slices.Concat(f[:12], []byte{0x81, 0, 0, 5}, f[12:])}
	}
	x := newRig(t, compare.Config{})
	x.want("it passes", x.Primary(arp, x.now), "type806")
	x.want("", x.Primary(tagged("a"), x.now), "a")
	x.want("the secondary's is dropped", x.Secondary(arp, x.now), "")
	if s := x.Stats(); s.Passed != 2 || s.Dropped != 1 {
		t.Errorf("%+v", s)
	}
	x = newRig(t, compare.Config{HoldUncompared: true, CompareVLAN: true})
	x.want("or is held", x.Primary(arp, x.now), "")
	x.want("", x.Primary(tagged("a"), x.now), "")
	x.want("or compared", x.Secondary(tagged("a"), x.now), "a")
	x.mark(0)
	x.want("to the checkpoint", x.received(0), "type806")
}

func TestMatchedPacketsAllocateNothing(t *testing.T) {
	for _, first := range []bool{true, false} {
		x := newRig(t, compare.Config{})
		p := seg{port: 9, seq: 1, ack: 1, flags: push, data: strings.Repeat("d", 1460)}.frame()
		s := seg{port: 9, seq: 1, ack: 1, flags: push, data: strings.Repeat("d", 1460), id: 7}.frame()
		u := udp("ping")
		seq := uint32(1)
		n := testing.AllocsPerRun(1000, func() {
			setSeq(p, seq)
			setSeq(s, seq)
			seq += 1460
			var r compare.Result
			if first {
				x.Primary(p, x.now)
				r = x.Secondary(s, x.now)
			} else {
				x.Secondary(s, x.now)
				r = x.Primary(p, x.now)
			}
			if len(r.Release) != 1 {
				t.Fatal("not released")
			}
			x.Secondary(u, x.now)
			if r = x.Primary(u, x.now); len(r.Release) != 1 {
				t.Fatal("not released")
			}
		})
		if n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

// A session may end without a failover, with packets that no receipt will come for.
func TestTheNextSessionCoversWhatTheOneBeforeItHeld(t *testing.T) {
	for _, strict := range []bool{false, true} {
		x := newRig(t, compare.Config{Strict: strict, Marks: true})
		for e := range uint64(3) {
			x.mark(e)
		}
		x.received(2)
		x.Primary(udp("a"), x.now)
		x.mark(3)
		x.Primary(udp("b"), x.now)
		x.mark(0)
		x.Primary(udp("c"), x.now)
		x.want("its first checkpoint has what was sent before it", x.received(0), "a b")
		x.mark(1)
		x.want("and the next one the rest", x.received(1), "c")
	}
}
