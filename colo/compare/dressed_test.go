package compare_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
)

// Two guests say the same, each in an Ethernet frame of its own: with another priority, by
// another link of a bond, to another router, or padded with what its driver has in memory.
// That is no difference, and what leaves is the frame of the primary's guest. What is in
// another network is one.
func TestWhatBothGuestsSayLeavesInTheFrameOfThePrimarys(t *testing.T) {
	tagged := func(tags string) func([]byte) []byte {
		return func(f []byte) []byte { return slices.Concat(f[:12], []byte(tags), f[12:]) }
	}
	bare := func(f []byte) []byte { return f }
	padded := func(by string) func([]byte) []byte {
		return func(f []byte) []byte { // to the least that Ethernet carries (IEEE 802.3 section 4.2.3.3)
			return append(slices.Clip(f), strings.Repeat(by, 60)[:max(0, 60-len(f))]...)
		}
	}
	behind := func(s string) func([]byte) []byte {
		return func(f []byte) []byte { return append(slices.Clip(f), s...) }
	}
	from := func(at int, mac string) func([]byte) []byte {
		return func(f []byte) []byte { f = bytes.Clone(f); copy(f[at:], mac); return f }
	}
	both := func(a, b func([]byte) []byte) func([]byte) []byte {
		return func(f []byte) []byte { return b(a(f)) }
	}
	snap := func(f []byte) []byte { // RFC 1042
		return slices.Concat(f[:12], []byte{0, byte(len(f) - 12 + 6), 0xaa, 0xaa, 3, 0, 0, 0}, f[12:])
	}
	session := func(id byte) func([]byte) []byte {
		return func(f []byte) []byte {
			if f[12] == 0x86 {
				return with(with(asPPPoE(f), 17, id), 20, 0, 0x57)
			}
			return with(asPPPoE(f), 17, id)
		}
	}
	const vlan, service = "\x81\x00", "\x88\xa8"
	tcp := kindsSegment(0, wireACK|wirePSH, "", "x")
	frames := []struct {
		what   string
		f      []byte
		macs   bool // its addresses of Ethernet are compared, as it is compared with its header
		claims bool // it is no packet of IP
	}{
		{what: "data", f: tcp},
		{what: "an acknowledgment", f: kindsSegment(0, wireACK, "", "")},
		{what: "a FIN", f: kindsSegment(0, wireACK|wireFIN, "", "")},
		{what: "a datagram", f: wireDatagram(53, 5000, "x")},
		{what: "an echo reply", f: wireIPv4(1, 0, []byte("\x00\x00\xff\xfd\x00\x01\x00\x01"))},
		{what: "data in IPv6", f: sealed(extended(nil, packet.ProtoTCP, tcp[34:]))},
		{what: "a datagram in IPv6", f: v6(packet.ProtoUDP, wireDatagram(53, 5000, "x")[34:])},
		{what: "a fragment", f: wireIPv4(17, 0x2000, []byte("part of."))[:42], macs: true},
		{what: "SCTP", f: wireIPv4(132, 0, []byte("\x00\x50\x00\x01\x00\x00\x00\x07\x00\x00\x00\x00")), macs: true},
		{what: "ARP", f: arp(1, 1, 1, 2).Data, claims: true},
	}
	for _, c := range []struct {
		what            string
		primary, second func([]byte) []byte
		leaves          bool
		macs            bool // it is a difference of addresses of Ethernet
		ip              bool // there is no such frame but with IP
	}{
		{what: "the same", primary: bare, second: bare, leaves: true},
		{what: "a priority in a VLAN", primary: tagged(vlan + "\xe0\x05"), second: tagged(vlan + "\x00\x05"), leaves: true},
		{what: "a frame that may be dropped", primary: tagged(vlan + "\x00\x05"), second: tagged(vlan + "\x10\x05"), leaves: true},
		{what: "both in an outer tag", primary: tagged(service + "\xf0\x07" + vlan + "\x00\x05"), second: tagged(service + "\x00\x07" + vlan + "\x60\x05"), leaves: true},
		{what: "a priority, and none", primary: tagged(vlan + "\xa0\x00"), second: bare, leaves: true},
		{what: "none, and the priority of a provider", primary: bare, second: tagged(service + "\xb0\x00"), leaves: true},
		{what: "a provider's around a VLAN, and none", primary: tagged(service + "\xe0\x00" + vlan + "\x00\x05"), second: tagged(vlan + "\x00\x05"), leaves: true},
		{what: "two priorities", primary: tagged(service + "\xe0\x00" + vlan + "\xe0\x00"), second: tagged(vlan + "\x00\x00"), leaves: true},
		{what: "padding", primary: padded("\x00"), second: padded("unlike"), leaves: true},
		{what: "padding, and none", primary: padded("secret"), second: bare, leaves: true},
		{what: "padding in a VLAN", primary: both(padded("\x00"), tagged(vlan+"\x00\x05")), second: both(tagged(vlan+"\x00\x05"), padded("xyz")), leaves: true},
		{what: "a check sequence behind", primary: behind("\x12\x34\x56\x78"), second: bare, leaves: true},
		{what: "two check sequences", primary: both(padded("\x00"), behind("abcd")), second: both(padded("\x00"), behind("efgh")), leaves: true},
		{what: "padding in a session", primary: both(session(3), padded("\x00")), second: both(session(3), padded("xyz")), leaves: true, ip: true},
		{what: "another link of a bond", primary: from(6, "\x02\x00\x00\x00\x00\x01"), second: from(6, "\x02\x00\x00\x00\x00\x02"), leaves: true, macs: true},
		{what: "another router", primary: from(0, "\x02\x00\x00\x00\x00\x01"), second: from(0, "\x02\x00\x00\x00\x00\x02"), leaves: true, macs: true},

		{what: "another VLAN", primary: tagged(vlan + "\x00\x05"), second: tagged(vlan + "\x00\x06")},
		{what: "a VLAN, and none", primary: tagged(vlan + "\x00\x05"), second: bare},
		{what: "a VLAN of another kind", primary: tagged(vlan + "\x00\x05"), second: tagged(service + "\x00\x05")},
		{what: "a VLAN, and a priority", primary: tagged(vlan + "\xe0\x05"), second: tagged(vlan + "\xe0\x00")},
		{what: "another session", primary: session(3), second: session(4), ip: true},
		{what: "a session, and none", primary: session(3), second: bare, ip: true},
		{what: "a tag that is not known", primary: tagged("\x91\x00\x00\x05"), second: tagged("\x91\x00\x00\x05")},
		{what: "LLC", primary: snap, second: snap},
		{what: "LLC, and none", primary: snap, second: bare},
	} {
		for _, fr := range frames {
			if c.ip && fr.claims || c.macs && fr.claims {
				continue
			}
			for _, vnet := range []int{0, 12} {
				for _, first := range []string{"the primary", "the secondary"} {
					x := newKindsRun(t, vnet)
					p, s := c.primary(fr.f), c.second(fr.f)
					if first == "the primary" {
						x.primary(p)
						x.pass(3 * time.Millisecond)
						x.secondary(s)
					} else {
						x.secondary(s)
						x.pass(3 * time.Millisecond)
						x.primary(p)
					}
					x.pass(100 * time.Millisecond)
					leaves := c.leaves && !(c.macs && fr.macs)
					if got := len(x.left) == 1; got != leaves || got && !bytes.Equal(x.left[0], p) {
						t.Errorf("%s, %s, header of %d bytes, %s first: %x have left, want %t", c.what, fr.what, vnet, first, x.left, leaves)
					}
					x.end(c.what)
					if len(x.left) != 1 || !bytes.Equal(x.left[0], p) {
						t.Errorf("%s, %s: %x have left after the checkpoint", c.what, fr.what, x.left)
					}
				}
			}
		}
	}
}
