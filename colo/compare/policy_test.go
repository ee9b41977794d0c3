package compare_test

import (
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// everything returns the configuration that package proxy uses.
func everything() compare.Config {
	return compare.Config{Marks: true, PatientAcks: true, ReleaseRetransmits: true, LowerAcks: true,
		HoldUncompared: true, CompareVLAN: true, CompareARP: true}
}

// arp returns a request or a reply of who has an address.
func arp(op, mac, ip, target byte) compare.Frame {
	return compare.Frame{Data: append(append(make([]byte, 12), 8, 6), 0, 1, 8, 0, 6, 4, 0, op,
		2, 0, 0, 0, 0, mac, 10, 0, 0, ip, 0, 0, 0, 0, 0, 0, 10, 0, 0, target)}
}

// nd returns a message of neighbour discovery about an address.
func nd(kind, mac, ip byte) compare.Frame {
	b := make([]byte, 24, 32)
	b[0], b[8], b[23] = kind, 0xfd, ip
	option := byte(1)
	if kind == 136 {
		option = 2
	}
	f := asIPv6(append(make([]byte, 34), append(b, option, 1, 2, 0, 0, 0, 0, mac)...))
	f[14+6], f[14+7] = packet.ProtoICMPv6, 255
	f[14+8], f[14+23] = 0xfd, ip
	return compare.Frame{Data: f}
}

// ARP and neighbour discovery follow timers of each guest. They say whose address
// is whose, and that both guests know.
func TestAddressesAreComparedAsClaims(t *testing.T) {
	for name, c := range map[string]struct{ first, same, other, wrong compare.Frame }{
		"ARP":                 {arp(1, 1, 1, 2), arp(2, 1, 1, 2), arp(1, 1, 1, 3), arp(1, 1, 9, 2)},
		"neighbour discovery": {nd(136, 1, 1), nd(135, 1, 1), nd(136, 1, 1), nd(136, 1, 9)},
	} {
		t.Run(name, func(t *testing.T) {
			x := newRig(t, everything())
			x.checkpoint(0)
			left := func(why string, r compare.Result, want int) {
				t.Helper()
				if len(r.Release) != want || r.Diverged {
					t.Errorf("%s: %d have left, want %d; %+v", why, len(r.Release), want, r.Reason)
				}
			}
			left("the other guest has not said so", x.Primary(c.first, x.now), 0)
			left("it does, with other words", x.Secondary(c.same, x.now), 1)
			left("once is enough", x.Primary(c.other, x.now), 1)
			left("another claim", x.Primary(c.wrong, x.now), 0)
			left("", x.Secondary(c.other, x.now), 0)
			x.mark(1)
			left("not received", x.Primary(c.wrong, x.now), 0)
			left("what both have claimed is known to whoever goes on", x.Primary(c.first, x.now), 1)
			left("received, and what came since is covered too", x.received(1), 2)
			left("", x.Primary(c.wrong, x.now), 1)
		})
	}
}

// A guest asks whether anybody has an address before it takes it: with ARP it names no
// sender then, and with neighbour discovery neither (RFC 5227, RFC 4862 section 5.4).
func TestAskingWhetherAnAddressIsFreeClaimsThatAddress(t *testing.T) {
	dad := func(mac, ip byte) compare.Frame {
		f := nd(135, mac, ip)
		clear(f.Data[22:38])
		f.Data = f.Data[:len(f.Data)-8] // it names no link-layer address but that of the frame
		f.Data[19] -= 8
		f.Data[11] = mac
		return f
	}
	for name, ask := range map[string]func(mac, ip byte) compare.Frame{
		"ARP": func(mac, ip byte) compare.Frame {
			f := arp(1, mac, 0, ip)
			clear(f.Data[28:32])
			f.Data[38] = 10
			return f
		},
		"neighbour discovery": dad,
	} {
		x := newRig(t, everything())
		x.checkpoint(0)
		x.Secondary(ask(1, 1), x.now)
		if r := x.Primary(ask(1, 1), x.now); len(r.Release) != 1 {
			t.Errorf("%s: both have asked, and it waits", name)
		}
		if r := x.Primary(ask(1, 2), x.now); len(r.Release) != 0 {
			t.Errorf("%s: the secondary's guest has asked for another address", name)
		}
		if r := x.Primary(ask(2, 1), x.now); len(r.Release) != 0 {
			t.Errorf("%s: the secondary's guest has another address of its own", name)
		}
	}
}

// A guest that has only asked may hear that somebody has the address, and then never takes it.
func TestAnAddressThatTheSecondarysGuestHasOnlyAskedForIsNotClaimed(t *testing.T) {
	arpAsks := arp(1, 1, 0, 1)
	clear(arpAsks.Data[28:32])
	ndAsks := nd(135, 1, 1)
	clear(ndAsks.Data[22:38])
	ndAsks.Data = ndAsks.Data[:len(ndAsks.Data)-8]
	ndAsks.Data[19] -= 8
	ndAsks.Data[6+5] = 1
	ndAsks.Data[6] = 2
	for name, c := range map[string]struct{ asks, claims, answers compare.Frame }{
		"ARP":                 {arpAsks, arp(1, 1, 1, 1), arp(2, 1, 1, 5)},
		"neighbour discovery": {ndAsks, nd(136, 1, 1), nd(135, 1, 1)},
	} {
		x := newRig(t, everything())
		x.checkpoint(0)
		left := func(why string, r compare.Result, want int) {
			t.Helper()
			if len(r.Release) != want {
				t.Errorf("%s: %s: %d have left, want %d", name, why, len(r.Release), want)
			}
		}
		x.Secondary(c.asks, x.now)
		left("the primary's guest asks too", x.Primary(c.asks, x.now), 1)
		left("it claims the address, and the other one does not yet", x.Primary(c.claims, x.now), 0)
		left("nor does it when it asks again", x.Secondary(c.asks, x.now), 0)
		left("it does, with other words", x.Secondary(c.answers, x.now), 1)
		left("which is no question", x.Primary(c.answers, x.now), 1)
		x.mark(1)
		left("both have claimed it before the mark", x.Primary(c.claims, x.now), 1)
		left("and asked", x.Primary(c.asks, x.now), 1)
		x.received(1)
		left("the checkpoint has all of it", x.Primary(c.claims, x.now), 1)
	}
}

func TestAClaimOfTheOldGuestOnlyIsVoidAfterAMark(t *testing.T) {
	x := newRig(t, everything())
	x.checkpoint(0)
	x.Secondary(arp(1, 1, 1, 2), x.now)
	x.mark(1)
	if r := x.Primary(arp(1, 1, 1, 2), x.now); len(r.Release) != 0 {
		t.Error("it has left, and the guest of the checkpoint does not know")
	}
}

// What cannot be compared is in nobody's way, and waits.
func TestWhatCannotBeComparedWaitsForItsCheckpoint(t *testing.T) {
	whole := udp("x").Data
	typed := func(hi, lo byte) []byte { return slices.Concat(whole[:12], []byte{hi, lo}, whole[14:]) }
	total := func(n byte) []byte { b := slices.Clone(whole); b[16], b[17] = 0, n; return b }
	for name, f := range map[string][]byte{
		"LLDP": typed(0x88, 0xcc), "a length": typed(0, 40), "MPLS": typed(0x88, 0x47),
		"total length 0": total(0), "less than its header": total(19), "beyond the frame": total(255),
		"no IP at all": whole[:20], "no type": whole[:13], "UDP shorter than its header": total(24),
		"a broken ARP":      append(append(make([]byte, 12), 8, 6), 0, 9),
		"RARP":              typed(0x80, 0x35),
		"PPP's own":         slices.Concat(whole[:12], []byte("\x88\x64\x11\x00\x00\x01\x00\x04\xc0\x21\x01\x02")),
		"tags to the end":   slices.Concat(whole[:12], []byte("\x81\x00\x00\x01\x81\x00\x00\x01")),
		"longer than any":   append(slices.Clone(whole), make([]byte, 70000)...),
		"with a tag inside": slices.Concat(whole[:12], []byte("\x81\x00\x00\x05\x88\xcc"), whole[14:]),
	} {
		x := newRig(t, everything())
		x.checkpoint(0)
		if r := x.Primary(compare.Frame{Data: f}, x.now); len(r.Release) > 0 || r.Full {
			t.Errorf("%s: it has left", name)
		}
		if r := x.Secondary(compare.Frame{Data: f}, x.now); len(r.Release) > 0 {
			t.Errorf("%s: it has left", name)
		}
		x.now = x.now.Add(4 * time.Second)
		if r := x.Tick(x.now); r.Reason != compare.ReasonTimeout {
			t.Errorf("%s: nobody asks for its checkpoint: %v", name, r.Reason)
		}
		x.mark(1)
		if r := x.received(1); len(r.Release) != 1 || !slices.Equal(r.Release[0].Data, f) {
			t.Errorf("%s: %d have left with the checkpoint", name, len(r.Release))
		}
	}
}

func TestTaggedPacketsAreComparedInside(t *testing.T) {
	for name, before := range map[string]string{
		"802.1Q": "\x81\x00\x00\x05\x08\x00", "802.1ad": "\x88\xa8\x00\x07\x81\x00\x00\x05\x08\x00",
		"PPPoE": "\x88\x64\x11\x00\x00\x01\x00\x1f\x00\x21",
	} {
		wrap := func(data string) compare.Frame {
			f := udp(data).Data
			return compare.Frame{Data: slices.Concat(f[:12], []byte(before), f[14:])}
		}
		x := newRig(t, everything())
		x.checkpoint(0)
		x.Primary(wrap("a"), x.now)
		if r := x.Secondary(udp("a"), x.now); len(r.Release) != 0 {
			t.Errorf("%s: it is not the same outside", name)
		}
		if r := x.Secondary(wrap("a"), x.now); len(r.Release) != 1 {
			t.Errorf("%s: %d have left", name, len(r.Release))
		}
		x.Primary(wrap("b"), x.now)
		x.Secondary(wrap("c"), x.now)
		x.now = x.now.Add(20 * time.Millisecond)
		if r := x.Tick(x.now); r.Reason != compare.ReasonPacket {
			t.Errorf("%s: it differs, and that is %v", name, r.Reason)
		}
	}
}

// Two tags are told apart. What is behind a third may be of two networks, which are not one.
func TestMoreTagsThanAreToldApartAreNotComparedInside(t *testing.T) {
	tagged := func(third byte, data string) compare.Frame {
		f := udp(data).Data
		tags := []byte{0x88, 0xa8, 0, 7, 0x81, 0, 0, 5, 0x81, 0, 0, third, 8, 0}
		return compare.Frame{Data: slices.Concat(f[:12], tags, f[14:])}
	}
	for _, third := range []byte{1, 2} {
		x := newRig(t, everything())
		x.checkpoint(0)
		left := len(x.Primary(tagged(1, "a"), x.now).Release)
		left += len(x.Secondary(tagged(third, "a"), x.now).Release)
		if left != 0 || x.Stats().Held == 0 {
			t.Errorf("a third tag of 1, and of %d: %d have left uncompared", third, left)
		}
		x.checkpoint(1)
		if s := x.Stats(); s.Held != 0 {
			t.Errorf("with the checkpoint %d are left over", s.Held)
		}
	}
}

func TestDatagramsMayCross(t *testing.T) {
	words := func(ps, ss []string) (x *rig, diverged bool, left int) {
		x = newRig(t, everything())
		x.checkpoint(0)
		for i := range max(len(ps), len(ss)) {
			if i < len(ps) {
				r := x.Primary(udp(ps[i]), x.now)
				diverged, left = diverged || r.Diverged, left+len(r.Release)
			}
			if i < len(ss) {
				r := x.Secondary(udp(ss[i]), x.now)
				diverged, left = diverged || r.Diverged, left+len(r.Release)
			}
		}
		return x, diverged, left
	}
	for _, c := range [][2][]string{
		{{"one", "two", "three"}, {"three", "two", "one"}},
		{{"query 1", "query 2"}, {"query 2", "query 1"}},
		{{"a", "b", "c", "d", "e", "f", "g", "h"}, {"h", "g", "f", "e", "d", "c", "b", "a"}},
	} {
		if x, diverged, left := words(c[0], c[1]); diverged || left != len(c[0]) || x.Stats().Held != 0 {
			t.Errorf("%q: diverged %t, %d have left", c, diverged, left)
		}
	}
	x, diverged, _ := words([]string{"a"}, []string{"b"})
	if x.now = x.now.Add(20 * time.Millisecond); diverged || x.Tick(x.now).Reason != compare.ReasonPacket {
		t.Error("they do not cross for ever")
	}
	if _, diverged, _ := words([]string{"answer"}, []string{"answers"}); !diverged {
		t.Error("two answers to one question do not cross")
	}
	var ps, ss []string
	for i := range 9 {
		ps, ss = append(ps, string(rune('a'+i))), append(ss, string(rune('A'+i)))
	}
	if _, diverged, _ := words(ps, ss); !diverged {
		t.Error("the window is small")
	}
}

func TestConnectionsFromDifferentPortsOfTheGuestsDivergeAtOnce(t *testing.T) {
	open := func(from, to uint16) compare.Frame {
		f := seg{port: to, seq: 100, flags: packet.SYN}.frame()
		f.Data[34], f.Data[35] = byte(from>>8), byte(from)
		return f
	}
	x := newRig(t, everything())
	x.checkpoint(0)
	x.want("", x.Primary(open(40000, 443), x.now), "")
	x.want("to another port", x.Secondary(open(40001, 80), x.now), "")
	x.want("to the same", x.Secondary(open(40002, 443), x.now), "!ports")

	y := newRig(t, everything())
	y.checkpoint(0)
	y.want("", y.Primary(open(40000, 443), y.now), "")
	y.want("both have come", y.Secondary(open(40000, 443), y.now), "SYN")
	y.want("the secondary's guest is ahead by a connection", y.Secondary(open(40001, 443), y.now), "")
	y.want("", y.Primary(open(40001, 443), y.now), "SYN")
}
