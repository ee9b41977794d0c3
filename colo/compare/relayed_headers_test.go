package compare_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// accented is a frame as the secondary's guest sends it: what is in front of the segment, and
// the marks of congestion in it, are not as the primary's guest has them.
func accented(f compare.Frame) compare.Frame {
	b := bytes.Clone(f.Data)
	var p packet.Packet
	p.Parse(b)
	if !p.Link.PPPoE { // whose stations name the session
		for i := range 12 {
			b[i] ^= byte(0xa0 + i)
		}
	}
	if h := b[p.L3:p.L4]; p.Kind == packet.IP4 {
		h[1], h[8] = 0xba, 7
		binary.BigEndian.PutUint16(h[4:], 4711)
		h[6] |= 0x40
		if len(h) > packet.IPv4Len {
			h[21] = 9
		}
		binary.BigEndian.PutUint16(h[10:], 0)
		binary.BigEndian.PutUint16(h[10:], packet.Checksum(h))
	} else {
		h[0], h[1], h[3], h[7] = 0x6b, 0xa5, 5, 7
	}
	if p.Tags > 0 {
		b[14] |= 0xe0 // a priority
	}
	h := p.TCP()
	h[12] |= 5
	h[13] |= 0xc0
	h.SetChecksum(p.TCPChecksum())
	return compare.Frame{Data: b}
}

// optioned gives an IPv4 packet n words of options.
func optioned(n int) func(f []byte) []byte {
	return func(f []byte) []byte {
		f = slices.Concat(f[:34], bytes.Repeat([]byte{0x94, 4, 0, 0}, n), f[34:])
		f[14] = byte(0x45 + n)
		binary.BigEndian.PutUint16(f[16:], uint16(len(f)-14))
		return f
	}
}

// wears reports whether got is want, but for checksums of IPv4, which told looks at.
func wears(got []compare.Frame, want compare.Frame) bool {
	if len(got) != 1 || len(got[0].Data) != len(want.Data) {
		return false
	}
	var p packet.Packet
	a, b := bytes.Clone(got[0].Data), bytes.Clone(want.Data)
	if p.Parse(a); p.Kind == packet.IP4 {
		clear(a[p.L3+10 : p.L3+12])
		clear(b[p.L3+10 : p.L3+12])
	}
	return bytes.Equal(a, b)
}

var wraps = map[string]func(f []byte) []byte{
	"IPv4": nil, "IPv6": asIPv6, "VLAN": func(f []byte) []byte { return tag(f, 5) }, "PPPoE": asPPPoE, "options of IPv4": optioned(2),
}

// Nobody has compared what a guest sends in front of its segments. The peer sees the headers
// of one guest, whichever repeats what it lacks.
func TestWhatTheSecondarysGuestRepeatsLeavesWithThePrimarysHeaders(t *testing.T) {
	for name, wrap := range wraps {
		t.Run(name, func(t *testing.T) {
			x, _, s, hear := lossyIn(t, wrap)
			said := data(112, "abcd")
			said.wrap = wrap
			x.Primary(said.frame(), x.now)
			x.told("both have said it", s(data(112, "abcd")), "abcd@112 ack 1000 to 7400")
			x.Primary(ackSeg{seq: 116, ack: 1000, win: 50, flags: push, data: "efgh", wrap: wrap}.frame(), x.now)
			s(data(116, "efgh"))
			hear(112, 116, 120)
			x.now = x.now.Add(time.Second)
			r := x.Secondary(accented(said.frame()), x.now)
			if x.told("", r, "abcd@112 ack 1000 to 7400"); !wears(r.Release, said.frame()) {
				t.Errorf("it leaves as  %x\nand not as %x", r.Release, said.frame())
			}
		})
	}
}

// Headers of another length do not fit, and what a guest says with an option of its own is
// not compared.
func TestWhatCannotBeMadeAPacketOfThePrimarysIsNotRelayed(t *testing.T) {
	for name, odd := range map[string]ackSeg{
		"with options of IPv4":      {wrap: optioned(1)},
		"with another option":       {opts: "\x1e\x04\x00\x00"},
		"with two timestamps":       {opts: wireTimes(1, 2) + wireTimes(1, 2)},
		"with something at the end": {opts: "\x00\x01\x02\x03"},
	} {
		x, _, s, _ := lost(t)
		x.now = x.now.Add(time.Second)
		odd.seq, odd.ack, odd.win, odd.flags, odd.data = 112, 1000, 50, push, "abcd"
		x.told(name, x.Secondary(odd.frame(), x.now), "")
		x.told("the same without", s(data(112, "abcd")), "abcd@112 ack 1000 to 7400")
	}
}

func TestAnAcknowledgmentOfTheSecondarysGuestLeavesWithThePrimarysHeaders(t *testing.T) {
	blocks := "\x01\x01\x05\x0a\x00\x00\x07\x08\x00\x00\x07\xd0"
	for name, wrap := range wraps {
		t.Run(name, func(t *testing.T) {
			x, p, _ := opened(t, wrap)
			x.told("the secondary's guest has not got that", p(ackSeg{seq: 100, ack: 2280, win: 50, flags: ackOnly}), "")
			said := ackSeg{seq: 100, ack: 1512, win: 56, flags: ackOnly, opts: blocks, wrap: wrap}
			r := x.Secondary(accented(said.frame()), x.now)
			if x.told("it lacks something", r, "@100 ack 1512 to 8680"); !wears(r.Release, said.frame()) {
				t.Errorf("it leaves as  %x\nand not as %x", r.Release, said.frame())
			}
		})
	}
	x, p, _ := opened(t, nil)
	p(ackSeg{seq: 100, ack: 2280, win: 50, flags: ackOnly})
	other := ackSeg{seq: 100, ack: 1512, win: 56, flags: ackOnly, opts: blocks + "\x1e\x04\x00\x00"}
	r := x.Secondary(other.frame(), x.now)
	if x.told("with another option", r, "@100 ack 1512 to 8680"); len(r.Release) == 1 && strings.Contains(string(r.Release[0].Data), "\x1e\x04") {
		t.Error("it leaves as the secondary's guest has sent it")
	}
}

// turnedRound makes f, a segment, one of the other direction.
func turnedRound(f []byte) []byte {
	var p packet.Packet
	p.Parse(f)
	at, n := p.L3+12, 4
	if p.Kind == packet.IP6 {
		at, n = p.L3+8, 16
	}
	f = slices.Concat(f[:at], f[at+n:at+2*n], f[at:at+n], f[at+2*n:p.L4], f[p.L4+2:p.L4+4], f[p.L4:p.L4+2], f[p.L4+4:])
	return sealed(f)
}
