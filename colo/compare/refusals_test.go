package compare_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// A client whose connection is refused may try again from the same port, with the same number or
// another one, and both guests answer each time, in whatever order the answers come.
func TestEachOfSeveralRefusalsLeavesWithItsNumberAndWithoutACheckpoint(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 3))
		x, p, s := opened(t, nil)
		over := ackSeg{seq: 100, ack: 1000, win: 50, flags: packet.RST | packet.ACK}
		p(over)
		s(over)
		number, base := r.Uint32(), r.Uint32N(2)
		var asked []uint32
		left := 0
		at := [2]int{}
		for at != [2]int{8, 8} {
			who := r.IntN(2)
			if at[who] == 8 {
				continue
			}
			for len(asked) <= at[who] { // the client tries again
				asked = append(asked, number)
				number += base * r.Uint32N(1<<20)
			}
			say := ackSeg{ack: asked[at[who]], flags: packet.RST | packet.ACK}
			at[who]++
			send := []func(ackSeg) compare.Result{p, s}[who]
			res := send(say)
			for _, f := range res.Release {
				if got := binary.BigEndian.Uint32(f.Data[34+8:]); got != asked[left] {
					t.Fatalf("seed %d: refusal %d of %v leaves with %d", seed, left, asked, got)
				}
				left++
			}
			if left != min(at[0], at[1]) || res.Diverged {
				t.Fatalf("seed %d: the guests have refused %d times, %d refusals have left, !%v", seed, at, left, res.Reason)
			}
		}
		x.now = x.now.Add(time.Hour)
		if r := x.Tick(x.now); r.Diverged || x.Stats().Held > 0 {
			t.Fatalf("seed %d: after all of them %+v is asked for, %+v", seed, r.Reason, x.Stats())
		}
	}
}

// More of them than anybody has a use for are not counted, and a checkpoint ends what waits.
func TestCountlessRefusalsOfTheSecondarysGuestTakeNoMemory(t *testing.T) {
	x, p, s := opened(t, nil)
	say := func(n uint32) ackSeg { return ackSeg{ack: n, flags: packet.RST | packet.ACK} }
	for n := range uint32(1000) {
		s(say(2000 + n))
	}
	held := x.Stats().HeldBytes
	for n := range uint32(9) {
		if r := p(say(2000 + n)); len(r.Release) != 1 {
			t.Errorf("refusal %d does not leave", n)
		}
	}
	if r := p(say(3000)); len(r.Release) != 0 || held > 0 {
		t.Errorf("%d have left that nobody knows of, %d bytes are held", len(r.Release), held)
	}
	for n := range uint32(6) {
		x, p, s := opened(t, nil)
		for n := range uint32(6) {
			s(say(4000 + n))
		}
		p(say(4000))
		x.checkpoint(1)
		s(say(5000))
		if r := p(say(5000)); len(r.Release) != 1 {
			t.Error("one that both have said since the checkpoint does not leave")
		}
		if r := p(say(4000 + n)); len(r.Release) != 0 {
			t.Error("one leaves that the secondary's guest has not said since the checkpoint")
		}
	}
}

// A client begins anew on the addresses of a connection that one of the guests still has.
func TestARefusalAndARSTOfTheConnectionBeforeAreNotOfOneKind(t *testing.T) {
	const base = 1000
	over := ackSeg{seq: 100, ack: base, win: 50, flags: packet.RST | packet.ACK}
	refusal := ackSeg{ack: base + 400, flags: packet.RST | packet.ACK}

	_, p, s := opened(t, nil)
	s(over)
	if r := p(refusal); len(r.Release) > 0 {
		t.Errorf("a SYN is refused that the other guest has not heard of: %x", r.Release[0].Data)
	}
	if r := s(refusal); len(r.Release) != 1 || binary.BigEndian.Uint32(r.Release[0].Data[34+8:]) != refusal.ack {
		t.Errorf("both have refused it: %d leave", len(r.Release))
	}

	_, p, s = opened(t, nil)
	s(refusal)
	if r := p(over); len(r.Release) > 0 {
		t.Error("the connection before is reset, and the other guest has not said so")
	}

	x, p, s := opened(t, nil)
	s(refusal)
	x.told("there is more room than the other guest had", p(bareAt(100, base, 100)), "")
	if r := p(refusal); len(r.Release) != 1 || r.Diverged {
		t.Errorf("both have refused it: %d leave, %v", len(r.Release), r.Reason)
	}
}
