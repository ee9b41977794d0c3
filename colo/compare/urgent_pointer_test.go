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

// One that begins behind what has left would give the peer a window that a guest which goes on from
// there cannot change, since the peer takes none from a segment that begins before. Its
// pointer counts from its number, so that it waits until that much has left.
func TestAnUrgentPointerWithoutDataDoesNotOvertakeTheStream(t *testing.T) {
	bare := pressing(ackSeg{seq: 104, ack: 1000, win: 50, flags: ackOnly}, 9)
	x, _, s := opened(t, nil)
	x.told("the pointer", x.Secondary(pressing(data(100, "ab"), 13), x.now), "")
	x.told("it is ahead of what the secondary's guest has said", x.Primary(bare, x.now), "")
	x.told("that guest says as much", s(data(102, "cd")), "@104 ack 1000 to 7400")

	x, p, s := opened(t, nil)
	x.told("the pointer", x.Secondary(pressing(data(100, "ab"), 13), x.now), "")
	x.told("", x.Primary(bare, x.now), "")
	x.told("what is before it comes", p(data(100, "abcd")), "")
	x.told("and leaves first", s(data(102, "cd")), "abcd@100 ack 1000 to 7400, @104 ack 1000 to 7400")

	x, _, _ = opened(t, nil)
	x.Secondary(pressing(data(100, "ab"), 13), x.now)
	x.Primary(bare, x.now)
	x.mark(1)
	x.told("a checkpoint has it", x.received(1), "@104 ack 1000 to 7400")
}

// A device that cuts a segment puts its urgent pointer into each of the pieces, where it points to as
// many places.
func TestAnUrgentPointerInASegmentThatADeviceCutsWaits(t *testing.T) {
	cut := func(size byte) compare.Frame {
		f := pressing(data(100, "abcdefgh"), 2)
		return compare.Frame{Data: append([]byte{1, 1, 54, 0, size, 0, 34, 0, 16, 0}, f.Data...), VNetHdr: 10}
	}
	plain := func(a ackSeg, at uint16) compare.Frame {
		f := a.frame()
		if at > 0 {
			f = pressing(a, at)
		}
		return compare.Frame{Data: append(make([]byte, 10), f.Data...), VNetHdr: 10}
	}

	x, _, _ := opened(t, nil)
	x.Secondary(plain(data(100, "abcd"), 2), x.now)
	x.Secondary(plain(data(104, "efgh"), 0), x.now)
	x.want("the primary's is cut", x.Primary(cut(4), x.now), "!flags")

	x, _, _ = opened(t, nil)
	x.Secondary(cut(4), x.now)
	if got := show(x.Primary(plain(data(100, "abcd"), 2), x.now)); got == "abcd" {
		t.Errorf("the secondary's is cut, and %q leaves", got)
	}

	x, _, _ = opened(t, nil)
	x.Secondary(plain(data(100, "abcdefgh"), 2), x.now)
	x.want("one that is short enough is not cut", x.Primary(cut(8), x.now), "abcdefgh")
}
