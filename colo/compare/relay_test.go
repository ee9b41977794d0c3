package compare_test

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// lost returns a connection on which the first four bytes of "abcdefghijkl" at 112 are lost, over a
// way that takes 10 ms. The peer has the rest, and has said so, and both guests have said all
// of it, the secondary's cut as the parts are.
func lost(t *testing.T, parts ...string) (x *rig, p, s func(ackSeg) compare.Result, hear func(ack uint32, blocks ...uint32)) {
	t.Helper()
	x, p, s, hear = lossy(t)
	hear(112)
	p(data(112, "abcd"))
	p(data(116, "efgh"))
	p(data(120, "ijkl"))
	if len(parts) == 0 {
		parts = []string{"abcd", "efgh", "ijkl"}
	}
	seq, n := uint32(112), 0
	for _, part := range parts {
		n += len(s(data(seq, part)).Release)
		seq += uint32(len(part))
	}
	if n != 3 {
		t.Fatalf("%d have left", n)
	}
	x.now = x.now.Add(10 * time.Millisecond)
	s(ackSeg{seq: 124, ack: 1000, win: 50, flags: ackOnly}) // time passes with packets
	hear(112, 116, 124)
	return x, p, s, hear
}

// A guest may have taken a loss back, and then the other one's repetition is the only one
// before a timer runs out.
func TestWhatThePeerLacksLeavesWhicheverGuestRepeatsIt(t *testing.T) {
	x, _, s, hear := lost(t)
	x.told("the peer could not have said yet that it has it", s(data(112, "abcd")), "")
	x.now = x.now.Add(4 * time.Millisecond)
	x.told("nor now", x.Tick(x.now), "")
	x.now = x.now.Add(time.Millisecond)
	x.told("now it could", x.Tick(x.now), "abcd@112 ack 1000 to 7400")
	x.told("it has just left", s(data(112, "abcd")), "")
	x.now = x.now.Add(15 * time.Millisecond)
	x.told("and was lost again", x.Tick(x.now), "abcd@112 ack 1000 to 7400")
	x.now = x.now.Add(time.Second)
	x.told("once for each time that it is repeated", x.Tick(x.now), "")
	x.told("the peer still lacks it", s(data(112, "abcd")), "abcd@112 ack 1000 to 7400")
	hear(124)
	x.now = x.now.Add(time.Second)
	x.told("the peer has it", s(data(112, "abcd")), "")
	if st := x.Stats(); st.Relayed != 3 || st.Held != 0 {
		t.Errorf("%+v", st)
	}
}

func TestWhatThePeerHasLeavesOnceWhicheverGuestRepeatsIt(t *testing.T) {
	for name, c := range map[string]struct {
		seq  uint32
		data string
		want string
	}{
		"it has all of this":             {116, "efgh", ""},
		"it has the rest":                {112, "abcdefghijkl", "abcd@112 ack 1000 to 7400"},
		"it has what is before and more": {108, "ijklabcdef", "abcd@112 ack 1000 to 7400"},
		"some of what it lacks":          {112, "abc", ""},
		"what has not left":              {120, "ijklmnop", ""},
	} {
		t.Run(name, func(t *testing.T) {
			x, _, s, _ := lost(t)
			x.now = x.now.Add(time.Second)
			x.told("", s(data(c.seq, c.data)), c.want)
		})
	}
}

// What has left for the other guest is on its way, and the peer tells of what it gets twice.
func TestWhatHasJustLeftForTheOtherGuestLeavesOnce(t *testing.T) {
	x, p, s, hear := lost(t)
	x.now = x.now.Add(5 * time.Millisecond)
	x.told("for the secondary's guest", s(data(112, "abcd")), "abcd@112 ack 1000 to 7400")
	x.now = x.now.Add(10 * time.Millisecond)
	x.told("the primary's is late", p(data(112, "abcd")), "")
	x.now = x.now.Add(5 * time.Millisecond)
	x.told("it was lost", x.Tick(x.now), "abcd@112 ack 1000 to 7400")
	x.now = x.now.Add(15 * time.Millisecond)
	x.told("and again", p(data(112, "abcd")), "abcd@112 ack 1000 to 7400")
	x.told("its own may leave twice", p(data(112, "abcd")), "abcd@112 ack 1000 to 7400")
	hear(124)
}

// What follows may be on its way, or lost as the end of all was, of which nothing tells.
func TestTheEndOfWhatHasLeftIsRepeatedByItsGuest(t *testing.T) {
	x, _, s, hear := lossy(t)
	hear(112)
	p := func(a ackSeg) { x.Primary(a.frame(), x.now) }
	p(data(112, "abcd"))
	s(data(112, "abcd"))
	x.now = x.now.Add(time.Second)
	x.told("", s(data(112, "abcd")), "")
}

// The peer must not get other bytes than before, whatever has become of the guest.
func TestOtherBytesThanHaveLeftNeverLeave(t *testing.T) {
	x, _, s, _ := lost(t)
	x.now = x.now.Add(time.Second)
	x.told("of the secondary's guest", s(data(112, "abcD")), "")
	x.told("in the middle of others", s(data(108, "ijklabXdefgh")), "")
	x.checkpoint(1)
	x.now = x.now.Add(time.Second)
	x.told("after a roll-back", s(data(112, "Abcd")), "")
	x.now = x.now.Add(time.Second)
	x.told("later", x.Tick(x.now), "")
	x.told("those that have left", s(data(112, "abcd")), "abcd@112 ack 1000 to 7400")
}

// Between a mark and its receipt nothing is known of which guest goes on, and what the
// secondary's guest says, or has said and waits, is void.
func TestBetweenMarkAndReceiptNothingIsRelayed(t *testing.T) {
	x, _, s, _ := lost(t)
	x.told("it waits", s(data(112, "abcd")), "")
	if st := x.Stats(); st.HeldBytes == 0 {
		t.Error("it does not wait")
	}
	if err := x.Mark(1); err != nil {
		t.Fatal(err)
	}
	if st := x.Stats(); st.HeldBytes != 0 {
		t.Errorf("%d bytes are left of it", st.HeldBytes)
	}
	x.now = x.now.Add(time.Second)
	x.told("", x.Tick(x.now), "")
	x.told("", s(data(112, "abcd")), "")
}

// The guests cut their streams where they like, and each repeats its own pieces.
func TestAPieceOfEitherGuestIsEnough(t *testing.T) {
	x, _, s, hear := lost(t, "ab", "cdef", "gh", "ijkl")
	x.now = x.now.Add(time.Second)
	x.told("less than any has sent", s(data(112, "a")), "")
	x.told("the first of two", s(data(110, "klab")), "ab@112 ack 1000 to 7400")
	hear(114, 116, 124)
	x.told("the second", s(data(114, "cdef")), "cd@114 ack 1000 to 7400")
}

// What leaves for a guest says nothing but what the peer has been told: the guest that
// repeats may know more, or less.
func TestWhatIsRelayedSaysWhatThePeerHasBeenTold(t *testing.T) {
	x, p, s, _ := lost(t)
	x.now = x.now.Add(time.Second)
	a := data(112, "abcd")
	a.ack, a.win = 1512, 90
	x.told("", s(a), "abcd@112 ack 1000 to 7400")
	a = data(124, "mnop")
	a.ack = 1512
	p(a)
	x.told("the other guest has said it too", s(a), "mnop@124 ack 1512 to 7912")
	x.now = x.now.Add(time.Second)
	x.told("an older number", s(data(112, "abcd")), "abcd@112 ack 1512 to 7912")
}

// Whoever says what, the memory for it is bounded, and given back.
func TestWhatIsKnownOfWhatHasLeftIsBounded(t *testing.T) {
	x, p, s, hear := lossy(t)
	one, all := compare.MaxSent()
	seq := uint32(112)
	for range one + 1000 {
		a := data(seq, "m")
		p(a)
		s(a)
		seq++
	}
	if n := x.Sents(); n > one {
		t.Errorf("%d are known of one connection", n)
	}
	hear(seq)
	if n := x.Sents(); n != 0 {
		t.Errorf("%d are known of what was acknowledged", n)
	}
	x.SetSents(all)
	a := data(seq, "m")
	p(a)
	x.told("it leaves all the same", s(a), told(compare.Result{Release: []compare.Frame{a.frame()}}))
	if n := x.Sents(); n != all {
		t.Errorf("%d are known of all connections", n)
	}
	x.checkpoint(1)
	if n := x.Sents(); n != 0 {
		t.Errorf("%d are counted at a mark", n)
	}
}

// Whatever guests repeat, and peers answer, nothing leaves that has not left before, as it was.
func TestRelaysSayNothingNew(t *testing.T) {
	const text = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz"
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 6))
		x, p, s, hear := lossy(t)
		done, told := uint32(112), uint32(112) // what has left, and what the primary's guest has said
		epoch := uint64(1)
		for range 100 {
			var r compare.Result
			before := x.Stats().Relayed
			switch rnd.IntN(8) {
			case 0, 1:
				n := uint32(1 + rnd.IntN(4))
				if int(told-112+n) > len(text) {
					break
				}
				r = p(data(told, text[told-112:][:n]))
				told += n
			case 2, 3:
				from := 112 + uint32(rnd.IntN(int(told-112)+1))
				if int(from-112)+4 > len(text) {
					break
				}
				b := []byte(text[from-112:][:1+rnd.IntN(4)])
				if rnd.IntN(4) == 0 {
					b[rnd.IntN(len(b))] ^= 0x20
				}
				if from > done {
					break // what it leaves out it does not send
				}
				r = s(data(from, string(b)))
			case 4, 5:
				a := 100 + uint32(rnd.IntN(int(told-100)+1))
				b := a + uint32(rnd.IntN(8))
				hear(a, b, b+uint32(rnd.IntN(8)))
			case 6:
				r = x.Tick(x.now)
			case 7:
				if rnd.IntN(4) == 0 {
					x.checkpoint(epoch)
					epoch, done = epoch+1, told
				}
			}
			relayed := x.Stats().Relayed - before
			for _, f := range r.Release {
				h := f.Data[34:]
				seq, d := binary.BigEndian.Uint32(h[4:]), h[h[12]>>4*4:]
				if seq >= 112 && string(d) != text[seq-112:][:len(d)] {
					t.Fatalf("seed %d: %q leaves at %d", seed, d, seq)
				}
				end := seq + uint32(len(d))
				if relayed > 0 && len(r.Release) == int(relayed) && end > done {
					t.Fatalf("seed %d: relayed up to %d, and %d have left", seed, end, done)
				}
				done = max(done, end)
			}
			x.now = x.now.Add(time.Duration(rnd.IntN(20)) * time.Millisecond)
		}
	}
}

// Guests that keep to no window may be half of all sequence numbers ahead of what the peer
// has acknowledged, and that is then neither before what they repeat nor behind it.
func TestWhatHasLeftMayBeHalfOfAllNumbersAway(t *testing.T) {
	x, p, s, hear := lossy(t)
	hear(112)
	a := data(112, strings.Repeat("m", 1000))
	p(a)
	s(a)
	for epoch, far := range []uint32{1 << 30, 1 << 31} {
		p(a)
		p(data(1112+far, "n"))
		x.checkpoint(uint64(epoch) + 1)
	}
	for _, seq := range []uint32{112, 122, 1110} {
		x.told("", s(data(seq+1<<31, "n")), "")
	}
}

// The network takes each packet with a virtio-net header of one length.
func TestWhatIsRelayedHasTheHeaderThatTheNetworkTakes(t *testing.T) {
	x, _, s, _ := lost(t)
	x.now = x.now.Add(time.Second)
	f := data(112, "abcd").frame()
	f = compare.Frame{Data: append(make([]byte, 12), f.Data...), VNetHdr: 12}
	if r := x.Secondary(f, x.now); len(r.Release) != 0 {
		t.Errorf("it leaves with a header of %d bytes", r.Release[0].VNetHdr)
	}
	x.told("without one", s(data(112, "abcd")), "abcd@112 ack 1000 to 7400")
}

// What is known of connections that are over counts no more, and takes no memory.
func TestWhatIsKnownOfWhatHasLeftEndsWithItsConnection(t *testing.T) {
	for name, end := range map[string]func(x *rig, p func(ackSeg) compare.Result){
		"another begins": func(x *rig, p func(ackSeg) compare.Result) {
			p(ackSeg{seq: 7099, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS})
		},
		"it is forgotten": func(x *rig, p func(ackSeg) compare.Result) {
			x.now = x.now.Add(2 * time.Hour)
			x.Tick(x.now)
		},
	} {
		x, p, _, _ := lost(t)
		if x.Sents() == 0 {
			t.Fatal("nothing is known")
		}
		if end(x, p); x.Sents() != 0 {
			t.Errorf("%s: %d are known", name, x.Sents())
		}
	}

	x, p, s, hear := lossy(t)
	seq := uint32(112)
	for range 5000 {
		p(data(seq, "m"))
		s(data(seq, "m"))
		seq++
	}
	if hear(seq - 10); x.Sents() != 10 || x.SentsMemory() > 100 {
		t.Errorf("there is memory for %d where %d are known", x.SentsMemory(), x.Sents())
	}
}

// A peer that acknowledges what was not sent has acknowledged nothing, wherever the numbers
// are.
func TestWhatIsKnownOfWhatHasLeftStaysUntilThePeerHasIt(t *testing.T) {
	for _, isn := range []uint32{99, 1<<31 - 6, 1 << 31, 1<<32 - 6} {
		x := newRig(t, lowering())
		x.checkpoint(0)
		both := func(a ackSeg) {
			x.Primary(a.frame(), x.now)
			x.Secondary(a.frame(), x.now)
		}
		both(ackSeg{seq: isn, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7})
		both(data(isn+1, "abcd"))
		x.Primary(data(isn+1, "abcd").frame(), x.now)
		both(data(isn+5, "efgh"))
		n := x.Sents()
		x.Inbound(compare.Frame{Data: selective(isn + 900)})
		if n == 0 || x.Sents() != n {
			t.Errorf("from %d on: %d are known, and then %d", isn, n, x.Sents())
		}
		x.Inbound(compare.Frame{Data: selective(isn + 9)})
		if x.Sents() != 0 {
			t.Errorf("from %d on: %d are known of what the peer has", isn, x.Sents())
		}
	}
}

// The text that a RST may have is no part of the stream, and nobody may repeat it as such.
func TestTheTextOfAResetIsNoDataThatHasLeft(t *testing.T) {
	x, p, s, _ := lost(t)
	n := x.Sents()
	p(ackSeg{seq: 124, ack: 1000, win: 50, flags: packet.RST | packet.ACK, data: "gone"})
	x.checkpoint(1)
	if x.Sents() != n {
		t.Errorf("%d are known, and then %d", n, x.Sents())
	}
	x.now = x.now.Add(time.Second)
	x.told("", s(data(124, "gone")), "")
}

// one yields a packet.
type one struct{ p []byte }

func (o *one) ReadPacket() ([]byte, error) {
	if o.p == nil {
		return nil, io.EOF
	}
	p := o.p
	o.p = nil
	return p, nil
}

// While nothing else comes, only the peer's packets tell how long it takes to answer.
func TestAComparerMeasuresTheWayByWhatComesIn(t *testing.T) {
	c := compare.NewComparer(lowering())
	now := time.Now()
	c.Now = func() time.Time { return now }
	if err := c.Mark(0); err != nil {
		t.Fatal(err)
	}
	if err := c.SecondaryMark(0); err != nil {
		t.Fatal(err)
	}
	p := func(a ackSeg) { c.WritePacket(a.frame().Data) }
	s := func(a ackSeg) { c.ServeSecondary(t.Context(), &one{a.frame().Data}) }
	both := func(a ackSeg) { p(a); s(a) }
	both(ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7})
	both(data(100, "abcd"))
	p(data(100, "abcd"))
	both(data(104, "efgh"))
	both(data(108, "ijkl"))
	now = now.Add(10 * time.Millisecond)
	c.Inbound(selective(104, 108, 112), 0)
	now = now.Add(4 * time.Millisecond)
	s(data(104, "efgh"))
	if got, _ := c.Stats(); got.Relayed != 0 {
		t.Error("it leaves too early")
	}
	now = now.Add(time.Millisecond)
	s(data(104, "efgh"))
	if got, _ := c.Stats(); got.Relayed != 1 {
		t.Error("it does not leave")
	}
}

// A round trip is measured wherever the numbers of a connection are that was open before the
// session, and whichever guest speaks first.
func TestWhatASilentGuestHasNotSaidYetIsTimedToo(t *testing.T) {
	for _, from := range []uint32{100, 1 << 31, 0xc0000000, 0xfffffff8} {
		x := newRig(t, lowering())
		x.checkpoint(0)
		s := func(at uint32, text string) compare.Result { return x.Secondary(data(from+at, text).frame(), x.now) }
		s(0, "abcd")
		x.told("it is repeated, and the primary's guest has said nothing", s(0, "abcd"), "")
		for i, text := range []string{"abcd", "efgh", "ijkl"} {
			if i > 0 {
				s(uint32(4*i), text)
			}
			if r := x.Primary(data(from+uint32(4*i), text).frame(), x.now); len(r.Release) != 1 {
				t.Fatalf("%d at %d have left", len(r.Release), i)
			}
		}
		x.now = x.now.Add(10 * time.Millisecond)
		x.Secondary(ackSeg{seq: from + 12, ack: 1000, win: 50, flags: ackOnly}.frame(), x.now)
		x.Inbound(compare.Frame{Data: selective(from, from+4, from+12)})
		x.now = x.now.Add(time.Second)
		if r := s(0, "abcd"); len(r.Release) != 1 || !strings.HasPrefix(told(r), "abcd@") {
			t.Errorf("from %d: %q leaves, and the peer lacks it", from, told(r))
		}
	}
}
