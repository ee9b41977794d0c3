package compare_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

func bareAt(seq, ack uint32, win uint16) ackSeg {
	return ackSeg{seq: seq, ack: ack, win: win, flags: packet.ACK}
}

// The peer takes no window from a segment that begins before the one that it has its window from.
func TestAnAcknowledgmentBeginsWhereASurvivorGoesOn(t *testing.T) {
	x, p, s := opened(t, nil)
	x.told("", s(bareAt(100, 1512, 46)), "")
	x.told("", p(ackSeg{seq: 100, ack: 1512, win: 46, flags: packet.ACK, data: "abcd"}), "")
	x.told("nothing but the SYN has left", p(bareAt(104, 1512, 46)), "@100 ack 1512 to 7400")
	x.told("", s(ackSeg{seq: 100, ack: 1512, win: 46, flags: packet.ACK, data: "abcdef"}), "abcd@100 ack 1512 to 7400")
	x.told("the other guest has said as much", p(bareAt(106, 1640, 45)), "")
	x.told("", s(bareAt(106, 1640, 45)), "@106 ack 1640 to 7400")
}

func TestAWindowThatOpensIsNotForgottenForAnOlderSegment(t *testing.T) {
	for what, win := range map[string]uint16{"it offers as much as the other guest": 50, "it offers more, and is owed": 60} {
		x, p, s := opened(t, nil)
		x.told(what, p(ackSeg{seq: 100, ack: 1000, win: win, flags: packet.ACK, data: "abcd"}), "")
		x.told(what, p(bareAt(104, 1000, 100)), "")
		x.told(what, s(ackSeg{seq: 100, ack: 1000, win: 50, flags: packet.ACK, data: "abcd"}), "abcd@100 ack 1000 to 7400")
		x.told(what, s(bareAt(104, 1000, 100)), "@104 ack 1000 to 13800")
	}
}

func TestAnOlderAndNarrowerWindowTakesNothingBack(t *testing.T) {
	x, p, s := opened(t, nil)
	x.told("", s(bareAt(100, 1000, 100)), "")
	x.told("", p(ackSeg{seq: 100, ack: 1000, win: 50, flags: packet.ACK, data: "abcd"}), "")
	x.told("", p(bareAt(104, 1000, 100)), "@100 ack 1000 to 13800")
	x.told("it begins where that did", s(ackSeg{seq: 100, ack: 1000, win: 100, flags: packet.ACK, data: "abcd"}), "abcd@100 ack 1000 to 13800")
	s(bareAt(104, 1000, 40))
	x.told("a guest may take back what it has offered itself", p(bareAt(104, 1000, 40)), "@104 ack 1000 to 6120")
}

// A peer drops what begins before the data that it has.
func TestWhatARepetitionAcknowledgesBeginsBehindWhatHasLeft(t *testing.T) {
	_, p, s := opened(t, nil)
	for _, a := range []ackSeg{data(100, "abcd"), data(104, "efgh")} {
		p(a)
		if r := s(a); len(r.Release) != 1 {
			t.Errorf("%q", told(r))
		}
	}
	a := data(100, "abcd")
	a.ack = 1512
	if r := p(a); told(r) != "abcd@100 ack 1000 to 7400" {
		t.Errorf("what the other guest has acknowledged: %q", told(r))
	}
	if r := s(bareAt(108, 1512, 50)); told(r) != "@108 ack 1512 to 7912" {
		t.Errorf("the rest: %q", told(r))
	}
}

// Three duplicates have the peer send again what nobody lacks.
func TestNoDuplicateLeavesThatTheGuestHasNotGiven(t *testing.T) {
	x, p, s := opened(t, nil)
	x.told("", p(ackSeg{seq: 100, ack: 2024, win: 50, flags: packet.ACK, data: "x"}), "")
	x.told("", s(ackSeg{seq: 100, ack: 1512, win: 50, flags: packet.ACK, data: "x"}), "x@100 ack 1512 to 7912")
	x.told("the other guest alone repeats itself", s(bareAt(101, 1512, 50)), "")
	x.told("", s(bareAt(101, 1512, 50)), "")

	x, p, s = opened(t, nil)
	x.told("", p(ackSeg{seq: 100, ack: 1512, win: 50, flags: packet.ACK, data: "x"}), "")
	x.told("", p(bareAt(101, 2024, 50)), "")
	x.told("", s(bareAt(100, 1512, 50)), "@100 ack 1512 to 7912")
	x.told("", s(ackSeg{seq: 100, ack: 1512, win: 50, flags: packet.ACK, data: "x"}), "x@100 ack 1512 to 7912")
	x.told("what has left was sent before it", s(bareAt(101, 1512, 50)), "")
}

// A client that opens a connection takes a refusal only if it acknowledges its SYN.
func TestARefusalHasTheNumberOfTheSYNThatItRefuses(t *testing.T) {
	for _, ack := range []uint32{901, 5000, 1000 + 1<<30, 1000 + 3<<29, 1000 + 5<<29} {
		x, p, s := opened(t, nil)
		over := ackSeg{seq: 100, ack: 1000, win: 50, flags: packet.RST | packet.ACK}
		p(over)
		if r := s(over); len(r.Release) != 1 {
			t.Fatal("the connection is not over")
		}
		refusal := ackSeg{ack: ack, flags: packet.RST | packet.ACK}
		if r := p(refusal); len(r.Release) > 0 {
			t.Errorf("%d: a refusal leaves before the other guest has said it", ack)
		}
		r := s(refusal)
		if len(r.Release) != 1 {
			t.Errorf("%d: %d segments leave", ack, len(r.Release))
			continue
		}
		if got := binary.BigEndian.Uint32(r.Release[0].Data[34+8:]); got != ack {
			t.Errorf("a refusal of %d leaves with %d", ack, got)
		}
		if st := x.Stats(); st.Held > 0 {
			t.Errorf("%d: %+v", ack, st)
		}
	}
}

// A guest that is asked again may begin with the number of the connection that it has reset.
func TestASYNAfterARSTIsOfAnotherConnection(t *testing.T) {
	_, p, s := opened(t, nil)
	syn := ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
	for range 3 {
		p(data(100, "abcd"))
		if r := s(data(100, "abcd")); len(r.Release) == 0 {
			t.Errorf("data: %q", told(r))
		}
		over := ackSeg{seq: 104, ack: 1000, win: 50, flags: packet.RST | packet.ACK}
		p(over)
		if r := s(over); len(r.Release) != 1 {
			t.Errorf("RST: %q", told(r))
		}
		if r := p(syn); len(r.Release) > 0 {
			t.Errorf("the other guest has not answered again, and this leaves: %q", told(r))
		}
		if r := p(data(100, "ab")); len(r.Release) > 0 || r.Diverged {
			t.Errorf("nor has it said that: %q", told(r))
		}
		if r := s(syn); len(r.Release) != 1 {
			t.Errorf("now it has answered: %q", told(r))
		}
		if r := p(syn); len(r.Release) != 1 {
			t.Errorf("again: %q", told(r))
		}
	}
}

// Of what the other guest holds of a block, only so much is told as there is room for blocks. That
// there is more is no news.
func TestWhatThereIsNoRoomForIsNotToldAgainAndAgain(t *testing.T) {
	_, p, s := opened(t, nil)
	a := bareAt(100, 1000, 50)
	a.opts = sackOption(2000, 2100, 2300, 2400)
	x := a
	x.data = "x"
	s(a)
	a.ack, a.win, a.opts = 1512, 46, sackOption(2000, 2400)
	if r := p(a); len(r.Release) != 1 {
		t.Errorf("%q", told(r))
	}
	if r := s(x); len(r.Release) > 0 {
		t.Errorf("what the other guest sends makes a duplicate: %q", told(r))
	}
}

// A block within another tells of a duplicate (RFC 2883 section 4), once.
func TestADuplicateWithinABlockIsNoNewsTwice(t *testing.T) {
	opts := []byte{1, 1, packet.OptSACK, 18}
	for _, v := range []uint32{2100, 2200, 2000, 2400} {
		opts = binary.BigEndian.AppendUint32(opts, v)
	}
	_, p, s := opened(t, nil)
	a := bareAt(100, 1000, 50)
	a.opts = string(opts)
	s(a)
	x := a
	x.data = "x"
	a.ack, a.win = 1512, 46
	if r := p(a); len(r.Release) != 1 {
		t.Errorf("%q", told(r))
	}
	if r := s(x); len(r.Release) > 0 {
		t.Errorf("what the other guest sends makes a duplicate: %q", told(r))
	}
}

// answeredSYN is the client's answer to the SYN 99.
func answeredSYN() []byte {
	f := answer(100, wireMSS+wireWindow7)
	binary.BigEndian.PutUint32(f[34+4:], 999)
	f[34+13] |= packet.SYN
	return sealed(f)
}

func TestASYNThatIsRepeatedLateTakesNoScaleAway(t *testing.T) {
	x := newRig(t, lowering())
	x.checkpoint(0)
	syn := ackSeg{seq: 99, win: 6400, flags: packet.SYN, opts: wireMSS + wireWindow7}.frame()
	x.Primary(syn, x.now)
	x.Secondary(syn, x.now)
	x.Inbound(compare.Frame{Data: answeredSYN()})
	x.Primary(syn, x.now)
	x.told("", x.Primary(bareAt(100, 1512, 46).frame(), x.now), "")
	x.told("it is lowered", x.Secondary(bareAt(100, 1256, 48).frame(), x.now), "@100 ack 1256 to 7400")

	var kept compare.Scales
	kept.FromGuest(syn.Data, 0)
	kept.ToGuest(answeredSYN(), 0)
	kept.FromGuest(syn.Data, 0)
	if n := len(kept.Append(nil)); n != compare.ScaleRecord {
		t.Errorf("%d bytes are kept of one connection", n)
	}
}

// What only the primary's guest lacks the client has to hear of all the same.
func TestWhatTheOtherGuestHasAcknowledgedMayBeAcknowledgedSelectively(t *testing.T) {
	for _, c := range []struct {
		what      string
		ack       uint32 // of the other guest
		held      string // by it beyond that
		says, may []uint32
	}{
		{what: "all", ack: 3000, says: []uint32{2000, 2500}, may: []uint32{2000, 2500}},
		{what: "up to its number", ack: 2200, says: []uint32{2000, 2500}, may: []uint32{2000, 2200}},
		{what: "and what it holds from there", ack: 2200, held: sackOption(2200, 2300), says: []uint32{2000, 2500}, may: []uint32{2000, 2300}},
		{what: "and there is room for one block", ack: 2200, held: sackOption(2300, 2400), says: []uint32{2000, 2500}, may: []uint32{2000, 2200}},
		{what: "and there is room for two", ack: 2200, held: sackOption(2300, 2400), says: []uint32{2000, 2500, 2600, 2700}, may: []uint32{2000, 2200, 2300, 2400}},
	} {
		_, p, s := opened(t, nil)
		a := bareAt(100, c.ack, 50)
		a.opts = c.held
		s(a)
		a = bareAt(100, 1512, 46)
		a.opts = sackOption(c.says...)
		r := p(a)
		if len(r.Release) != 1 {
			t.Fatalf("%s: %d leave", c.what, len(r.Release))
		}
		var v packet.Packet
		v.Parse(r.Release[0].Data)
		got := ""
		for kind, data, rest, ok := packet.NextOption(v.TCP().Options()); ok; kind, data, rest, ok = packet.NextOption(rest) {
			if kind == packet.OptSACK {
				got = string(data)
			}
		}
		if want := sackOption(c.may...)[4:]; got != want {
			t.Errorf("%s: %x, want %x", c.what, got, want)
		}
	}
}

// What was owed at a mark, and has left as far as the other guest has given it, does not leave once more
// with the checkpoint: it would be a duplicate that no guest has given.
func TestWhatHasLeftOfAnAcknowledgmentDoesNotLeaveAgainWithACheckpoint(t *testing.T) {
	x, p, s := opened(t, nil)
	block := string(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte{1, 1, 5, 10}, 1300), 1400))
	beyond := ackSeg{seq: 100, ack: 1000, win: 50, flags: ackOnly, opts: block}
	x.told("the other guest does not hold that", p(beyond), "")
	s(ackSeg{seq: 100, ack: 1200, win: 50, flags: ackOnly})
	x.told("both repeat themselves", s(ackSeg{seq: 100, ack: 1200, win: 50, flags: ackOnly}), "@100 ack 1000 to 7400")
	x.mark(1)
	if r := x.received(1); len(r.Release) > 0 {
		t.Errorf("with the checkpoint: %q", told(r))
	}
	if st := x.Stats(); st.Held > 1 {
		t.Errorf("%+v", st)
	}
}

// A guest asks whether the peer is alive by a segment that begins before what it has said, and the peer takes no
// window from that.
func TestWhatIsOwedIsSaidThoughAGuestAsksWhetherThePeerIsAlive(t *testing.T) {
	data := func(win uint16) ackSeg {
		return ackSeg{seq: 100, ack: 1000, win: win, flags: packet.ACK, data: "abcd"}
	}
	x, p, s := opened(t, nil)
	p(data(50))
	s(data(50))
	x.told("the other guest has less room", p(bareAt(104, 1000, 100)), "")
	x.told("", p(bareAt(103, 1000, 100)), "")
	x.told("", p(bareAt(103, 1000, 100)), "")
	x.told("there is as much", s(bareAt(104, 1000, 100)), "@104 ack 1000 to 13800")

	x, p, s = opened(t, nil)
	p(data(50))
	s(data(50))
	p(bareAt(104, 1000, 100))
	held := bareAt(103, 1000, 100)
	held.opts = string([]byte{1, 1, packet.OptSACK, 10, 0, 0, 8, 0, 0, 0, 9, 0})
	x.told("", p(held), "")
	held.seq, held.win, held.data = 104, 50, "x"
	x.told("both hold something beyond a gap", s(held), "@104 ack 1000 to 7400")

	x, p, s = opened(t, nil)
	p(data(50))
	x.told("there is more room before the data has left", p(bareAt(103, 1000, 100)), "")
	x.told("", s(data(50)), "abcd@100 ack 1000 to 7400")
	x.told("there is as much", s(bareAt(104, 1000, 100)), "@104 ack 1000 to 13800")

	x, p, s = opened(t, nil)
	x.told("", p(data(100)), "")
	x.told("before the data has left", p(bareAt(103, 1000, 100)), "")
	x.told("", s(data(50)), "abcd@100 ack 1000 to 7400")
	x.told("there is as much", s(bareAt(104, 1000, 100)), "@104 ack 1000 to 13800")

	x, p, s = opened(t, nil)
	p(data(50))
	s(data(50))
	p(bareAt(104, 1000, 100))
	x.told("the question itself", p(bareAt(103, 1000, 100)), "")
	x.told("is asked when both do", s(bareAt(103, 1000, 50)), "@103 ack 1000 to 7400")
	x.mark(1)
	x.told("and the checkpoint has the room", x.received(1), "@104 ack 1000 to 13800")
}

// Two guests may have cut what they hold, and what came twice, into more pieces than an option has room for.
func TestADuplicateLeavesNoBlockWithoutRoom(t *testing.T) {
	_, p, s := opened(t, nil)
	a := bareAt(100, 1300, 50)
	a.opts = sackOption(1400, 1600, 1700, 1800)
	s(a)
	a = bareAt(100, 1000, 46)
	a.opts = sackOption(1250, 1500, 1200, 1600, 1700, 1800) // the first came twice
	r := p(a)
	if len(r.Release) != 1 {
		t.Fatalf("%q", told(r))
	}
	var v packet.Packet
	v.Parse(r.Release[0].Data)
	got := ""
	for kind, data, rest, ok := packet.NextOption(v.TCP().Options()); ok; kind, data, rest, ok = packet.NextOption(rest) {
		if kind == packet.OptSACK {
			got = string(data)
		}
	}
	if want := sackOption(1200, 1300, 1400, 1600, 1700, 1800)[4:]; got != want {
		t.Errorf("%x, want %x", got, want)
	}
}

// Of a connection that is over nobody waits to be told anything.
func TestNothingIsOwedOnAConnectionThatWasReset(t *testing.T) {
	x, p, s := opened(t, nil)
	x.told("", s(bareAt(100, 1512, 50)), "")
	x.told("", p(bareAt(100, 2024, 50)), "@100 ack 1512 to 7912")
	over := ackSeg{seq: 100, ack: 2024, win: 50, flags: packet.RST | packet.ACK}
	p(over)
	over.ack = 1512
	if r := s(over); len(r.Release) != 1 {
		t.Fatalf("%q", told(r))
	}
	x.now = x.now.Add(time.Minute)
	if r := x.Tick(x.now); r.Diverged || x.Stats().Held > 0 {
		t.Errorf("a checkpoint is asked for: %v, %+v", r.Reason, x.Stats())
	}
}
