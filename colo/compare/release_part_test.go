package compare_test

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// A secondary's guest whose congestion window ends within a segment of the primary's
// says no more before the peer has acknowledged that much.
func TestWhatIsCoveredOfASegmentLeavesWhenTheSecondaryRepeatsIt(t *testing.T) {
	for name, wrap := range map[string]func([]byte) []byte{"IPv4": nil, "IPv6": asIPv6, "PPPoE": asPPPoE} {
		t.Run(name, func(t *testing.T) {
			x, p, s := opened(t, wrap)
			x.told("the primary's is longer", p(ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: "abcdefgh"}), "")
			first := ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: "abc"}
			x.told("some of it", s(first), "")
			x.told("again", s(first), "abc@100 ack 1000 to 7400")
			x.told("and again", s(first), "")
			x.told("a little more", s(ackSeg{seq: 103, ack: 1000, win: 50, flags: push, data: "de"}), "")
			x.told("which is repeated", s(ackSeg{seq: 103, ack: 1000, win: 50, flags: push, data: "d"}), "de@103 ack 1000 to 7400")
			x.told("the rest", s(ackSeg{seq: 105, ack: 1000, win: 50, flags: push, data: "fgh"}), "abcdefgh@100 ack 1000 to 7400")
		})
	}
}

// What it had sent in two packets a guest sends again in one.
func TestARepetitionIsOneHoweverItIsCut(t *testing.T) {
	x, p, s := opened(t, nil)
	p(ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: "abcdefgh"})
	x.told("", s(ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: "ab"}), "")
	x.told("", s(ackSeg{seq: 102, ack: 1000, win: 50, flags: push, data: "cd"}), "")
	x.told("both in one", s(ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: "abcd"}), "abcd@100 ack 1000 to 7400")

	x, p, s = opened(t, nil)
	p(ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: "abcdefgh"})
	x.told("", s(ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: "ab"}), "")
	x.told("with more", s(ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: "abcd"}), "")
	x.told("and again", s(ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: "abcd"}), "abcd@100 ack 1000 to 7400")
}

// Nothing leaves early of what differs, of what waits for more than its data, nor
// between a mark and its receipt.
func TestNoPartLeavesThatIsNotCovered(t *testing.T) {
	first := ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: "abc"}
	x, p, s := opened(t, nil)
	p(ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: "abXdefgh"})
	x.told("it differs", s(first), "!data")
	x.told("again", s(first), "")

	x, p, s = opened(t, nil)
	p(ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: "abcdefgh"})
	s(first)
	if err := x.Mark(1); err != nil {
		t.Fatal(err)
	}
	x.told("the guest is to be rolled back", s(first), "")
}

// A segment without the ACK flag acknowledges nothing, whatever number it has in that place: nor does
// a part of it.
func TestAPartAcknowledgesNothingThatItsSegmentDoesNot(t *testing.T) {
	x, _, s := opened(t, nil)
	f := ackSeg{seq: 100, ack: 5000, win: 50, flags: push, data: "abcdefgh"}.frame()
	f.Data[packet.EthernetLen+packet.IPv4Len+13] &^= packet.ACK
	sealed(f.Data)
	first := ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: "abc"}
	x.Primary(f, x.now)
	s(first)
	r := x.Secondary(first.frame(), x.now)
	if len(r.Release) != 1 {
		t.Fatalf("%d leave", len(r.Release))
	}
	var p packet.Packet
	p.Parse(r.Release[0].Data)
	if h := p.TCP(); string(h.Payload()) != "abc" || h.Flags() != packet.PSH || h.Checksum() != p.TCPChecksum() {
		t.Errorf("%q leaves, with the flags %#x", h.Payload(), h.Flags())
	}
}

// A segment that a device is to cut leaves in parts no longer than those.
func TestAPartOfASegmentThatIsToBeCutNeedsNoCutting(t *testing.T) {
	x, _, _ := opened(t, nil)
	frame := func(seq uint32, n, gso int) compare.Frame {
		f := ackSeg{seq: seq, ack: 1000, win: 50, flags: push, data: strings.Repeat("x", n)}.frame().Data
		h := make([]byte, 12, 12+len(f))
		if gso > 0 {
			h[0], h[1] = packet.VNetNeedsCsum, packet.GSOTCPv4
			binary.LittleEndian.PutUint16(h[4:], uint16(gso))
			binary.LittleEndian.PutUint16(h[6:], packet.EthernetLen+packet.IPv4Len)
			binary.LittleEndian.PutUint16(h[8:], packet.TCPChecksumAt)
		}
		return compare.Frame{Data: append(h, f...), VNetHdr: 12}
	}
	x.Primary(frame(100, 30000, 1400), x.now)
	x.Secondary(frame(100, 5000, 1400), x.now)
	for seq := uint32(100); seq < 5100; {
		r := x.Secondary(frame(seq, int(5100-seq), 1400), x.now)
		if len(r.Release) != 1 {
			t.Fatalf("at %d: %d leave", seq, len(r.Release))
		}
		f := r.Release[0]
		var p packet.Packet
		p.Parse(f.Data[f.VNetHdr:])
		h := p.TCP()
		want := min(1400, 5100-seq)
		if f.VNetHdr != 12 || f.Data[0] != 0 || f.Data[1] != 0 || h.Seq() != seq || uint32(len(h.Payload())) != want || h.Checksum() != p.TCPChecksum() {
			t.Fatalf("at %d: %x, %d bytes at %d", seq, f.Data[:12], len(h.Payload()), h.Seq())
		}
		seq += want
	}
}

// A guest whose congestion window ends within a segment of the other's says the bytes again
// when its clock has run out, which may be a minute later. The peer has them before.
func TestWhatIsCoveredOfASegmentLeavesWhenNoMoreOfItComes(t *testing.T) {
	for name, wrap := range map[string]func([]byte) []byte{"IPv4": nil, "IPv6": asIPv6, "PPPoE": asPPPoE} {
		t.Run(name, func(t *testing.T) {
			x, p, s := opened(t, wrap)
			after := func(d time.Duration) compare.Result {
				x.now = x.now.Add(d)
				return x.Tick(x.now)
			}
			after(0)
			x.told("", s(data(100, "abc")), "")
			x.told("the primary's is longer", p(data(100, "abcdefgh")), "")
			if d := x.Deadline(); !d.Equal(x.now.Add(5 * time.Millisecond)) {
				t.Errorf("it is looked at in %v", d.Sub(x.now))
			}
			x.told("more may come", after(4*time.Millisecond), "")
			x.told("it does", s(data(103, "d")), "")
			x.told("and may again", after(4*time.Millisecond), "")
			x.told("it does not", after(time.Millisecond), "abcd@100 ack 1000 to 7400")
			x.told("once is enough", after(time.Second), "")
			x.told("the next", s(data(104, "e")), "")
			x.told("of which no more comes", after(5*time.Millisecond), "e@104 ack 1000 to 7400")
			x.told("the rest, in time", s(data(105, "fgh")), "abcdefgh@100 ack 1000 to 7400")
			x.told("and nothing is left", after(time.Second), "")
			if st := x.Stats(); st.Held != 0 || st.HeldBytes != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// A large segment that its device has yet to cut leaves as far as it is covered, in packets
// as the device would have made them.
func TestAllThatIsCoveredOfALargeSegmentLeaves(t *testing.T) {
	x, _, _ := opened(t, nil)
	large := func(a ackSeg) compare.Frame {
		h := make([]byte, 12)
		h[0], h[1] = packet.VNetNeedsCsum, 1 // TCP over IPv4
		binary.LittleEndian.PutUint16(h[4:], 3)
		binary.LittleEndian.PutUint16(h[6:], 34)
		binary.LittleEndian.PutUint16(h[8:], 16)
		return compare.Frame{Data: append(h, a.frame().Data...), VNetHdr: 12}
	}
	x.Primary(large(data(100, "abcdefghijkl")), x.now)
	x.told("", x.Secondary(large(data(100, "abcdefgh")), x.now), "")
	x.now = x.now.Add(5 * time.Millisecond)
	x.told("", x.Tick(x.now), "abc@100 ack 1000 to 7400, def@103 ack 1000 to 7400, gh@106 ack 1000 to 7400")
}

// At a mark it is over: what waits is the checkpoint's.
func TestAPartDoesNotLeaveAfterAMark(t *testing.T) {
	x, p, s := opened(t, nil)
	p(data(100, "abcdefgh"))
	s(data(100, "abc"))
	if err := x.Mark(1); err != nil {
		t.Fatal(err)
	}
	x.now = x.now.Add(5 * time.Millisecond)
	x.told("", x.Tick(x.now), "")
}

// The numbers of a connection's data may begin with any, and so with none that stands for
// another.
func TestWhatIsCoveredLeavesAtTheNumberNoughtToo(t *testing.T) {
	x := newRig(t, lowering())
	x.checkpoint(0)
	syn := ackSeg{seq: 1<<32 - 1, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
	x.Primary(syn.frame(), x.now)
	if r := x.Secondary(syn.frame(), x.now); len(r.Release) != 1 {
		t.Fatal("not opened")
	}
	x.Primary(data(0, "abcdefgh").frame(), x.now)
	x.told("", x.Secondary(data(0, "abc").frame(), x.now), "")
	x.now = x.now.Add(5 * time.Millisecond)
	x.told("", x.Tick(x.now), "abc@0 ack 1000 to 7400")
}
