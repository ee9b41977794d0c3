package compare_test

import (
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// The guests cut equal streams as they like, up to one byte in each segment on one side, and
// all of it in one on the other. More segments than the queue has room for have a checkpoint
// asked for, and nothing is lost or leaves uncovered.
func TestTinySegmentsMeetLargeOnes(t *testing.T) {
	const room, all = 1024, 10000
	text := strings.Repeat("abcdefghijklmnopqrstuvwxyz", all/26+1)[:all]
	for name, c := range map[string]struct {
		tiny   [2]bool // of the primary, of the secondary
		first  int     // who speaks first
		pieces int     // as many as there are tiny segments
		whole  bool    // no checkpoint is asked for
	}{
		"the primary's tiny, once the other guest has said all":        {[2]bool{true, false}, 1, all, true},
		"the primary's tiny, and the other guest has said nothing yet": {[2]bool{true, false}, 0, room, true},
		"more of them than there is room for":                          {[2]bool{true, false}, 0, all, false},
		"the secondary's tiny, once the primary's guest has said all":  {[2]bool{false, true}, 0, room, true},
		"the secondary's tiny, and the primary has said nothing yet":   {[2]bool{false, true}, 1, room, true},
		"more of the secondary's than there is room for":               {[2]bool{false, true}, 1, all, false},
		"more of the secondary's than there is room for, said at last": {[2]bool{false, true}, 0, all, false},
		"tiny ones of both": {[2]bool{true, true}, 0, room, true},
	} {
		t.Run(name, func(t *testing.T) {
			x := newBoth(t, lowering())
			now := time.Unix(1000, 0)
			if err := x.Mark(0); err != nil {
				t.Fatal(err)
			}
			if _, err := x.SecondaryMark(0); err != nil {
				t.Fatal(err)
			}
			said := uint32(0)  // by the secondary's guest, in order
			got := uint32(100) // by the peer
			diverged := false
			hear := func(r compare.Result, receipt bool) {
				diverged = diverged || r.Diverged
				for _, f := range r.Release {
					var p packet.Packet
					p.Parse(f.Data)
					h := p.TCP()
					end := h.Seq() + uint32(len(h.Payload()))
					if h.Flags()&packet.SYN != 0 {
						continue
					}
					if !receipt && end > 100+said {
						t.Fatalf("up to %d leaves, and the other guest has said %d", end, 100+said)
					}
					if h.Seq() > got {
						t.Fatalf("%d leaves before %d", h.Seq(), got)
					}
					got = max(got, end)
				}
			}
			say := func(who int, a ackSeg) {
				if who == 0 {
					hear(x.Primary(a.frame(), now), false)
					return
				}
				if a.flags&packet.SYN == 0 {
					said = a.seq + uint32(len(a.data)) - 100
				}
				hear(x.Secondary(a.frame(), now), false)
			}
			syn := ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
			say(0, syn)
			say(1, syn)
			for _, who := range []int{c.first, 1 - c.first} {
				if !c.tiny[who] {
					say(who, data(100, text[:c.pieces]))
					continue
				}
				for i := range c.pieces {
					say(who, data(100+uint32(i), text[i:i+1]))
				}
			}
			end := 100 + uint32(c.pieces)
			if st := x.Stats(); diverged == c.whole || c.whole && (got != end || st.Held != 0) || st.HeldBytes > 64<<20 {
				t.Fatalf("a checkpoint was asked for: %t; %d of %d have left, %+v", diverged, got-100, c.pieces, st)
			}
			if err := x.Mark(1); err != nil {
				t.Fatal(err)
			}
			r, err := x.Received(1)
			if err != nil {
				t.Fatal(err)
			}
			if hear(r, true); got != end {
				t.Errorf("%d of %d have left with the checkpoint", got-100, c.pieces)
			}
		})
	}
}

// A connection may be half closed for hours, with signs of life in between, and is forgotten
// meanwhile. What the guest says on it leaves when both have said it, and not before.
func TestAHalfClosedConnectionThatWasIdleForHoursGoesOn(t *testing.T) {
	x, p, s := opened(t, nil)
	fin := ackSeg{seq: 100, ack: 1000, win: 50, flags: packet.FIN | ackOnly, data: "bye"}
	p(fin)
	x.told("the guest closes its half", s(fin), "bye@100 ack 1000 to 7400")
	ack := uint32(1000)
	for hour := range 3 {
		x.now = x.now.Add(time.Hour + time.Minute)
		if r := x.Tick(x.now); r.Diverged || x.Stats().Conns != 0 {
			t.Fatalf("after %d hours: %+v, %v", hour+1, x.Stats(), r.Reason)
		}
		life := ackSeg{seq: 103, ack: ack, win: 50, flags: ackOnly}
		x.told("a sign of life of the primary's guest alone", p(life), "")
		if r := s(life); len(r.Release) != 1 || r.Diverged {
			t.Errorf("a sign of life of both: %q", told(r))
		}
		ack += 100 // the client goes on
		life.seq, life.ack = 104, ack
		x.told("an acknowledgment of the primary's guest alone", p(life), "")
		if r := s(life); len(r.Release) != 1 || r.Diverged {
			t.Errorf("an acknowledgment of both: %q", told(r))
		}
	}
	if st := x.Stats(); st.Held != 0 {
		t.Errorf("%+v", st)
	}
}
