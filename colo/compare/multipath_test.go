package compare_test

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// dss returns an option of Multipath TCP that acknowledges data (RFC 8684 section 3.3), by its
// lower half or whole.
func dss(n uint64, whole bool) string {
	if whole {
		return string(binary.BigEndian.AppendUint64([]byte("\x1e\x0c\x20\x03"), n))
	}
	return string(binary.BigEndian.AppendUint32([]byte("\x1e\x08\x20\x01"), uint32(n)))
}

// mapped is dss with the place of four bytes of data.
func mapped(n uint32, place uint32) string {
	b := binary.BigEndian.AppendUint32([]byte("\x1e\x12\x20\x05"), n)
	b = binary.BigEndian.AppendUint32(b, place)
	return string(append(b, 0, 0, 0, 1, 0, 4, 1, 1))
}

// dataAcks shows the DATA_ACKs of what leaves.
func dataAcks(r compare.Result) string {
	var out []string
	for _, f := range r.Release {
		var p packet.Packet
		p.Parse(f.Data)
		h := p.TCP()
		s := string(h.Payload())
		for kind, data, rest, ok := packet.NextOption(h.Options()); ok; kind, data, rest, ok = packet.NextOption(rest) {
			switch {
			case kind == packet.OptMultipath && data[0] == 0x20 && data[1]&3 == 1:
				s += fmt.Sprint("@", binary.BigEndian.Uint32(data[2:]))
			case kind == packet.OptMultipath && data[0] == 0x20 && data[1]&3 == 3:
				s += fmt.Sprintf("@%#x", binary.BigEndian.Uint64(data[2:]))
			case kind == packet.OptMultipath:
				s += fmt.Sprintf("%q", data)
			}
		}
		if h.Checksum() != p.TCPChecksum() {
			s += " with a bad checksum"
		}
		out = append(out, s)
	}
	if r.Diverged {
		out = append(out, "!"+r.Reason.String())
	}
	return strings.Join(out, ", ")
}

func (x *rig) dataAcks(why string, r compare.Result, want string) {
	x.t.Helper()
	if got := dataAcks(r); got != want {
		x.t.Errorf("%s: %q, want %q", why, got, want)
	}
}

// way returns a segment of the connection of ackSegs that acknowledges data of Multipath TCP.
func way(seq uint32, opts, data string) ackSeg {
	return ackSeg{seq: seq, ack: 1000, win: 50, flags: packet.ACK, opts: opts, data: data}
}

// A peer that has been told of a DATA_ACK sends the data on no other connection.
func TestNoDataAckLeavesThatTheSecondarysGuestHasNotGiven(t *testing.T) {
	for name, at := range map[string]func(n uint64) string{
		"four bytes":  func(n uint64) string { return dss(n, false) },
		"eight bytes": func(n uint64) string { return dss(n, true) },
		"at an odd place": func(n uint64) string {
			return "\x01" + dss(n, true) + "\x01\x01\x01"
		},
	} {
		t.Run(name, func(t *testing.T) {
			const base = 1<<33 - 200 // the lower half wraps on the way
			show := func(n uint64) string {
				if name == "four bytes" {
					return fmt.Sprint("@", uint32(n))
				}
				return fmt.Sprintf("@%#x", n)
			}
			x, p, s := opened(t, nil)
			x.dataAcks("the secondary's guest has given none", p(way(100, at(base), "")), "")
			x.dataAcks("it gives the same", s(way(100, at(base), "")), show(base))
			x.dataAcks("the primary's guest is ahead", p(way(100, at(base+300), "abcd")), "")
			x.dataAcks("the data leaves with less", s(way(100, at(base+100), "abcd")), "abcd"+show(base+100))
			x.dataAcks("the rest follows", s(way(104, at(base+200), "")), show(base+200))
			x.dataAcks("to the end", s(way(104, at(base+300), "")), show(base+300))
			x.dataAcks("and then there is no more to say", s(way(104, at(base+400), "")), "")
			x.dataAcks("the secondary's guest was ahead", p(way(104, at(base+400), "")), show(base+400))
			if st := x.Stats(); st.Held != 0 || st.HeldBytes != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// A DATA_ACK that waits is missing to the peer, however little else does.
func TestADataAckThatWaitsHasACheckpointAskedFor(t *testing.T) {
	x, p, s := opened(t, nil)
	s(way(100, dss(1, false), ""))
	x.dataAcks("", p(way(100, dss(1, false), "")), "@1")
	x.dataAcks("", p(way(100, dss(9, false), "")), "")
	x.now = x.now.Add(10 * time.Second)
	x.dataAcks("", x.Tick(x.now), "!timeout")
	x.dataAcks("the checkpoint has it", x.checkpoint(1), "@9")
}

// An acknowledgment that waits tells the peer of more data than a segment that leaves after
// it, and that was sent before.
func TestASegmentThatLeavesLaterTakesNoDataAckAway(t *testing.T) {
	x, p, s := opened(t, nil)
	s(way(100, dss(5, false), ""))
	x.dataAcks("", p(way(100, dss(5, false), "abcd")), "")
	x.dataAcks("", p(way(104, dss(9, false), "")), "@5")
	x.dataAcks("", s(way(100, dss(5, false), "abcd")), "abcd@5")
	x.dataAcks("", s(way(104, dss(9, false), "")), "@9")
}

// What the secondary's guest has given counts up to the mark, what the primary's guest had given
// before it from the receipt on.
func TestAMarkTakesDataAcksBackAndAReceiptGivesThem(t *testing.T) {
	x, p, s := opened(t, nil)
	s(way(100, dss(50, false), ""))
	x.dataAcks("", p(way(100, dss(20, false), "")), "@20")
	x.mark(1)
	x.dataAcks("the guest of the checkpoint has given 20", p(way(100, dss(30, false), "")), "")
	x.dataAcks("", x.received(1), "")
	x.SecondaryMark(1)
	x.dataAcks("", s(way(100, dss(25, false), "")), "@25")
	x.mark(2)
	x.dataAcks("it has given 30 before the mark", x.received(2), "@30")
	x.dataAcks("and may say it again", p(way(100, dss(30, false), "")), "@30")
	x.dataAcks("and no more", p(way(100, dss(31, false), "")), "")
}

// A RST may have a DATA_ACK, and the two guests may reset a connection with the same acknowledgment number.
func TestADataAckOfARSTIsOneOfBothGuests(t *testing.T) {
	over := func(seq uint32, opts string) ackSeg {
		return ackSeg{seq: seq, ack: 1000, win: 50, flags: packet.RST | packet.ACK, opts: opts}
	}
	for _, seq := range []uint32{100, 0} {
		for _, lowers := range []bool{true, false} {
			cfg := lowering()
			cfg.LowerAcks = lowers
			x, _, _ := openedWith(t, cfg, nil)
			x.dataAcks("", x.Primary(over(seq, dss(50, false)).frame(), x.now), "")
			x.dataAcks("the other guest has given no DATA_ACK", x.Secondary(over(seq, "").frame(), x.now), "")
		}
	}
}

// The guest of the checkpoint has given none before the mark.
func TestADataAckOfTheOldGuestOnlyIsVoidAfterAMark(t *testing.T) {
	for _, n := range []uint64{50, 1<<31 + 50} {
		x, p, s := opened(t, nil)
		s(way(100, dss(n, false), ""))
		x.mark(1)
		x.dataAcks("", p(way(100, dss(n, false), "")), "")
	}
}

// The guests give their DATA_ACKs by segments that differ in the rest; where no number may be
// lowered, the segment waits.
func TestASegmentWaitsForItsDataAckWhereItCannotBeLowered(t *testing.T) {
	cfg := lowering()
	cfg.LowerAcks = false
	x, _, _ := openedWith(t, cfg, nil)
	x.dataAcks("", x.Secondary(way(100, dss(1, false), "").frame(), x.now), "")
	x.dataAcks("", x.Primary(way(100, mapped(9, 100), "abcd").frame(), x.now), "")
	x.dataAcks("the data is the same", x.Secondary(way(100, mapped(5, 100), "abcd").frame(), x.now), "")
	x.dataAcks("and now the DATA_ACK", x.Secondary(way(104, dss(9, false), "").frame(), x.now), "abcd@9")
	x.dataAcks("an acknowledgment alone", x.Primary(way(104, dss(10, false), "").frame(), x.now), "")
	x.dataAcks("", x.Secondary(way(104, dss(10, false), "").frame(), x.now), "@10")

	x, p, s := opened(t, nil)
	s(way(100, dss(1, false), ""))
	x.dataAcks("a signature covers it", p(way(100, dss(9, false)+wireSigned, "")), "")
	x.dataAcks("", s(way(100, dss(5, false)+wireSigned, "")), "")
	x.dataAcks("", s(way(100, dss(9, false)+wireSigned, "")), "@9")
}

// A new connection on the same addresses begins with no DATA_ACK, whichever guest opens it first.
func TestADataAckIsOfOneConnection(t *testing.T) {
	x, p, s := opened(t, nil)
	syn := ackSeg{seq: 5000, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
	again := func() {
		x, p, s = opened(t, nil)
		s(way(100, dss(50, false), ""))
		x.dataAcks("", p(way(100, dss(50, false), "")), "@50")
	}
	again()
	p(syn)
	s(syn)
	x.dataAcks("the primary's guest has opened it first", p(way(5001, dss(40, false), "")), "")
	x.dataAcks("", s(way(5001, dss(40, false), "")), "@40")

	again()
	s(syn)
	p(syn)
	x.dataAcks("the secondary's guest has", p(way(5001, dss(40, false), "")), "")
	x.dataAcks("", s(way(5001, dss(40, false), "")), "@40")

	again()
	s(syn)
	s(way(5001, dss(40, false), ""))
	p(syn)
	x.dataAcks("and has given one on it", p(way(5001, dss(40, false), "")), "@40")

	again()
	s(syn)
	s(way(5001, dss(40, false), ""))
	p(syn)
	x.checkpoint(1)
	x.dataAcks("the primary's guest had given none on it", p(way(5001, dss(40, false), "")), "")
}

// The peer may never hear again of what such an option says, and the secondary's guest may never
// say it.
func TestWhatElseMultipathTCPSaysWaitsForTheCheckpoint(t *testing.T) {
	for name, opts := range map[string]string{
		"the end of the data":                 "\x1e\x08\x20\x11\x00\x00\x00\x01",
		"another address":                     "\x1e\x08\x30\x01\x0a\x00\x00\x01",
		"an address that is gone":             "\x1e\x04\x40\x01",
		"which connection is to be preferred": "\x1e\x04\x50\x01",
		"a wrong checksum":                    "\x1e\x0c\x60\x00\x00\x00\x00\x00\x00\x00\x00\x01",
		"the end of all":                      "\x1e\x0c\x70\x00key here",
		"what is not known":                   "\x1e\x04\x90\x00",
		"nothing":                             "\x1e\x02\x01\x01",
		"a DATA_ACK that is cut":              "\x1e\x07\x20\x01\x00\x00\x00\x01",
		"a long one that is cut":              "\x1e\x08\x20\x03\x00\x00\x00\x01",
		"half of its flags":                   "\x1e\x03\x20\x01",
		"two DATA_ACKs":                       dss(1, false) + dss(1, false),
	} {
		for what, a := range map[string]ackSeg{
			"an acknowledgment": way(100, opts, ""), "data": way(100, opts, "abcd"),
			"a FIN": {seq: 100, ack: 1000, win: 50, flags: packet.ACK | packet.FIN, opts: opts},
			"a RST": {seq: 100, ack: 1000, win: 50, flags: packet.ACK | packet.RST, opts: opts},
		} {
			x, p, s := opened(t, nil)
			s(way(100, dss(1, false), ""))
			if got := dataAcks(p(a)); got != "!options" {
				t.Errorf("%s with %s: %q", what, name, got)
			}
			if got := dataAcks(s(a)); got != "" {
				t.Errorf("%s with %s, of both: %q", what, name, got)
			}
			if r := x.checkpoint(1); len(r.Release) != 1 {
				t.Errorf("%s with %s: %d have left with the checkpoint", what, name, len(r.Release))
			}
		}
	}
	for name, opts := range map[string]string{
		"keys that both know": "\x1e\x14\x01\x01key one.key two.",
		"an answer to them":   "\x1e\x18\x10\x00" + strings.Repeat("h", 20),
		"why it ends":         "\x1e\x04\x80\x02",
		"where data belongs":  "\x1e\x0e\x20\x04\x00\x00\x00\x01\x00\x00\x00\x01\x00\x04\x01\x01",
	} {
		x, p, s := opened(t, nil)
		p(way(100, opts, "abcd"))
		if r := s(way(100, opts, "abcd")); len(r.Release) != 1 || r.Diverged {
			t.Errorf("%s: %+v", name, r)
		}
		if st := x.Stats(); st.Held != 0 {
			t.Errorf("%s: %+v", name, st)
		}
	}
}

// A repetition that need not leave may be the only one that has a DATA_ACK, and one that leaves has
// none that is ahead.
func TestARepetitionHasTheDataAckThatBothGuestsHaveGiven(t *testing.T) {
	x, p, s := opened(t, nil)
	s(way(100, dss(5, false), ""))
	p(way(100, mapped(5, 100), "abcd"))
	x.dataAcks("it waits already, and says more", p(way(100, mapped(9, 100), "abcd")), "@5")
	x.dataAcks("", s(way(100, mapped(7, 100), "abcd")), "@7, abcd@5")
	x.dataAcks("it has left, and is repeated", p(way(100, mapped(9, 100), "abcd")), "abcd@7")
	x.dataAcks("", s(way(104, dss(9, false), "")), "@9")
}

// So does one that leaves because the peer turns out to lack it.
func TestARepetitionThatIsNeededHasNoDataAckThatIsNews(t *testing.T) {
	x, p, s, hear := lossy(t)
	s(way(112, dss(5, false), ""))
	x.dataAcks("", p(way(112, dss(5, false), "")), "@5")
	for _, a := range []ackSeg{data(112, "mnop"), data(116, "qrst")} {
		p(a)
		if got := show(s(a)); got != a.data {
			t.Fatal(got)
		}
	}
	x.now = x.now.Add(time.Millisecond)
	s(ackSeg{seq: 120, ack: 1000, win: 50, flags: ackOnly}) // time passes with packets
	hear(112)
	x.dataAcks("too soon", p(way(112, mapped(9, 112), "mnop")), "")
	hear(112, 116, 120)
	x.now = x.now.Add(20 * time.Millisecond)
	x.dataAcks("it is lost", x.Tick(x.now), "mnop@5")
}

// A repetition that says more than what it repeats takes no turn, and is not passed over.
func TestARepetitionWithNewsOfMultipathTCPIsNotPassedOver(t *testing.T) {
	x, p, s, _ := lossy(t)
	p(data(112, "mnop"))
	x.dataAcks("an address that is gone", p(way(104, "\x1e\x04\x40\x01", "efgh")), "!options")
	x.dataAcks("waits for the checkpoint", s(data(104, "efgh")), "")

	x, p, s, hear := lossy(t)
	s(way(112, dss(9, false), ""))
	x.dataAcks("", p(data(112, "mnop")), "")
	x.dataAcks("it takes its turn", p(way(104, mapped(9, 104), "efgh")), "")
	x.now = x.now.Add(time.Millisecond)
	s(ackSeg{seq: 112, ack: 1000, win: 50, flags: ackOnly}) // time passes with packets
	hear(112)
	x.dataAcks("too late, but for its DATA_ACK", s(data(112, "mnop")), "mnop, efgh@9")
}

// Between two marks less may leave than the first checkpoint has. The second has the rest.
func TestADataAckThatASecondMarkHasLoweredFollows(t *testing.T) {
	x, p, s := opened(t, nil)
	s(way(100, dss(20, false), ""))
	x.dataAcks("", p(way(100, dss(30, false), "")), "@20")
	x.mark(1)
	x.mark(2)
	x.dataAcks("the guest of the first checkpoint says no more than has left", x.received(1), "")
	x.dataAcks("the guest of the second", x.received(2), "@30")
}
