package compare_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// selective returns an acknowledgment of the client to the connection of ackSegs, with SACK
// blocks.
func selective(ack uint32, blocks ...uint32) []byte { return answer(ack, "", blocks...) }

// answer is selective with options before the blocks.
func answer(ack uint32, opts string, blocks ...uint32) []byte {
	if len(blocks) > 0 {
		b := []byte{packet.OptNop, packet.OptNop, packet.OptSACK, byte(2 + 4*len(blocks))}
		for _, n := range blocks {
			b = binary.BigEndian.AppendUint32(b, n)
		}
		opts += string(b)
	}
	f := wireSegment(9, 1000, ack, packet.ACK, opts, "")
	for i := range 4 { // the other way round
		f[26+i], f[30+i] = f[30+i], f[26+i]
	}
	for i := range 2 {
		f[34+i], f[36+i] = f[36+i], f[34+i]
	}
	var p packet.Packet
	p.Parse(f)
	p.TCP().SetChecksum(p.TCPChecksum())
	return f
}

func data(seq uint32, s string) ackSeg {
	return ackSeg{seq: seq, ack: 1000, win: 50, flags: push, data: s}
}

// A guest whose twin is behind takes what waits for lost as soon as a repetition is
// acknowledged that was sent after it. Whatever it sends of that again, the peer gets once.
func TestWhatWaitsLeavesOnceHoweverOftenTheGuestRepeatsIt(t *testing.T) {
	for name, wrap := range map[string]func([]byte) []byte{"IPv4": nil, "IPv6": asIPv6, "PPPoE": asPPPoE} {
		t.Run(name, func(t *testing.T) {
			x, p, s := opened(t, wrap)
			p(data(100, "abcd"))
			p(data(104, "efgh"))
			p(data(108, "ijkl"))
			x.told("a part", p(data(100, "abcd")), "")
			x.told("cut otherwise", p(data(102, "cdefgh")), "")
			x.told("all", p(data(100, "abcdefghijkl")), "")
			if n := x.Stats().Repeated; n != 3 {
				t.Errorf("%d counted as repeated", n)
			}
			x.told("with more", p(data(108, "ijklmn")), "")
			s(data(100, "abcdefgh"))
			x.told("the rest", s(data(108, "ijklmn")), "ijkl@108 ack 1000 to 7400, ijklmn@108 ack 1000 to 7400")
			if st := x.Stats(); st.Held != 0 || st.HeldBytes != 0 || st.Matched != 5 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// What a repetition says besides, nobody else may say.
func TestARepetitionThatNeedNotLeaveIsHeardAllTheSame(t *testing.T) {
	x, p, s := opened(t, nil)
	p(data(100, "abcd"))
	a := data(100, "abcd")
	a.ack, a.win = 1512, 56
	x.told("the secondary's guest has not given that", p(a), "")
	x.told("now it has", s(ackSeg{seq: 100, ack: 1512, win: 56, flags: ackOnly}), "@100 ack 1512 to 8680")
	x.told("and the data is as it was", s(data(100, "abcd")), "abcd@100 ack 1512 to 8680")

	x, p, s = opened(t, nil)
	s(ackSeg{seq: 100, ack: 1512, win: 56, flags: ackOnly})
	x.told("", p(data(100, "abcd")), "")
	x.told("both have given it", p(a), "@100 ack 1512 to 8680")
	x.told("once is enough", p(a), "")
}

// A repetition that is none, or more than one, is compared like any other segment.
func TestOnlyARepetitionIsTakenForOne(t *testing.T) {
	x, p, s := opened(t, nil)
	p(data(100, "abcd"))
	p(data(106, "ghij")) // there is a hole before it
	for _, other := range []ackSeg{
		data(100, "abXd"), data(100, "abcdef"),
		{seq: 100, ack: 1000, win: 50, flags: push | packet.FIN, data: "abcd"},
		{seq: 100, ack: 1000, win: 50, flags: push | packet.URG, data: "abcd"},
		{seq: 100, ack: 1000, win: 50, flags: push, opts: wireSigned, data: "abcd"},
		{seq: 100, ack: 1000, win: 50, flags: push, opts: "\x1e\x04\x40\x01", data: "abcd"},
	} {
		held := x.Stats().Held
		p(other)
		if got := x.Stats(); got.Held != held+1 || got.Repeated != 0 {
			t.Errorf("%+v: %+v", other, got)
		}
	}
	_ = s
	// Without LowerAcks each packet leaves that was given.
	cfg := lowering()
	cfg.LowerAcks = false
	y := newRig(t, cfg)
	y.checkpoint(0)
	y.Primary(data(100, "abcd").frame(), y.now)
	y.Primary(data(100, "abcd").frame(), y.now)
	if got := y.Stats(); got.Held != 2 || got.Repeated != 0 {
		t.Errorf("%+v", got)
	}
}

// lossy returns an opened connection on which a repetition was seen, over a way that takes 10 ms
// there and back, and of which the peer has acknowledged all up to 112 but the four bytes
// from 104 on.
func lossy(t *testing.T) (x *rig, p, s func(ackSeg) compare.Result, hear func(ack uint32, blocks ...uint32)) {
	return lossyIn(t, nil)
}

// lossyIn is lossy for packets in something.
func lossyIn(t *testing.T, wrap func([]byte) []byte) (x *rig, p, s func(ackSeg) compare.Result, hear func(ack uint32, blocks ...uint32)) {
	x, p, s = opened(t, wrap)
	hear = func(ack uint32, blocks ...uint32) {
		t.Helper()
		f := selective(ack, blocks...)
		if wrap != nil {
			f = turnedRound(wrap(turnedRound(f)))
		}
		was := string(f)
		if x.Inbound(compare.Frame{Data: f}); string(f) != was {
			t.Error("an acknowledgment was changed")
		}
	}
	both := func(a ackSeg) {
		p(a)
		x.told("both have said it", s(a), told(compare.Result{Release: []compare.Frame{a.frame()}}))
	}
	both(data(100, "abcd"))
	both(data(104, "efgh"))
	x.told("a repetition, the first of all", p(data(104, "efgh")), "efgh@104 ack 1000 to 7400")
	both(data(108, "ijkl"))
	x.now = x.now.Add(10 * time.Millisecond)
	s(ackSeg{seq: 112, ack: 1000, win: 50, flags: ackOnly}) // time passes with packets
	hear(104, 108, 112)
	return x, p, s, hear
}

// What has just left nobody can know to be lost.
func TestNothingLeavesTwiceBeforeThePeerCanHaveAnswered(t *testing.T) {
	x, p, s, hear := lossy(t)
	p(data(112, "mnop"))
	x.told("it leaves", s(data(112, "mnop")), "mnop@112 ack 1000 to 7400")
	x.told("it is repeated at once", p(data(112, "mnop")), "")
	x.told("what is lost is repeated", p(data(104, "efgh")), "efgh@104 ack 1000 to 7400")
	x.told("and again: that may have been lost too", p(data(104, "efgh")), "efgh@104 ack 1000 to 7400")
	x.told("the peer has this", p(data(108, "ijkl")), "")
	x.told("and this", p(data(100, "abcd")), "")
	x.told("some of this it has not", p(data(104, "efghijkl")), "efghijkl@104 ack 1000 to 7400")
	p(data(116, "qrst"))
	x.told("what comes after it leaves", s(data(116, "qrst")), "qrst@116 ack 1000 to 7400")
	hear(104, 108, 112, 116, 120)
	x.told("what comes after it has arrived, and it has not", p(data(112, "mnop")), "mnop@112 ack 1000 to 7400")
	if n := x.Stats().Repeated; n != 3 {
		t.Errorf("%d counted as repeated", n)
	}
}

// A guest that has heard nothing for long repeats by the clock, and is believed: it may be
// the last of what it has to say, and nothing after it tells of a loss. So does one that
// asks whether the peer is still there.
func TestARepetitionByTheClockLeaves(t *testing.T) {
	x, p, s, _ := lossy(t)
	p(data(112, "mnop"))
	s(data(112, "mnop"))
	x.now = x.now.Add(14 * time.Millisecond)
	x.told("sooner than any clock", p(data(112, "mnop")), "")
	x.now = x.now.Add(6 * time.Millisecond)
	x.told("after twice the time of the way", p(data(112, "mnop")), "mnop@112 ack 1000 to 7400")
	x.told("the peer has this, and is asked", p(data(103, "d")), "d@103 ack 1000 to 7400")
}

// What left late carries the timestamp of a repetition that left before it. A guest that got
// the echo of an older one would take what it repeated for not lost, whichever of the two the
// peer has lacked.
func TestTheEchoOfARepetitionStaysAsItIs(t *testing.T) {
	for _, c := range []struct {
		why    string
		before []byte // what the peer has said before it has all
		want   uint32
	}{
		{"it lacked what was repeated", answer(100, wireTimes(7, 9), 108, 112), 250},
		{"it had that, and lacked what left late", answer(104, wireTimes(7, 10), 108, 112), 250},
	} {
		x, p, s := opened(t, nil)
		say := func(seq, time uint32, text string) ackSeg {
			a := data(seq, text)
			a.opts = wireTimes(time, 7)
			return a
		}
		p(say(100, 10, "abcd"))
		s(say(100, 10, "abcd"))
		p(say(104, 11, "efgh"))
		if r := p(say(100, 250, "abcd")); len(r.Release) != 1 {
			t.Fatal("the repetition has not left")
		}
		p(say(108, 251, "ijkl"))
		x.Inbound(compare.Frame{Data: c.before})
		r := s(say(104, 11, "efgh"))
		if len(r.Release) != 1 || binary.BigEndian.Uint32(r.Release[0].Data[34+24:]) != 250 {
			t.Fatalf("%x", r.Release)
		}
		f := answer(108, wireTimes(7, 250))
		x.Inbound(compare.Frame{Data: f})
		if got := binary.BigEndian.Uint32(f[34+28:]); got != c.want {
			t.Errorf("%s: the guest gets the echo %d", c.why, got)
		}
	}
}

// A peer without selective acknowledgments tells of a loss by saying the same again.
func TestWithoutSelectiveAcknowledgmentsEachRepetitionLeaves(t *testing.T) {
	x, p, s := opened(t, nil)
	for range 3 {
		p(data(100, "abcd"))
		s(data(100, "abcd"))
		x.Inbound(compare.Frame{Data: selective(100)})
	}
	x.told("", p(data(100, "abcd")), "abcd@100 ack 1000 to 7400")
	if n := x.Stats().Repeated; n != 0 {
		t.Errorf("%d counted as repeated", n)
	}
}

// What is known of a way is forgotten where nothing is repeated any more, and then costs
// nothing.
func TestRepetitionsAreForgottenAtASecondMark(t *testing.T) {
	x, p, s, hear := lossy(t)
	for epoch := range uint64(2) {
		x.checkpoint(1 + epoch)
	}
	hear(112)
	x.told("", p(data(112, "mnop")), "")
	x.told("", s(data(112, "mnop")), "mnop@112 ack 1000 to 7400")
	hear(112)
	x.told("the first of all again", p(data(112, "mnop")), "mnop@112 ack 1000 to 7400")
}

func TestRepetitionsAllocateNothing(t *testing.T) {
	x, p, s, _ := lossy(t)
	_ = p
	_ = s
	seq := uint32(112)
	f, ack := data(seq, "mnop").frame(), selective(104, 108, 112)
	lost := data(104, "efgh").frame()
	n := testing.AllocsPerRun(1000, func() {
		packet.TCP(f.Data[34:]).SetSeq(seq)
		x.Primary(f, x.now)
		if x.Primary(f, x.now); len(x.Secondary(f, x.now).Release) != 1 {
			t.Fatal("nothing has left")
		}
		x.Primary(f, x.now)
		x.Primary(lost, x.now)
		seq += 4
		binary.BigEndian.PutUint32(ack[len(ack)-4:], seq)
		binary.BigEndian.PutUint16(ack[34+packet.TCPChecksumAt:], 0) // there is none
		x.Inbound(compare.Frame{Data: ack})
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
	if got := x.Stats().Repeated; got < 2000 {
		t.Errorf("%d were taken for repetitions", got)
	}
}

// Whatever a peer says of data, and of the time of the way, no repetition is kept from leaving
// for long.
func TestNoPeerKeepsARepetitionFromLeavingForLong(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		x, p, s, hear := lossy(t)
		for range 50 {
			a := data(100+uint32(rnd.IntN(30)), "xxxxxxxx"[:1+rnd.IntN(8)])
			a.data = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnop"[a.seq-100:][:len(a.data)]
			switch rnd.IntN(4) {
			case 0:
				p(a)
			case 1:
				s(a)
			case 2:
				hear(rnd.Uint32(), rnd.Uint32(), rnd.Uint32())
			case 3:
				hear(100+uint32(rnd.IntN(60)), 100+uint32(rnd.IntN(60)), 100+uint32(rnd.IntN(60)))
			}
			x.now = x.now.Add(time.Duration(rnd.IntN(200)) * time.Millisecond)
		}
		x.now = x.now.Add(time.Second)
		left := len(p(data(100, "abcd")).Release)
		x.now = x.now.Add(100 * time.Millisecond) // as long as a way is taken to be
		if left += len(x.Tick(x.now).Release); left == 0 {
			t.Fatalf("seed %d: what the peer may lack does not leave", seed)
		}
	}
}

// An acknowledgment that was damaged on its way is dropped by the guests, and by the engine.
func TestADamagedAcknowledgmentKeepsNothingFromLeaving(t *testing.T) {
	for _, vnet := range []int{0, 12} {
		x, p, s, hear := lossy(t)
		p(data(112, "mnop"))
		s(data(112, "mnop"))
		hear(104, 108, 112)
		x.now = x.now.Add(time.Second)
		s(ackSeg{seq: 116, ack: 1000, win: 50, flags: ackOnly}) // time passes with packets
		f := append(make([]byte, vnet), selective(116)...)
		f[vnet+34+packet.TCPChecksumAt] ^= 4
		x.Inbound(compare.Frame{Data: f, VNetHdr: vnet})
		x.told("the peer lacks it", p(data(112, "mnop")), "mnop@112 ack 1000 to 7400")
		f[vnet+34+packet.TCPChecksumAt] ^= 4
		x.Inbound(compare.Frame{Data: f, VNetHdr: vnet})
		x.told("the peer has it", p(data(112, "mnop")), "")
	}
}

// Who acknowledges what was never sent is believed by no guest, and may be anybody: it keeps
// no repetition from leaving, however often it comes.
func TestAnAcknowledgmentOfWhatWasNotSentKeepsNothingFromLeaving(t *testing.T) {
	for name, say := range map[string]func(hear func(uint32, ...uint32), n uint32){
		"by number":    func(hear func(uint32, ...uint32), n uint32) { hear(117 + 1000*n) },
		"selectively":  func(hear func(uint32, ...uint32), n uint32) { hear(104, 112, 117+1000*n) },
		"in two steps": func(hear func(uint32, ...uint32), n uint32) { hear(1<<30+n, 1<<30+n, 1<<31+n) },
	} {
		t.Run(name, func(t *testing.T) {
			x, p, s, hear := lossy(t)
			p(data(112, "mnop"))
			s(data(112, "mnop"))
			for n := range uint32(20) {
				x.now = x.now.Add(time.Millisecond)
				s(ackSeg{seq: 116, ack: 1000, win: 50, flags: ackOnly}) // time passes with packets
				say(hear, n)
			}
			x.told("after twice the time of the way", p(data(112, "mnop")), "mnop@112 ack 1000 to 7400")
			hear(104, 108, 116)
			x.told("the peer has it", p(data(112, "mnop")), "")
		})
	}
}

// What the secondary's guest would repeat if it had to go on alone is what has left.
func TestAGuestThatTakesBackWhatItHasSaidWaitsForTheCheckpoint(t *testing.T) {
	for name, again := range map[string]ackSeg{
		"one segment":      data(112, "abcD"),
		"amid others":      data(108, "ijklabcdefGhijkl"),
		"with more behind": data(116, "efgHijklmnop"),
		"with an end":      {seq: 120, ack: 1000, win: 50, flags: push | packet.FIN, data: "ijkL"},
		"with urgent data": {seq: 120, ack: 1000, win: 50, flags: push | packet.URG, data: "ijkL"},
	} {
		t.Run(name, func(t *testing.T) {
			x, p, s, _ := lost(t)
			x.now = x.now.Add(time.Second)
			x.told("other bytes", p(again), "!data")
			x.told("and nothing more", p(data(124, "mnop")), "")
			x.told("whatever the other guest says", s(data(124, "mnop")), "")
			x.Mark(1)
			r, _ := x.SecondaryMark(1)
			if len(r.Release) != 2 || r.Diverged {
				t.Errorf("with the checkpoint %q leaves", told(r))
			}
			x.now = x.now.Add(time.Second)
			if r := p(again); len(r.Release) != 1 || r.Diverged {
				t.Errorf("now it has been said, and %q leaves", told(r))
			}
		})
	}
}

// A packet that only asks for a sign of life may have any byte in the place of the last one.
func TestAByteThatThePeerHasMayBeAny(t *testing.T) {
	x, p, s, hear := lossy(t)
	p(data(112, "m"))
	s(data(112, "m"))
	hear(113)
	x.now = x.now.Add(time.Second)
	x.told("", p(data(112, "\x00")), "\x00@112 ack 1000 to 7400")
}

// A crowd of repetitions that wait for their turn leaves room for what is new.
func TestRepetitionsThatWaitLeaveRoom(t *testing.T) {
	x, p, s, hear := lossy(t)
	hear(112)
	seq := uint32(112)
	for range 1200 {
		p(data(seq, "m"))
		s(data(seq, "m"))
		seq++
	}
	x.now = x.now.Add(10 * time.Millisecond)
	s(ackSeg{seq: seq, ack: 1000, win: 50, flags: ackOnly}) // time passes with packets
	hear(112, seq-1, seq)
	p(data(seq, "what waits"))
	left := 0
	for at := uint32(112); at < seq-1; at++ {
		r := p(data(at, "m"))
		if left += len(r.Release); r.Diverged {
			t.Fatalf("%v after %d", r.Reason, at-112)
		}
	}
	if left == 0 || left > 1000 {
		t.Errorf("%d leave at once", left)
	}
}

// Without ReleaseRetransmits what has left is repeated when the secondary's guest speaks.
func TestARepetitionThatWaitsForTheOtherGuestHasNoTurn(t *testing.T) {
	cfg := lowering()
	cfg.ReleaseRetransmits = false
	x := newRig(t, cfg)
	x.checkpoint(0)
	p := func(a ackSeg) compare.Result { return x.Primary(a.frame(), x.now) }
	s := func(a ackSeg) compare.Result { return x.Secondary(a.frame(), x.now) }
	both := func(a ackSeg) { p(a); s(a) }
	both(ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7})
	both(data(100, "abcd"))
	p(data(100, "abcd"))
	both(data(104, "efgh"))
	both(data(108, "ijkl"))
	x.now = x.now.Add(10 * time.Millisecond)
	s(ackSeg{seq: 112, ack: 1000, win: 50, flags: ackOnly}) // time passes with packets
	x.Inbound(compare.Frame{Data: selective(100, 104, 112)})
	p(data(112, "mnop"))
	x.now = x.now.Add(100 * time.Millisecond)
	x.told("it waits", p(data(100, "abcd")), "")
	x.now = x.now.Add(500 * time.Millisecond)
	x.told("however long", x.Tick(x.now), "")
	x.told("until the other guest speaks", s(ackSeg{seq: 112, ack: 1000, win: 51, flags: ackOnly}), "abcd@100 ack 1000 to 7400")
}
