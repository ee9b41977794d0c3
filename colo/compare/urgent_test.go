package compare_test

import (
	"encoding/binary"
	"testing"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// pressing is a segment whose urgent pointer is at.
func pressing(a ackSeg, at uint16) compare.Frame {
	a.flags |= packet.URG
	f := a.frame()
	binary.BigEndian.PutUint16(f.Data[34+18:], at)
	return compare.Frame{Data: sealed(f.Data)}
}

// Most peers take the byte that an urgent pointer points to out of the stream.
func TestAnUrgentPointerLeavesIfTheSecondarysGuestHasGivenIt(t *testing.T) {
	x, p, s := opened(t, nil)
	x.Primary(pressing(data(100, "abcd"), 4), x.now)
	x.told("both", x.Secondary(pressing(data(100, "abcd"), 4), x.now), "abcd@100 ack 1000 to 7400")
	x.Secondary(pressing(data(104, "efgh"), 4), x.now)
	x.told("in the other order", x.Primary(pressing(data(104, "efgh"), 4), x.now), "efgh@104 ack 1000 to 7400")

	// The guests cut their streams where they like.
	x.told("", p(data(108, "ij")), "")
	x.told("the secondary's is urgent already", x.Secondary(pressing(data(108, "ijkl"), 4), x.now), "ij@108 ack 1000 to 7400")
	x.told("the same place", x.Primary(pressing(data(110, "kl"), 2), x.now), "kl@110 ack 1000 to 7400")
	x.told("again", x.Primary(pressing(data(108, "ijkl"), 4), x.now), "ijkl@108 ack 1000 to 7400")
	x.Primary(pressing(data(112, "mnop"), 4), x.now)
	x.told("the first of it is not", s(data(112, "mn")), "")
	x.told("the last is", x.Secondary(pressing(data(114, "op"), 2), x.now), "mnop@112 ack 1000 to 7400")
	x.told("the secondary's alone", x.Secondary(pressing(data(116, "q"), 1), x.now), "")
	x.told("is not said to the peer", p(data(116, "q")), "q@116 ack 1000 to 7400")

	for name, other := range map[string]compare.Frame{
		"none":          data(117, "rstu").frame(),
		"another place": pressing(data(117, "rstu"), 3),
	} {
		x, p, s := opened(t, nil)
		p(data(100, "abcdefghijklmnopq"))
		s(data(100, "abcdefghijklmnopq"))
		x.told(name, x.Primary(pressing(data(117, "rstu"), 4), x.now), "")
		x.told(name, x.Secondary(other, x.now), "!flags")
		x.checkpoint(1)
		if st := x.Stats(); st.Held != 0 || st.Checkpoint != 1 {
			t.Errorf("%s: %+v", name, st)
		}
		x.told("the checkpoint has it", x.Primary(pressing(data(117, "rstu"), 4), x.now), "rstu@117 ack 1000 to 7400")
	}
}

// A segment without data may have one too, and is no acknowledgment that another one may
// stand for.
func TestAnUrgentPointerWithoutDataIsNoAcknowledgmentAndNothingElse(t *testing.T) {
	x, _, s := opened(t, nil)
	bare := ackSeg{seq: 100, ack: 1000, win: 50, flags: ackOnly}
	x.told("the secondary's guest has not said so", x.Primary(pressing(bare, 9), x.now), "")
	x.told("nor now", s(bare), "")
	x.told("now it has", x.Secondary(pressing(bare, 9), x.now), "@100 ack 1000 to 7400")
}

// Between a mark and its receipt either guest may go on, and has to have given it.
func TestAnUrgentPointerOfTheOldGuestOnlyIsVoidAfterAMark(t *testing.T) {
	x, _, _ := opened(t, nil)
	x.Secondary(pressing(data(100, "abcd"), 4), x.now)
	x.mark(1)
	x.told("", x.Primary(pressing(ackSeg{seq: 100, ack: 1000, win: 50, flags: ackOnly}, 4), x.now), "")
	x.received(1)
	x.told("the checkpoint does not know of it", x.Primary(pressing(ackSeg{seq: 100, ack: 1000, win: 50, flags: ackOnly}, 4), x.now), "")
}

// In a SYN it counts from a number that differs between the guests.
func TestAnUrgentPointerInASYNWaits(t *testing.T) {
	x := newRig(t, lowering())
	x.checkpoint(0)
	syn := ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
	x.Secondary(pressing(syn, 3), x.now)
	x.told("", x.Primary(pressing(syn, 3), x.now), "!flags")
}
