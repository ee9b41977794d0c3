package compare_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// A fragmentOf is eight bytes of a datagram that a guest sends in fragments.
type fragmentOf struct {
	datagram, place int
	last            bool
	data            byte
}

func (f fragmentOf) frame(v6 bool) compare.Frame {
	where := uint16(f.place)
	payload := make([]byte, 8)
	for i := range payload {
		payload[i] = f.data
	}
	if v6 {
		if where <<= 3; !f.last {
			where |= 1
		}
		h := []byte{packet.ProtoUDP, 0, byte(where >> 8), byte(where), 0, 0, 0, byte(f.datagram)}
		return ip(true, packet.ProtoFragment, 0, append(h, payload...), 0)
	}
	b := ip(false, packet.ProtoUDP, uint16(f.datagram), payload, 0)
	if !f.last {
		where |= moreFragments
	}
	binary.BigEndian.PutUint16(b.Data[20:], where)
	return b
}

// fragmentIn is what frame has made a frame of.
func fragmentIn(f compare.Frame) fragmentOf {
	b := f.Data
	if b[12] == 0x86 {
		return fragmentOf{int(b[61]), int(binary.BigEndian.Uint16(b[56:]) >> 3), b[57]&1 == 0, b[62]}
	}
	where := binary.BigEndian.Uint16(b[20:])
	return fragmentOf{int(b[19]), int(where & 0x1fff), where&moreFragments == 0, b[34]}
}

// partners reports whether what has left of each datagram is how some datagram of the other guest
// begins, of which no other one is.
func partners(left, said [][]fragmentOf) bool {
	if len(left) == 0 {
		return true
	}
	for i, other := range said {
		n := len(left[0])
		if n <= len(other) && slices.EqualFunc(left[0], other[:n], func(a, b fragmentOf) bool {
			a.datagram = b.datagram
			return a == b
		}) && partners(left[1:], slices.Delete(slices.Clone(said), i, i+1)) {
			return true
		}
	}
	return false
}

// The peer puts together what has one number, whatever the secondary's guest has sent with which.
func TestFragmentsThatLeaveMakeNoDatagramThatTheSecondarysGuestHasNotSent(t *testing.T) {
	seeds := uint64(20000)
	if testing.Short() {
		seeds = 2000
	}
	all := 0
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 7))
		v6 := r.IntN(2) == 0
		x := newRig(t, lowering())
		x.checkpoint(0)
		number := [2]int{10 + r.IntN(2), 20 + r.IntN(2)}
		var left, said [3][]fragmentOf
		var story string
		for range 4 + r.IntN(16) {
			f := fragmentOf{r.IntN(3), r.IntN(2), r.IntN(2) == 0, "ab"[r.IntN(2)]}
			f.last = f.last && f.place > 0 // or it would be all of the datagram
			who := r.IntN(2)
			sent := f
			sent.datagram += number[who]
			story += fmt.Sprintf("\n%d sends %+v", who, sent)
			var res compare.Result
			if who == 0 {
				res = x.Primary(sent.frame(v6), x.now)
			} else {
				said[f.datagram] = append(said[f.datagram], f)
				res = x.Secondary(sent.frame(v6), x.now)
			}
			for _, l := range res.Release {
				out := fragmentIn(l)
				story += fmt.Sprintf("\n  %+v leaves", out)
				left[out.datagram-number[0]] = append(left[out.datagram-number[0]], out)
				all++
			}
		}
		var some [][]fragmentOf
		for _, l := range left {
			if len(l) > 0 {
				some = append(some, l)
			}
		}
		if !partners(some, said[:]) {
			t.Fatalf("seed %d: the peer gets a datagram that the secondary's guest has not sent:%s", seed, story)
		}
	}
	if all == 0 {
		t.Error("nothing has left")
	}
}

// Guests may send two datagrams in two orders, with whatever numbers; after a checkpoint, which takes
// them over, the numbers begin again.
func TestFragmentsOfTwoDatagramsMayCross(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		x := newRig(t, lowering())
		x.checkpoint(0)
		datagram := func(number int, data byte) []compare.Frame {
			return []compare.Frame{
				fragmentOf{number, 0, false, data}.frame(v6), fragmentOf{number, 1, true, data}.frame(v6),
			}
		}
		for epoch, many := range []int{20, 20, 200} {
			for i := range many {
				n := 2 * i % 250
				for _, f := range slices.Concat(datagram(n, 'a'), datagram(n+1, 'b')) {
					x.want("the secondary's guest is first", x.Secondary(f, x.now), "")
				}
				left := 0
				for _, f := range slices.Concat(datagram((n+7+epoch)%250, 'b'), datagram((n+8+epoch)%250, 'a')) {
					left += len(x.Primary(f, x.now).Release)
				}
				if x.now = x.now.Add(time.Millisecond); left != 4 {
					t.Fatalf("%d of 4 fragments have left, of the datagrams %d", left, i)
				}
			}
			x.checkpoint(uint64(epoch) + 1)
		}
	}
}

// A SYN in fragments begins another connection on the same addresses. What the guests have acknowledged
// on the one before does not count for it, and nothing leaves until a checkpoint has it.
func TestWordsOfAConnectionDoNotCountForOneThatBeginsInFragments(t *testing.T) {
	syn := ackSeg{seq: 9000, ack: 501, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
	for name, cut := range map[string]int{"with the header in the first": 24, "with the flags in the second": 8} {
		for _, order := range []string{"ps", "sp"} {
			t.Run(name+", "+order, func(t *testing.T) {
				x, p, s := opened(t, nil) // 1000 is acknowledged
				whole := syn.frame().Data
				first, second := bytes.Clone(whole[:34+cut]), append(bytes.Clone(whole[:34]), whole[34+cut:]...)
				binary.BigEndian.PutUint16(first[16:], uint16(len(first)-14))
				binary.BigEndian.PutUint16(first[20:], moreFragments)
				binary.BigEndian.PutUint16(second[16:], uint16(len(second)-14))
				binary.BigEndian.PutUint16(second[20:], uint16(cut/8))
				for _, f := range [][]byte{first, second} {
					for _, who := range order {
						if who == 'p' {
							x.Primary(compare.Frame{Data: f}, x.now)
						} else {
							x.Secondary(compare.Frame{Data: f}, x.now)
						}
					}
				}
				late := ackSeg{seq: 9001, ack: 700, win: 50, flags: ackOnly}
				if r := p(late); len(r.Release) > 0 {
					t.Errorf("an acknowledgment that the secondary's guest has not given: %q", told(r))
				}
				if r := s(ackSeg{seq: 9001, ack: 600, win: 50, flags: ackOnly}); len(r.Release) > 0 {
					t.Errorf("one that it has not given is cut from: %q", told(r))
				}
				x.mark(1)
				if r := x.received(1); len(r.Release) != 1 {
					t.Errorf("%d segments leave with the checkpoint: %q", len(r.Release), told(r))
				}
				if _, err := x.SecondaryMark(1); err != nil {
					t.Fatal(err)
				}
				next := ackSeg{seq: 9001, ack: 750, win: 50, flags: ackOnly}
				if r := p(next); len(r.Release) > 0 {
					t.Errorf("the next before its time: %q", told(r))
				}
				if r := s(next); len(r.Release) != 1 {
					t.Errorf("the next, which both have given: %q", told(r))
				}
			})
		}
	}
}

// The peer of a connection that lives takes such a SYN for none (RFC 5961), and drops what comes with an
// older timestamp after that.
func TestTimestampsDoNotGoBackAtASYNInFragments(t *testing.T) {
	x, p, _ := opened(t, nil)
	stamped := func(seq uint32, text string, ts uint32) ackSeg {
		a := data(seq, text)
		a.opts = wireTimes(ts, 7)
		return a
	}
	p(stamped(100, "abcd", 8))
	syn := ackSeg{seq: 9000, ack: 501, win: 6400, flags: packet.SYN | packet.ACK}.frame()
	binary.BigEndian.PutUint16(syn.Data[20:], moreFragments)
	x.Primary(syn, x.now)
	p(stamped(104, "efgh", 4))
	x.mark(1)
	newest := uint32(0)
	r := x.received(1)
	for _, f := range r.Release {
		if f.Data[20]&0x20 != 0 {
			continue
		}
		ts := binary.BigEndian.Uint32(f.Data[34+20+4:])
		if ts < newest {
			t.Errorf("timestamp %d leaves after %d", ts, newest)
		}
		newest = ts
	}
	if len(r.Release) != 3 {
		t.Errorf("%d packets have left", len(r.Release))
	}
}

// However many datagrams are under way, the fragments of each match those of one other only.
func TestFragmentsOfManyDatagramsThatAreNotWholeMatchNoOthers(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, many := range []int{1, 63, 64, 65, 100} {
			x := newRig(t, lowering())
			x.checkpoint(0)
			first := func(n int) compare.Frame { return fragmentOf{n, n % 2, n%2 == 1, byte(n)}.frame(v6) }
			last := func(n int, data byte) compare.Frame { return fragmentOf{n, 1 - n%2, n%2 == 0, data}.frame(v6) }
			asked := false
			for n := range many {
				x.Primary(first(n), x.now)
				r := x.Secondary(first(n), x.now)
				asked = asked || r.Diverged
				if want := n < 64; (len(r.Release) == 1) != want {
					t.Fatalf("%d of %d: %d leave", n, many, len(r.Release))
				}
			}
			if asked != (many > 64) {
				t.Errorf("%d: a checkpoint is asked for: %t", many, asked)
			}
			x.Secondary(last(200, 'x'), x.now) // how another datagram goes on
			if r := x.Primary(last(0, 'x'), x.now); len(r.Release) != 0 {
				t.Errorf("%d: a datagram leaves that the secondary's guest has not sent", many)
			}
			if many > 1 {
				x.Secondary(last(1, 'y'), x.now)
				if r := x.Primary(last(1, 'y'), x.now); len(r.Release) != 1 {
					t.Errorf("%d: %d of one that both have sent leave", many, len(r.Release))
				}
			}
			x.checkpoint(1)
			x.Primary(first(201), x.now)
			if r := x.Secondary(first(202), x.now); len(r.Release) != 0 {
				t.Error("two that differ match")
			}
		}
	}
}

// A checkpoint may come between two fragments. The secondary's guest then goes on with the datagram as the
// primary's does, with its number.
func TestADatagramInFragmentsGoesOnBehindACheckpoint(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, left := range []bool{true, false} {
			x := newRig(t, lowering())
			x.checkpoint(0)
			x.Primary(fragmentOf{1, 0, false, 'a'}.frame(v6), x.now)
			if left {
				x.Secondary(fragmentOf{51, 0, false, 'a'}.frame(v6), x.now)
			}
			x.checkpoint(1)
			x.Secondary(fragmentOf{7, 1, true, 'b'}.frame(v6), x.now)
			if r := x.Primary(fragmentOf{1, 1, true, 'b'}.frame(v6), x.now); len(r.Release) != 0 {
				t.Errorf("left %t: the rest of another datagram matches", left)
			}
			if r := x.Secondary(fragmentOf{1, 1, true, 'b'}.frame(v6), x.now); len(r.Release) != 1 {
				t.Errorf("left %t: the rest leaves %d times", left, len(r.Release))
			}
		}

		// With too many of them none begins before the next checkpoint.
		x := newRig(t, lowering())
		x.checkpoint(0)
		for n := range 70 {
			x.Primary(fragmentOf{n, 0, false, 'a'}.frame(v6), x.now)
		}
		x.checkpoint(1)
		x.Secondary(fragmentOf{5, 1, true, 'c'}.frame(v6), x.now)
		if r := x.Primary(fragmentOf{5, 1, true, 'c'}.frame(v6), x.now); len(r.Release) != 1 {
			t.Errorf("%d of one of the first leave", len(r.Release))
		}
		x.Secondary(fragmentOf{200, 1, true, 'b'}.frame(v6), x.now)
		if r := x.Primary(fragmentOf{69, 1, true, 'b'}.frame(v6), x.now); len(r.Release) != 0 || !r.Diverged {
			t.Errorf("%d leave, and a checkpoint is asked for: %t", len(r.Release), r.Diverged)
		}

		// Nobody waits for what a guest has not sent in a minute.
		x = newRig(t, lowering())
		x.checkpoint(0)
		for n := range 70 {
			x.Primary(fragmentOf{n, 0, false, 'a'}.frame(v6), x.now)
		}
		x.checkpoint(1)
		x.now = x.now.Add(2 * time.Minute)
		x.Tick(x.now)
		x.checkpoint(2)
		x.Secondary(fragmentOf{200, 0, false, 'b'}.frame(v6), x.now)
		if r := x.Primary(fragmentOf{100, 0, false, 'b'}.frame(v6), x.now); len(r.Release) != 1 {
			t.Errorf("after two minutes %d leave", len(r.Release))
		}
	}
}

// What the peer would put together of the fragments need not be what it gets whole.
func TestADatagramThatIsWholeOnOneSideOnlyDoesNotWaitForTheTimeout(t *testing.T) {
	long := wireDatagram(53, 5000, string(bytes.Repeat([]byte("data"), 20)))
	other := wireDatagram(53, 5000, string(bytes.Repeat([]byte("else"), 20)))
	echo := wireIPv4(1, 0, append([]byte{0, 0, 0, 0, 0, 1, 0, 1}, bytes.Repeat([]byte("echo"), 20)...))
	unsummed := bytes.Clone(long)
	unsummed[34+packet.UDPChecksumAt] ^= 0xff
	for _, c := range []struct {
		what            string
		whole, cut      []byte
		asked, adaptive bool
	}{
		{"one datagram", long, long, true, false},
		{"one whose checksum is not computed yet", unsummed, long, true, false},
		{"one of a flow that is set apart then", long, long, true, true},
		{"an echo", echo, echo, true, false},
		{"two datagrams", other, long, false, false},
	} {
		first, rest := bytes.Clone(c.cut[:34+48]), append(bytes.Clone(c.cut[:34]), c.cut[34+48:]...)
		for f, where := range map[*[]byte]uint16{&first: moreFragments, &rest: 6} {
			binary.BigEndian.PutUint16((*f)[16:], uint16(len(*f)-14))
			binary.BigEndian.PutUint16((*f)[20:], where)
		}
		for order := range 4 {
			cfg := lowering()
			cfg.Adaptive, cfg.Strikes = c.adaptive, 1
			x := newRig(t, cfg)
			x.checkpoint(0)
			asked := compare.Result{}
			say := func(who int, f []byte) {
				r := []func(compare.Frame, time.Time) compare.Result{x.Primary, x.Secondary}[who](compare.Frame{Data: f}, x.now)
				if len(r.Release) > 0 {
					t.Errorf("%s, order %d: something leaves", c.what, order)
				}
				if r.Diverged {
					asked = r
				}
			}
			whole := order & 1
			if order < 2 {
				say(whole, c.whole)
			}
			say(1-whole, first)
			say(1-whole, rest)
			if order >= 2 {
				say(whole, c.whole)
			}
			if asked.Diverged != c.asked || asked.Diverged && asked.Reason != compare.ReasonPacket {
				t.Errorf("%s, order %d: a checkpoint is asked for: %t, %v", c.what, order, asked.Diverged, asked.Reason)
			}
		}
	}
}

// Guests send the fragments of a datagram in any order, some the last one first.
func TestHoweverManyDatagramsInFragmentsLeaveIfEachIsWhole(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 5))
	for _, v6 := range []bool{false, true} {
		x := newRig(t, lowering())
		x.checkpoint(0)
		for n := range 200 {
			for _, place := range r.Perm(6) {
				x.Primary(fragmentOf{n, place, place == 5, byte(n)}.frame(v6), x.now)
				if res := x.Secondary(fragmentOf{255 - n, place, place == 5, byte(n)}.frame(v6), x.now); len(res.Release) != 1 || res.Diverged {
					t.Fatalf("datagram %d: %d leave, %v", n, len(res.Release), res.Reason)
				}
			}
		}
	}
}

// Guests use their numbers again. The second datagram with the numbers of one that is whole is under way too.
func TestASecondDatagramWithTheSameNumbersMatchesOneOtherOnly(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		x := newRig(t, lowering())
		x.checkpoint(0)
		both := func(p, s int, place int, data byte) (left int) {
			left += len(x.Primary(fragmentOf{p, place, place == 1, data}.frame(v6), x.now).Release)
			return left + len(x.Secondary(fragmentOf{s, place, place == 1, data}.frame(v6), x.now).Release)
		}
		both(1, 51, 0, 'x')
		both(1, 51, 1, 'x')
		if left := both(1, 51, 0, 'a'); left != 1 {
			t.Errorf("%d leave of the second", left)
		}
		for n := range 100 {
			if left := both(2+n, 52+n, 0, 'y') + both(2+n, 52+n, 1, 'y'); left != 2 {
				t.Errorf("%d leave of another", left)
			}
		}
		if both(1, 200, 1, 'b') != 0 {
			t.Error("the rest of another matches the second with these numbers")
		}
	}
}

// A flow with a datagram under way is not forgotten for another one.
func TestAFlowWithADatagramUnderWayIsNotForgotten(t *testing.T) {
	cfg := lowering()
	cfg.MaxConns, cfg.Idle = 1, time.Second
	begun := func() *rig {
		x := newRig(t, cfg)
		x.checkpoint(0)
		x.Primary(fragmentOf{1, 0, false, 'a'}.frame(false), x.now)
		x.Secondary(fragmentOf{2, 0, false, 'a'}.frame(false), x.now)
		return x
	}
	x := begun()
	x.now = x.now.Add(10 * time.Second)
	x.Tick(x.now)
	x.Secondary(fragmentOf{3, 1, true, 'b'}.frame(false), x.now)
	if r := x.Primary(fragmentOf{1, 1, true, 'b'}.frame(false), x.now); len(r.Release) != 0 {
		t.Error("the rest of another datagram matches")
	}

	x = begun()
	if r := x.Primary(udp("ping"), x.now); !r.Diverged || r.Reason != compare.ReasonLimit {
		t.Errorf("there is no room for another flow, and %v", r.Reason)
	}

	x = begun()
	x.now = x.now.Add(2 * time.Minute)
	x.Tick(x.now)
	x.Secondary(udp("ping"), x.now)
	if r := x.Primary(udp("ping"), x.now); len(r.Release) != 1 {
		t.Error("nobody waits for the rest any more, and there is no room for another flow")
	}
}
