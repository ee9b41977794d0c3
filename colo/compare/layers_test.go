package compare_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// v6 returns an IPv6 packet of the guest, to a client.
func v6(next byte, payload []byte) []byte {
	b := append(make([]byte, 12), 0x86, 0xdd)
	h := make([]byte, 40)
	h[0], h[6], h[7], h[23], h[39] = 0x60, next, 64, 1, 2
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	return append(append(b, h...), payload...)
}

// A network is known by its tags, all of them, with their kinds.
func TestPacketsOfTwoNetworksAreNotCompared(t *testing.T) {
	tagged := func(tags string) []byte {
		f := wireDatagram(53, 5000, "x")
		return slices.Concat(f[:12], []byte(tags), f[12:])
	}
	for name, tags := range map[string][2]string{
		"802.1Q and 802.1ad":       {"\x81\x00\x00\x05", "\x88\xa8\x00\x05"},
		"the outer of two":         {"\x88\xa8\x00\x01\x81\x00\x00\x05", "\x81\x00\x00\x01\x81\x00\x00\x05"},
		"the outermost of three":   {"\x88\xa8\x00\x01\x81\x00\x00\x02\x81\x00\x00\x03", "\x88\xa8\x00\x07\x81\x00\x00\x02\x81\x00\x00\x03"},
		"a tag and a priority tag": {"\x81\x00\x00\x05", "\x81\x00\x00\x00"},
	} {
		x := newProxied(t)
		x.e = compare.NewEngine(everything())
		x.checkpoint(0)
		r := x.e.Primary(compare.Frame{Data: tagged(tags[0])}, x.now)
		left := len(r.Release)
		r = x.e.Secondary(compare.Frame{Data: tagged(tags[1])}, x.now)
		if left+len(r.Release) > 0 {
			t.Errorf("%s: it leaves, and the secondary's guest has sent to another network", name)
		}
	}
}

// Two concentrators may give their sessions of PPP the same number.
func TestSessionsWithTwoConcentratorsAreNotCompared(t *testing.T) {
	for what, f := range map[string][]byte{
		"a datagram": wireDatagram(53, 5000, "x"), "an acknowledgment": wireSegment(1, 100, 501, wireACK, "", ""),
	} {
		to := func(concentrator byte) compare.Frame {
			f := asPPPoE(bytes.Clone(f))
			f[0], f[5], f[6], f[11] = 2, concentrator, 2, 1
			return compare.Frame{Data: f}
		}
		x := newRig(t, everything())
		x.checkpoint(0)
		n := len(x.Secondary(to(7), x.now).Release) + len(x.Primary(to(8), x.now).Release)
		if n > 0 {
			t.Errorf("%s leaves, and the other guest has sent it to another concentrator", what)
		}
		if r := x.Primary(to(7), x.now); len(r.Release) != 1 {
			t.Errorf("%s waits that both have sent", what)
		}
	}
}

// The identification of a fragment is in the fragment header, wherever that stands: what
// follows it is compared.
func TestOptionsBehindTheFragmentHeaderAreCompared(t *testing.T) {
	fragment := func(id, option byte) compare.Frame {
		b := []byte{60, 0, 0, 1, 0, 0, 0, id, 17, 0, 1, 4, option, option, option, option}
		return compare.Frame{Data: v6(44, append(b, "\x00\x35\x13\x88\x00\x20\x00\x00data"...))}
	}
	x := newProxied(t)
	x.e.Primary(fragment(1, 0), x.now)
	if r := x.e.Secondary(fragment(2, 0), x.now); len(r.Release) != 1 {
		t.Error("two fragments that differ in nothing but their identifications do not match")
	}
	x.e.Primary(fragment(1, 0), x.now)
	if r := x.e.Secondary(fragment(1, 9), x.now); len(r.Release) != 0 {
		t.Error("a fragment leaves, and the secondary's guest has sent other options")
	}
}

// An authentication header (RFC 4302) covers the segment behind it: it leaves as the guest
// has sent it.
func TestASegmentBehindAnAuthenticationHeaderIsNotChanged(t *testing.T) {
	sealed := func(seq, ts uint32, data string) []byte {
		h := wireSegment(1, seq, 501, wireACK|wirePSH, wireTimes(ts, 1), data)[34:]
		ah := []byte{6, 2, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 'i', 'c', 'v', '.'}
		return v6(51, append(ah, h...))
	}
	x := newProxied(t)
	newer, older := sealed(100, 20, "abc"), sealed(103, 10, "def")
	for _, f := range [][]byte{newer, older} {
		x.e.Primary(compare.Frame{Data: f}, x.now)
		r := x.e.Secondary(compare.Frame{Data: f}, x.now)
		if len(r.Release) != 1 || !bytes.Equal(r.Release[0].Data, f) {
			t.Errorf("%x: %x leaves", f, r.Release)
		}
	}
}

// What a virtio-net header says of a packet has to be true of it: a device that is told
// otherwise drops it, or cuts it where it has something else.
func TestAPacketThatCannotBeCutAsItsHeaderSaysWaits(t *testing.T) {
	wrap := func(f []byte, gso byte) compare.Frame {
		h := make([]byte, packet.VNetMergeLen)
		h[1] = gso
		binary.LittleEndian.PutUint16(h[4:], 4)
		return compare.Frame{Data: append(h, f...), VNetHdr: len(h)}
	}
	segment4 := wireSegment(1, 100, 501, wireACK|wirePSH, "", "abcdefgh")
	segment6 := v6(6, segment4[34:])
	datagram := wireDatagram(53, 5000, "abcdefgh")
	for name, c := range map[string]struct {
		f    []byte
		gso  byte
		left int
	}{
		"TCP over IPv4":                 {segment4, packet.GSOTCPv4, 1},
		"with ECN":                      {segment4, packet.GSOTCPv4 | packet.GSOECN, 1},
		"TCP over IPv6":                 {segment6, packet.GSOTCPv6, 1},
		"IPv4 that is said to be IPv6":  {segment4, packet.GSOTCPv6, 0},
		"IPv6 that is said to be IPv4":  {segment6, packet.GSOTCPv4, 0},
		"TCP that is said to be UDP":    {segment4, packet.GSOUDP, 0},
		"TCP that is said to be UDP L4": {segment4, packet.GSOUDPL4, 0},
		"an unknown kind":               {segment4, 0x2, 0},
		"UDP":                           {datagram, packet.GSOUDP, 1},
		"UDP that is said to be TCP":    {datagram, packet.GSOTCPv4, 0},
		"a fragment of TCP":             {wireIPv4(6, 0x2000, segment4[34:]), packet.GSOTCPv4, 0},
		"a fragment of UDP":             {wireIPv4(17, 0x2000, datagram[34:]), packet.GSOUDPL4, 0},
		"a fragment":                    {wireIPv4(17, 0x2000, datagram[34:]), packet.GSONone, 1},
	} {
		x := newProxied(t)
		f := wrap(c.f, c.gso)
		left := len(x.e.Primary(f, x.now).Release)
		left += len(x.e.Secondary(wrap(c.f, packet.GSONone), x.now).Release)
		if left != c.left {
			t.Errorf("%s: %d have left, want %d", name, left, c.left)
		}
		x.mark(1)
		if r, err := x.e.Received(1); err != nil || len(r.Release) != 1-c.left {
			t.Errorf("%s: at the checkpoint %d leave (%v), want the rest", name, len(r.Release), err)
		}
	}
}

// A kind of cutting that is not known here may depend on anything in the header: that of a
// tunnel depends on where the inner headers are.
func TestWhatIsCutInAnUnknownWayLeavesIfAllOfItsHeaderIsEqual(t *testing.T) {
	const tunnel = 0x20 // VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4
	for name, differs := range map[string]int{
		"nothing": -1, "a flag": 0, "the kind": 1, "the size": 4, "where the outer header is": 20, "where the inner one is": 22,
	} {
		wrap := func(at int) compare.Frame {
			h := make([]byte, packet.VNetTunnelLen)
			h[1], h[4] = tunnel, 4
			if at >= 0 {
				h[at] ^= 8
			}
			return compare.Frame{Data: append(h, wireDatagram(53, 5000, "abcdefgh")...), VNetHdr: len(h)}
		}
		x := newProxied(t)
		left := len(x.e.Primary(wrap(-1), x.now).Release) + len(x.e.Secondary(wrap(differs), x.now).Release)
		if want := btoi(differs < 0); left != want {
			t.Errorf("%s differs: %d have left, want %d", name, left, want)
		}
	}
}
