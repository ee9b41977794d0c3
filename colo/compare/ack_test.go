package compare_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

func lowering() compare.Config {
	return compare.Config{Marks: true, PatientAcks: true, ReleaseRetransmits: true, LowerAcks: true, CompareVLAN: true}
}

// An ackSeg is a segment of a connection whose window's unit is 128 bytes.
type ackSeg struct {
	seq, ack uint32
	win      uint16
	flags    byte
	opts     string
	data     string
	wrap     func(f []byte) []byte // into what it comes
}

func (s ackSeg) frame() compare.Frame {
	f := wireSegment(9, s.seq, s.ack, s.flags, s.opts, s.data)
	binary.BigEndian.PutUint16(f[34+14:], s.win)
	if s.wrap != nil {
		f = s.wrap(f)
	}
	var p packet.Packet
	p.Parse(f)
	p.TCP().SetChecksum(p.TCPChecksum())
	return compare.Frame{Data: f}
}

// told shows numbers and windows of what has left, and what is wrong with it.
func told(r compare.Result) string {
	var out []string
	for _, f := range r.Release {
		var p packet.Packet
		p.Parse(f.Data[f.VNetHdr:])
		h := p.TCP()
		s := fmt.Sprintf("%s@%d ack %d to %d", h.Payload(), h.Seq(), h.Ack(), h.Ack()+uint32(binary.BigEndian.Uint16(h[14:]))<<7)
		if h.Checksum() != p.TCPChecksum() {
			s += " with a bad checksum"
		}
		if p.Kind == packet.IP4 && packet.Checksum(p.Frame[p.L3:p.L4]) != 0 && p.IPv4().Checksum() != 0 {
			s += " with a bad IP checksum"
		}
		out = append(out, s)
	}
	if r.Diverged {
		out = append(out, "!"+r.Reason.String())
	}
	return strings.Join(out, ", ")
}

func (x *rig) told(why string, r compare.Result, want string) {
	x.t.Helper()
	if got := told(r); got != want {
		x.t.Errorf("%s: %q, want %q", why, got, want)
	}
}

// sackOption returns a SACK option, with what aligns it, of the blocks between each two of n.
func sackOption(n ...uint32) string {
	b := []byte{1, 1, packet.OptSACK, byte(2 + 4*len(n))}
	for _, v := range n {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return string(b)
}

// opened returns a connection that both guests have accepted: their numbers begin at 100, those
// of the client at 1000, and there is room up to 1000+6400.
func opened(t *testing.T, wrap func([]byte) []byte) (x *rig, p, s func(ackSeg) compare.Result) {
	return openedWith(t, lowering(), wrap)
}

// openedWith does that with another configuration.
func openedWith(t *testing.T, cfg compare.Config, wrap func([]byte) []byte) (x *rig, p, s func(ackSeg) compare.Result) {
	t.Helper()
	x = newRig(t, cfg)
	x.checkpoint(0)
	p = func(a ackSeg) compare.Result { a.wrap = wrap; return x.Primary(a.frame(), x.now) }
	s = func(a ackSeg) compare.Result { a.wrap = wrap; return x.Secondary(a.frame(), x.now) }
	syn := ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
	p(syn)
	if r := s(syn); len(r.Release) != 1 {
		t.Fatal("not opened")
	}
	return x, p, s
}

func TestDataLeavesWithTheAcknowledgmentThatBothGuestsHaveGiven(t *testing.T) {
	ipv6 := func(f []byte) []byte { return asIPv6(f) }
	for name, wrap := range map[string]func([]byte) []byte{
		"IPv4": nil, "IPv6": ipv6,
		"VLAN":  func(f []byte) []byte { return tag(f, 5) },
		"PPPoE": asPPPoE,
	} {
		t.Run(name, func(t *testing.T) {
			x, p, s := opened(t, wrap)
			_ = x
			a := ackSeg{seq: 100, ack: 2280, win: 60, flags: packet.ACK, data: "abcd"}
			x.told("", p(a), "")
			a.ack, a.win = 1512, 56
			x.told("the secondary's guest has less, and room up to 8680",
				s(a), "abcd@100 ack 1512 to 8680")
			x.told("the rest follows with what it acknowledges",
				s(ackSeg{seq: 104, ack: 2024, win: 55, flags: packet.ACK}), "@104 ack 2024 to 9064")
			x.told("to the end", s(ackSeg{seq: 104, ack: 2280, win: 60, flags: packet.ACK}), "@104 ack 2280 to 9960")
			x.told("and then there is no more to say", s(ackSeg{seq: 104, ack: 2536, win: 60, flags: packet.ACK}), "")
			if st := x.Stats(); st.Held != 0 || st.HeldBytes != 0 || st.Lowered != 1 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// asIPv6 puts a segment into IPv6, asPPPoE its packet into a session of PPP.
func asIPv6(f []byte) []byte {
	h := make([]byte, 40)
	h[0], h[6], h[7], h[23], h[39] = 0x60, 6, 64, 1, 2
	binary.BigEndian.PutUint16(h[4:], uint16(len(f)-34))
	return slices.Concat(f[:12], []byte{0x86, 0xdd}, h, f[34:])
}

func asPPPoE(f []byte) []byte {
	n := len(f) - 14 + 2
	return slices.Concat(f[:12], []byte{0x88, 0x64, 0x11, 0, 0, 7, byte(n >> 8), byte(n), 0, 0x21}, f[14:])
}

func TestAcknowledgmentsWithoutDataAreLoweredAndMerged(t *testing.T) {
	x, p, s := opened(t, nil)
	bare := func(ack uint32, win uint16) ackSeg {
		return ackSeg{seq: 100, ack: ack, win: win, flags: packet.ACK}
	}
	x.told("", s(bare(1000, 50)), "")
	x.told("nothing of it is known to the secondary's guest, and a repetition would tell of a loss", p(bare(1512, 46)), "")
	x.told("", p(bare(2024, 42)), "")
	x.told("", s(bare(1512, 46)), "@100 ack 1512 to 7400")
	x.told("", p(bare(2536, 38)), "")
	x.told("the newest of those that waited", s(bare(2536, 38)), "@100 ack 2536 to 7400")
	x.told("the same again is the guest's own repetition", p(bare(2536, 38)), "@100 ack 2536 to 7400")
	if st := x.Stats(); st.Held != 0 || st.Merged != 2 || st.Lowered != 1 || st.Matched != 3 {
		t.Errorf("%+v", st)
	}
}

func TestTheWindowIsNotWiderThanEitherGuestHasOffered(t *testing.T) {
	x, p, s := opened(t, nil)
	bare := func(ack uint32, win uint16) ackSeg {
		return ackSeg{seq: 100, ack: ack, win: win, flags: packet.ACK}
	}
	x.told("", s(bare(1000, 50)), "")
	x.told("as far as the secondary's guest has room, which is no news", p(bare(1000, 80)), "")
	x.now = x.now.Add(time.Minute)
	x.told("nobody is late because of that", x.Tick(x.now), "")
	x.told("", s(bare(1000, 75)), "@100 ack 1000 to 10600")
	x.told("a little is not worth a packet", s(bare(1000, 76)), "")
	x.told("data takes it along", p(ackSeg{seq: 100, ack: 1000, win: 80, flags: packet.ACK, data: "x"}), "")
	x.told("", s(ackSeg{seq: 100, ack: 1000, win: 76, flags: packet.ACK, data: "x"}), "x@100 ack 1000 to 10728")
}

func TestSelectiveAcknowledgmentsAreCutToWhatBothGuestsHold(t *testing.T) {
	x, p, s := opened(t, nil)
	bare := func(opts string) ackSeg {
		return ackSeg{seq: 100, ack: 1000, win: 50, flags: packet.ACK, opts: opts}
	}
	blocks := func(r compare.Result) (out []uint32) {
		if len(r.Release) != 1 {
			return nil
		}
		var v packet.Packet
		v.Parse(r.Release[0].Data)
		if v.TCP().Checksum() != v.TCPChecksum() {
			t.Error("the checksum is wrong")
		}
		for kind, data, rest, ok := packet.NextOption(v.TCP().Options()); ok; kind, data, rest, ok = packet.NextOption(rest) {
			for ; kind == packet.OptSACK && len(data) > 0; data = data[4:] {
				out = append(out, binary.BigEndian.Uint32(data))
			}
		}
		return out
	}
	s(bare(""))
	if r := p(bare(sackOption(2000, 3000, 4000, 5000))); len(r.Release) > 0 {
		t.Error("what the secondary's guest does not hold")
	}
	if got := blocks(s(bare(sackOption(2000, 2500)))); !slices.Equal(got, []uint32{2000, 2500}) {
		t.Errorf("left %d", got)
	}
	if got := blocks(s(bare(sackOption(2000, 3000, 4000, 5000)))); !slices.Equal(got, []uint32{2000, 3000, 4000, 5000}) {
		t.Errorf("left %d", got)
	}
	if got := blocks(p(bare(sackOption(4000, 5000)))); !slices.Equal(got, []uint32{4000, 5000}) {
		t.Errorf("left %d", got)
	}
	if st := x.Stats(); st.Held != 0 {
		t.Errorf("%+v", st)
	}

	// The secondary's guest alone has lost something. Its own blocks tell the peer
	// which, as far as the primary's guest has them too.
	far := bare("")
	far.ack = 4000
	if r := p(far); len(r.Release) > 0 {
		t.Error("what the secondary's guest does not hold")
	}
	ahead := bare(sackOption(2000, 3000, 3500, 4500))
	ahead.seq = 140 // it has said more
	r := s(ahead)
	if got := blocks(r); !slices.Equal(got, []uint32{2000, 3000, 3500, 4000}) {
		t.Errorf("left %d", got)
	}
	x.told("with the primary's own place in its stream", r, "@100 ack 1000 to 7400")
	if r := s(ahead); len(r.Release) > 0 {
		t.Error("the same is no news")
	}
}

func TestACheckpointCoversWhatIsOwed(t *testing.T) {
	x, p, s := opened(t, nil)
	a := ackSeg{seq: 100, ack: 2280, win: 40, flags: packet.ACK, data: "abcd"}
	p(a)
	a.ack, a.win = 1512, 46
	x.told("", s(a), "abcd@100 ack 1512 to 7400")
	x.mark(1)
	x.told("not received", p(ackSeg{seq: 104, ack: 2536, win: 38, flags: packet.ACK}), "")
	x.told("what was owed at the mark, and no more", x.received(1), "@104 ack 2280 to 7400")
	r, err := x.SecondaryMark(1)
	if err != nil {
		t.Fatal(err)
	}
	x.told("", r, "")
	x.told("", s(ackSeg{seq: 104, ack: 2536, win: 38, flags: packet.ACK}), "@104 ack 2536 to 7400")
}

func TestAnUnfinishedChecksumStaysUnfinished(t *testing.T) {
	x, p, s := opened(t, nil)
	_, _ = p, s
	whole := ackSeg{seq: 100, ack: 2280, win: 60, flags: packet.ACK, data: "abcd"}.frame().Data
	binary.BigEndian.PutUint16(whole[34+16:], 0x1234)
	f := compare.Frame{Data: append([]byte{1, 0, 0, 0, 0, 0, 34, 0, 16, 0}, whole...), VNetHdr: 10}
	x.told("", x.Primary(f, x.now), "")
	r := s(ackSeg{seq: 100, ack: 1512, win: 60, flags: packet.ACK, data: "abcd"})
	if len(r.Release) != 1 || binary.BigEndian.Uint32(r.Release[0].Data[10+34+8:]) != 1512 || binary.BigEndian.Uint16(r.Release[0].Data[10+34+16:]) != 0x1234 {
		t.Errorf("left %x", r.Release)
	}
	r = s(ackSeg{seq: 104, ack: 2280, win: 60, flags: packet.ACK})
	if len(r.Release) != 1 || r.Release[0].Data[0] != 0 {
		t.Fatalf("the rest: %x", r.Release)
	}
	x.told("which is whole", r, "@104 ack 2280 to 9960")
}

func TestNothingIsLoweredWhereTheWindowIsNotKnown(t *testing.T) {
	x := newRig(t, lowering())
	x.checkpoint(0)
	a := ackSeg{seq: 100, ack: 2280, win: 60, flags: packet.ACK, data: "abcd"}
	x.told("", x.Primary(a.frame(), x.now), "")
	a.ack = 2000
	x.told("the SYN was not seen", x.Secondary(a.frame(), x.now), "")
	x.now = x.now.Add(4 * time.Second)
	x.told("", x.Tick(x.now), "!timeout")
}

func TestTheScaleOfAConnectionThatWasThereBeforeTheSessionIsKnown(t *testing.T) {
	x := newRig(t, lowering())
	x.Failover() // packets pass
	syn := ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
	x.told("", x.Primary(syn.frame(), x.now), "@99 ack 1000 to 820200")
	x.checkpoint(0)
	a := ackSeg{seq: 100, ack: 2280, win: 60, flags: packet.ACK, data: "abcd"}
	x.told("", x.Primary(a.frame(), x.now), "")
	a.ack = 1512
	x.told("", x.Secondary(a.frame(), x.now), "abcd@100 ack 1512 to 9192")
}

// What left late carried a newer timestamp, so that nobody drops it. The guest gets
// its own back.
func TestTheEchoOfARaisedTimestampIsTheGuestsOwn(t *testing.T) {
	x := newProxied(t)
	x.open()
	say := func(seq, time uint32, data string) (p, s compare.Result) {
		f := compare.Frame{Data: wireSegment(1, seq, 501, wireACK, wireTimes(time, 7), data)}
		p = x.e.Primary(f, x.now)
		return p, x.e.Secondary(f, x.now)
	}
	say(100, 10, "aaaa")
	held := compare.Frame{Data: wireSegment(1, 104, 501, wireACK, wireTimes(11, 7), "bbbb")}
	x.e.Primary(held, x.now)
	x.e.Primary(compare.Frame{Data: wireSegment(1, 100, 501, wireACK, wireTimes(250, 7), "aaaa")}, x.now)
	r := x.e.Secondary(held, x.now)
	if len(r.Release) != 1 || binary.BigEndian.Uint32(r.Release[0].Data[34+24:]) != 250 {
		t.Fatalf("%x", r.Release)
	}
	for _, c := range []struct {
		why       string
		ack, echo uint32
		want      uint32
		odd       bool
	}{
		{"of the retransmission, which was its own", 104, 250, 250, false},
		{"of more than was sent, which the guest drops and which answers nothing", 109, 250, 250, false},
		{"of what was raised", 108, 250, 11, false},
		{"once", 108, 250, 250, false},
	} {
		f := toGuest(501, c.ack, packet.ACK, "")
		binary.BigEndian.PutUint16(f[36:], 80)
		binary.BigEndian.PutUint16(f[34:], 1)
		opts := "\x01\x01\x08\x0a\x00\x00\x00\x09" + string(binary.BigEndian.AppendUint32(nil, c.echo))
		f = append(f[:54], opts...)
		f[46] = 8 << 4
		binary.BigEndian.PutUint16(f[16:], 52)
		var p packet.Packet
		p.Parse(f)
		p.TCP().SetChecksum(p.TCPChecksum())
		changed := x.e.Inbound(compare.Frame{Data: f})
		p.Parse(f)
		if got := binary.BigEndian.Uint32(f[62:]); got != c.want || changed != (c.want != c.echo) || p.TCP().Checksum() != p.TCPChecksum() {
			t.Errorf("%s: the guest gets %d, changed %t, checksum %t", c.why, got, changed, p.TCP().Checksum() == p.TCPChecksum())
		}
	}
}

// A peer that has missed an acknowledgment sends again, and both guests tell it
// again what they have.
func TestAGuestsRepetitionIsHeard(t *testing.T) {
	x, p, s := opened(t, nil)
	dsack := "\x01\x01\x05\x0a" + string(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 1000), 1100))
	bare := func(ack uint32, opts string) ackSeg {
		return ackSeg{seq: 100, ack: ack, win: 50, flags: packet.ACK, opts: opts}
	}
	s(bare(1000, ""))
	p(bare(2000, ""))
	x.told("", s(bare(2000, "")), "@100 ack 2000 to 8400")
	for range 3 {
		s(bare(2000, dsack))
		x.told("what both have", p(bare(2000, dsack)), "@100 ack 2000 to 8400")
	}
	x.told("what the primary's guest alone has", p(bare(3000, "")), "")
	x.told("", s(bare(2500, "")), "@100 ack 2500 to 8900")
	for range 3 {
		x.told("the primary's guest again", p(bare(3000, "")), "")
		x.told("and the other, which lacks something", s(bare(2500, "")), "@100 ack 2500 to 8900")
		x.told("that alone again is the business of the two", s(bare(2500, "")), "")
	}
}

// The window of a SYN is not scaled, and must not be taken for one that is.
func TestTheWindowOfASYNIsNotScaled(t *testing.T) {
	x, p, s := opened(t, nil)
	a := ackSeg{seq: 100, ack: 1001, win: 50, flags: packet.ACK, data: "x"}
	p(a)
	a.ack, a.win = 1000, 50
	x.told("one byte less, and no unit of the window", s(a), "x@100 ack 1000 to 7400")
}

func TestLoweredAcknowledgmentsAllocateNothing(t *testing.T) {
	x, _, _ := opened(t, nil)
	a := ackSeg{seq: 100, ack: 1000, win: 500, flags: packet.ACK, opts: wireTimes(1, 1)}
	pf, sf := a.frame(), a.frame()
	ack := uint32(1000)
	lowered := x.Stats().Lowered
	n := testing.AllocsPerRun(2000, func() {
		ack += 100
		packet.TCP(pf.Data[34:]).SetAck(ack)
		packet.TCP(sf.Data[34:]).SetAck(ack - 50)
		x.Primary(pf, x.now)
		if r := x.Secondary(sf, x.now); len(r.Release) != 1 {
			t.Fatal("nothing has left")
		}
		x.Inbound(sf)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
	if got := x.Stats().Lowered - lowered; got < 2000 {
		t.Errorf("%d were lowered", got)
	}
}

// A guest echoes congestion in each packet until the peer has heard of it, or counts it.
func TestWhatIsCutOfASegmentSaysTheSameOfCongestion(t *testing.T) {
	const bits = 0xc0 // CWR and ECE
	_, p, s := opened(t, nil)
	check := func(why string, r compare.Result) {
		if len(r.Release) != 1 || r.Release[0].Data[34+13]&bits != bits {
			t.Errorf("%s: %x", why, r.Release)
		}
	}
	p(ackSeg{seq: 100, ack: 2280, win: 60, flags: push | bits, data: "abcd"})
	check("with a lower number", s(ackSeg{seq: 100, ack: 1512, win: 56, flags: push | bits, data: "abcd"}))
	check("what it acknowledges besides", s(ackSeg{seq: 104, ack: 2280, win: 60, flags: ackOnly | bits}))
	p(ackSeg{seq: 104, ack: 2280, win: 60, flags: push | bits, data: "efgh"})
	s(ackSeg{seq: 104, ack: 2280, win: 60, flags: push | bits, data: "ef"})
	check("a part", s(ackSeg{seq: 104, ack: 2280, win: 60, flags: push | bits, data: "ef"}))
}

// What the two guests acknowledge are numbers of one peer. Where they are more than a quarter of the
// number space apart, nothing of one is covered by the other, whichever counts as the greater.
func TestAnAcknowledgmentOfAnotherConnectionCoversNothing(t *testing.T) {
	for _, apart := range []uint32{1<<30 + 1, 1 << 31, 1<<31 + 5, 3<<30 - 1} {
		x, p, _ := opened(t, nil)
		x.told("nothing but an acknowledgment", p(ackSeg{seq: 100, ack: 1000 + apart, win: 50, flags: packet.ACK}), "")
		x, p, s := opened(t, nil)
		s(ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: "abc"})
		x.told("data that the other has said", p(ackSeg{seq: 100, ack: 1000 + apart, win: 50, flags: push, data: "abc"}), "")
		x, p, s = opened(t, nil)
		p(ackSeg{seq: 100, ack: 1000 + apart, win: 50, flags: push, data: "abc"})
		x.told("data that the other says now", s(ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: "abc"}), "")
	}
}
