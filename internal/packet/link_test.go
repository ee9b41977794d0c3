package packet_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/packet"
)

func TestWhatStandsInFrontOfTheNetworkHeaderIsLookedInto(t *testing.T) {
	ip := []byte{0x45, 0, 0, 24, 0, 0, 0, 0, 64, 200, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 3, 4}
	for _, c := range []struct {
		name, before string
		kind         packet.Kind
		link         packet.Link
	}{
		{"nothing", "\x08\x00", packet.IP4, packet.Link{}},
		{"802.1Q", "\x81\x00\xe0\x05\x08\x00", packet.IP4, packet.Link{Tags: 1, VLAN: [2]uint16{5}}},
		{"a priority", "\x81\x00\xe0\x00\x08\x00", packet.IP4, packet.Link{}},
		{"a priority in a VLAN", "\x88\xa8\x00\x07\x81\x00\xe0\x00\x08\x00", packet.IP4, packet.Link{Tags: 1, VLAN: [2]uint16{7}, Service: 1}},
		{"a VLAN in a priority", "\x81\x00\xe0\x00\x81\x00\x00\x05\x08\x00", packet.IP4, packet.Link{Tags: 1, VLAN: [2]uint16{5}}},
		{"802.1ad", "\x88\xa8\x00\x07\x81\x00\x00\x05\x08\x00", packet.IP4, packet.Link{Tags: 2, VLAN: [2]uint16{5, 7}, Service: 2}},
		{"PPPoE", "\x88\x64\x11\x00\x12\x34\x00\x1a\x00\x21", packet.IP4, packet.Link{PPPoE: true, Session: 0x1234}},
		{"PPPoE in a VLAN", "\x81\x00\x00\x05\x88\x64\x11\x00\x00\x01\x00\x1a\x00\x21", packet.IP4,
			packet.Link{Tags: 1, VLAN: [2]uint16{5}, PPPoE: true, Session: 1}},
		{"PPPoE that says too little", "\x88\x64\x11\x00\x00\x01\x00\x19\x00\x21", packet.Malformed, packet.Link{PPPoE: true, Session: 1}},
		{"PPPoE that says too much", "\x88\x64\x11\x00\x00\x01\x00\x1b\x00\x21", packet.Malformed, packet.Link{}},
		{"PPPoE of another version", "\x88\x64\x21\x00\x00\x01\x00\x1a\x00\x21", packet.Malformed, packet.Link{}},
		{"PPP's own", "\x88\x64\x11\x00\x00\x01\x00\x1a\xc0\x21", packet.Other, packet.Link{}},
		{"PPPoE's discovery", "\x88\x63\x11\x09\x00\x00\x00\x1a\x00\x21", packet.Other, packet.Link{}},
	} {
		var p packet.Packet
		f := slices.Concat(make([]byte, 12), []byte(c.before), ip)
		if got := p.Parse(f); got != c.kind || p.Link != c.link {
			t.Errorf("%s: kind %d, %+v", c.name, got, p.Link)
		}
		if c.kind == packet.IP4 && (p.L3 != 12+len(c.before) || p.End != len(f) || p.Link.Bare() != (c.link == packet.Link{})) {
			t.Errorf("%s: at %d to %d", c.name, p.L3, p.End)
		}
		for n := range f { // wherever it is cut
			p.Parse(f[:n])
		}
	}
}

func TestEachVLANAndSessionHasItsOwnFlows(t *testing.T) {
	seen := map[packet.Key]string{}
	for _, before := range []string{
		"\x08\x00", "\x81\x00\x00\x05\x08\x00", "\x88\xa8\x00\x07\x81\x00\x00\x05\x08\x00",
		"\x88\xa8\x00\x08\x81\x00\x00\x05\x08\x00", "\x88\x64\x11\x00\x00\x01\x00\x1a\x00\x21", "\x88\x64\x11\x00\x00\x02\x00\x1a\x00\x21",
	} {
		var p packet.Packet
		f := append([]byte(strings.Repeat("\x02", 12)+before), 0x45, 0, 0, 24, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 3, 4)
		if p.Parse(f) != packet.IP4 {
			t.Fatalf("%x is not IP", f)
		}
		var k packet.Key
		p.Key(&k)
		if other, ok := seen[k]; ok {
			t.Errorf("%x and %x are one flow", before, other)
		}
		seen[k] = before
		for _, tag := range []string{"\x81\x00\xe0\x00", "\x88\xa8\x00\x00"} { // a priority and no VLAN
			var same packet.Key
			p.Parse(slices.Concat(f[:12], []byte(tag), f[12:]))
			p.Key(&same)
			if same != k {
				t.Errorf("%x behind %x is another flow", before, tag)
			}
		}
		if k.Reverse().Reverse() != k {
			t.Errorf("%+v is not itself", k)
		}
	}
}

// Each concentrator numbers its sessions by itself. The answer to a packet of a session is in the
// same one.
func TestSessionsOfTwoStationsAreTwo(t *testing.T) {
	key := func(dst, src string) (k packet.Key) {
		f := []byte(dst + src + "\x88\x64\x11\x00\x00\x01\x00\x16\x00\x21")
		f = append(f, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2)
		var p packet.Packet
		if p.Parse(f); !p.Link.PPPoE {
			t.Fatalf("%x is not in a session", f)
		}
		p.Key(&k)
		return k
	}
	const guest = "\x52\x54\x00\x00\x00\x01"
	seen := map[packet.Key]string{}
	for _, vendor := range []string{"\x00\x1b\x21", "\x52\x54\x00"} {
		for n := range 1 << 12 {
			other := vendor + string([]byte{0, byte(n >> 8), byte(n)})
			k := key(other, guest)
			if with, ok := seen[k]; ok && other != guest {
				t.Fatalf("sessions with %x and %x are one", other, with)
			}
			seen[k] = other
			if key(guest, other) != k {
				t.Fatalf("the answer of %x is in another session", other)
			}
		}
	}
}
