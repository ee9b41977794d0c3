package compare_test

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// A signature that a guest makes over a segment (RFC 2385), of 16 bytes, and what fills
// the options up.
var wireSigned = "\x13\x12" + strings.Repeat("s", 16) + "\x01\x01"

// wired returns a frame, behind a virtio-net header of vnet bytes.
func wired(vnet int, f []byte) compare.Frame {
	return compare.Frame{Data: append(make([]byte, vnet), f...), VNetHdr: vnet}
}

// Nobody but the guest can change a segment that it has signed: one that acknowledges
// more than the secondary's guest has waits for that guest, or for the checkpoint.
func TestASignedSegmentLeavesAsItIsOrNotAtAll(t *testing.T) {
	for name, data := range map[string]string{"data": "data", "acknowledgment": ""} {
		t.Run(name, func(t *testing.T) {
			x := newRig(t, everything())
			x.checkpoint(0)
			say := func(who func(compare.Frame) compare.Result, ack uint32, opts, data string) compare.Result {
				return who(wired(0, wireSegment(9, 1001, ack, wireACK, opts, data)))
			}
			p := func(f compare.Frame) compare.Result { return x.Primary(f, x.now) }
			s := func(f compare.Frame) compare.Result { return x.Secondary(f, x.now) }
			p(wired(0, wireSegment(9, 1000, 500, wireSYN|wireACK, wireMSS+wireWindow7+wireSigned[:20], "")))
			s(wired(0, wireSegment(9, 1000, 500, wireSYN|wireACK, wireMSS+wireWindow7+wireSigned[:20], "")))
			x.want("the secondary's guest has not acknowledged as much", say(p, 600, wireSigned, data), "")
			x.want("it has said the same, and acknowledged less", say(s, 550, wireSigned, data), "")
			if r := say(s, 600, wireSigned, ""); len(r.Release) != 1 || string(r.Release[0].Data) != string(wireSegment(9, 1001, 600, wireACK, wireSigned, data)) {
				t.Errorf("%q has left, want the segment as the guest has signed it", show(r))
			}
		})
	}
}

// A virtio-net header that has a device write a checksum into what was compared: the
// segment waits for its checkpoint.
func TestNoChecksumIsWrittenOverWhatWasCompared(t *testing.T) {
	for _, vnet := range []int{10, 12, 20, 24} {
		for _, c := range []struct {
			what          string
			flags         byte
			start, offset uint16
			leaves        string
		}{
			{"no checksum", 0, 77, 3, "data"},
			{"that of the segment", packet.VNetNeedsCsum, 34, 16, "data"},
			{"it is not said where", packet.VNetNeedsCsum, 0, 0, "data"},
			{"in the data", packet.VNetNeedsCsum, 34, 20, ""},
			{"in the addresses", packet.VNetNeedsCsum, 14, 16, ""},
			{"beyond the frame", packet.VNetNeedsCsum, 60000, 16, ""},
			{"at its last byte", packet.VNetNeedsCsum, 34, 23, ""},
		} {
			x := newRig(t, everything())
			x.checkpoint(0)
			f := wired(vnet, wireSegment(9, 1001, 500, wireACK, "", "data"))
			g := wired(vnet, f.Data[vnet:])
			g.Data = slices.Clone(g.Data)
			x.Secondary(wired(vnet, wireSegment(9, 1001, 500, wireACK, "", "")), x.now)
			f.Data[0] = c.flags
			binary.LittleEndian.PutUint16(f.Data[6:], c.start)
			binary.LittleEndian.PutUint16(f.Data[8:], c.offset)
			copy(g.Data, f.Data[:10])
			x.want(c.what, x.Primary(f, x.now), "")
			x.want(c.what, x.Secondary(g, x.now), c.leaves)
			if c.leaves == "" {
				x.want(c.what+", at the checkpoint", x.checkpoint(1), "data")
			}
		}
	}
}

// The same for what is no segment: a checksum that the primary's header alone wants finished
// is the packet's own, or the packet waits. Where both want the same, all of what the
// device reads and writes has been compared.
func TestNoChecksumIsWrittenOverADatagramThatWasCompared(t *testing.T) {
	echo := wireIPv4(1, 0, []byte{0, 0, 0, 0, 0, 1, 0, 1, 'e', 'c', 'h', 'o'})
	udp4 := wireDatagram(53, 5000, "data")
	udp6 := extended(nil, packet.ProtoUDP, udp4[34:])
	other := wireIPv4(47, 0, []byte("not known"))
	part := wireIPv4(17, 0x2000, udp4[34:])
	for _, c := range []struct {
		what               string
		frame              []byte
		start, offset      uint16
		primary, secondary bool // whose header wants it
		leaves             int
	}{
		{"of the datagram", udp4, 34, 6, true, false, 1},
		{"of the datagram", udp4, 34, 6, false, true, 1},
		{"of the datagram", udp4, 34, 6, true, true, 1},
		{"of the datagram in IPv6", udp6, 54, 6, true, false, 1},
		{"it is not said where", udp4, 0, 0, true, false, 1},
		{"of the echo", echo, 34, 2, true, false, 1},
		{"in the datagram's data", udp4, 34, 8, true, false, 0},
		{"in the data of what does not leave", udp4, 34, 8, false, true, 1},
		{"in the datagram's data, of part of it", udp4, 42, 6, true, true, 1},
		{"in the addresses", udp4, 14, 16, true, false, 0},
		{"in the addresses", udp4, 14, 16, true, true, 0},
		{"in the Ethernet header", udp4, 0, 6, true, true, 0},
		{"beyond the datagram", udp4, 60000, 6, true, false, 0},
		{"in the echo's data", echo, 34, 6, true, false, 0},
		{"of a protocol that is not known", other, 34, 2, true, false, 0},
		{"in a fragment", part, 34, 6, true, false, 0},
	} {
		for _, vnet := range []int{10, 12, 20, 24} {
			x := newRig(t, everything())
			x.checkpoint(0)
			with := func(wants bool) compare.Frame {
				f := wired(vnet, c.frame)
				if wants {
					f.Data[0] = packet.VNetNeedsCsum
					binary.LittleEndian.PutUint16(f.Data[6:], c.start)
					binary.LittleEndian.PutUint16(f.Data[8:], c.offset)
				}
				return f
			}
			left := len(x.Primary(with(c.primary), x.now).Release)
			left += len(x.Secondary(with(c.secondary), x.now).Release)
			if left != c.leaves {
				t.Errorf("%s (primary %v, secondary %v), header of %d bytes: %d have left, want %d", c.what, c.primary, c.secondary, vnet, left, c.leaves)
			}
			if r := x.checkpoint(1); len(r.Release) != 1-c.leaves {
				t.Errorf("%s: the checkpoint lets %d leave, want %d", c.what, len(r.Release), 1-c.leaves)
			}
		}
	}
}

// Nor over a claim of whose address is whose.
func TestNoChecksumIsWrittenOverAClaim(t *testing.T) {
	for name, c := range map[string]struct {
		f             compare.Frame
		start, offset uint16
		leaves        int
	}{
		"in ARP's sender":                        {arp(1, 1, 1, 2), 14, 8, 0},
		"in neighbour discovery's target":        {nd(136, 1, 1), 54, 8, 0},
		"the checksum of neighbour discovery":    {nd(136, 1, 1), 54, 2, 1},
		"in the addresses around that discovery": {nd(136, 1, 1), 14, 8, 0},
	} {
		t.Run(name, func(t *testing.T) {
			x := newRig(t, everything())
			x.checkpoint(0)
			said, told := wired(12, c.f.Data), wired(12, c.f.Data)
			told.Data[0] = packet.VNetNeedsCsum
			binary.LittleEndian.PutUint16(told.Data[6:], c.start)
			binary.LittleEndian.PutUint16(told.Data[8:], c.offset)
			x.Secondary(said, x.now)
			if r := x.Primary(told, x.now); len(r.Release) != c.leaves {
				t.Errorf("%d have left, want %d", len(r.Release), c.leaves)
			}
			if r := x.checkpoint(1); len(r.Release) != 1-c.leaves {
				t.Errorf("the checkpoint lets %d leave, want %d", len(r.Release), 1-c.leaves)
			}
		})
	}
}

// Datagrams that devices cut into others are two things, though the bytes are the same.
func TestDatagramsThatAreCutOtherwiseDiffer(t *testing.T) {
	big := func(kind byte, size uint16) compare.Frame {
		f := wired(10, wireDatagram(53, 5000, strings.Repeat("d", 3000)))
		f.Data[1] = kind
		binary.LittleEndian.PutUint16(f.Data[4:], size)
		return f
	}
	for _, c := range []struct {
		what   string
		p, s   compare.Frame
		leaves int
	}{
		{"in the same way", big(packet.GSOUDPL4, 1000), big(packet.GSOUDPL4, 1000), 1},
		{"not cut, whatever the size", big(packet.GSONone, 1000), big(packet.GSONone, 7), 1},
		{"into other sizes", big(packet.GSOUDPL4, 1000), big(packet.GSOUDPL4, 1400), 0},
		{"size 0", big(packet.GSOUDPL4, 0), big(packet.GSOUDPL4, 1400), 0},
		{"one only", big(packet.GSOUDPL4, 1000), big(packet.GSONone, 1000), 0},
		{"fragments and datagrams", big(packet.GSOUDP, 1000), big(packet.GSOUDPL4, 1000), 0},
	} {
		x := newRig(t, everything())
		x.checkpoint(0)
		x.Primary(c.p, x.now)
		if r := x.Secondary(c.s, x.now); len(r.Release) != c.leaves {
			t.Errorf("%s: %d have left, want %d", c.what, len(r.Release), c.leaves)
		}
	}
}

// extended returns an IPv6 packet with extension headers in front of a segment.
func extended(headers []byte, first byte, segment []byte) []byte {
	f := append(make([]byte, 12), 0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, first, 64)
	binary.BigEndian.PutUint16(f[18:], uint16(len(headers)+len(segment)))
	f = append(f, make([]byte, 32)...)
	f[37], f[53] = 1, 2
	return append(append(f, headers...), segment...)
}

// Frames that are taken for segments of one connection, or must not be. Each guest says
// one, after one with long options on another connection.
func TestSegmentsInWrappersOfEachKind(t *testing.T) {
	seg := wireSegment(9, 1001, 500, wireACK, "", "data")
	tcp := seg[34:]
	in := func(tags ...byte) []byte { // VLANs, the outer one first
		f := slices.Clone(seg[:12])
		for _, v := range tags {
			f = append(f, 0x81, 0, 0, v)
		}
		return append(f, seg[12:]...)
	}
	pppoe := func(session byte, length int) []byte {
		f := append(slices.Clone(seg[:12]), 0x88, 0x64, 0x11, 0, 0, session, byte(length>>8), byte(length), 0, 0x21)
		return append(f, seg[14:]...)
	}
	hop := []byte{6, 0, 1, 4, 0, 0, 0, 0}
	dest := []byte{60, 0, 1, 4, 0, 0, 0, 0, 6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	atomic := []byte{6, 0, 0, 0, 1, 2, 3, 4}
	long := []byte{6, 200, 1, 4, 0, 0, 0, 0}
	with := func(f []byte, at int, b byte) []byte {
		f = slices.Clone(f)
		f[at] = b
		return f
	}
	n := len(seg) - 14 + 2
	for _, c := range []struct {
		what   string
		p, s   []byte
		leaves int
	}{
		{"as it is", seg, seg, 1},
		{"padded differently", append(slices.Clone(seg), 1, 2, 3), append(slices.Clone(seg), make([]byte, 9)...), 1},
		{"one VLAN", in(7), in(7), 1},
		{"another VLAN", in(7), in(8), 0},
		{"a VLAN and none", in(7), seg, 0},
		{"a priority and none", in(0), seg, 1},
		{"a VLAN in a priority, and without", in(0, 7), in(7), 1},
		{"a priority in a VLAN, and without", in(7, 0), in(7), 1},
		{"a priority in a VLAN, and in another", in(7, 0), in(8, 0), 0},
		{"a VLAN in a VLAN", in(3, 7), in(3, 7), 1},
		{"the same VLAN in another", in(3, 7), in(4, 7), 0},
		{"three tags and two", in(3, 3, 7), in(3, 7), 0},
		{"a session of PPPoE", pppoe(1, n), pppoe(1, n), 1},
		{"another session", pppoe(1, n), pppoe(2, n), 0},
		{"a session that ends in the segment", pppoe(1, n-2), pppoe(1, n-2), 0},
		{"a session that ends behind the frame", pppoe(1, n+2), pppoe(1, n+2), 0},
		{"hop-by-hop options", extended(hop, 0, tcp), extended(hop, 0, tcp), 1},
		{"other extensions of the same segment", extended(hop, 0, tcp), extended(dest, 0, tcp), 1},
		{"an atomic fragment, and none", extended(atomic, 44, tcp), extended(nil, 6, tcp), 1},
		{"a fragment, and none", extended(with(atomic, 3, 1), 44, tcp), extended(nil, 6, tcp), 0},
		{"an extension longer than the packet", extended(long, 0, tcp), extended(long, 0, tcp), 0},
		{"a data offset in the fixed header", with(seg, 46, 4<<4), with(seg, 46, 4<<4), 0},
		{"a data offset behind the segment", with(seg, 46, 15<<4), with(seg, 46, 15<<4), 0},
		{"a total length in the header", with(seg, 17, 19), with(seg, 17, 19), 0},
		{"a total length of 0, as of a packet of more than 64 KiB", with(seg, 17, 0), with(seg, 17, 0), 0},
		{"an IP header longer than the packet", with(seg, 14, 0x4f), with(seg, 14, 0x4f), 0},
		{"IPv4 that says that it is version 6", with(seg, 14, 0x65), with(seg, 14, 0x65), 0},
		{"a segment, and the same as another fragment", seg, with(seg, 20, 0x20), 0},
		{"must not be cut, and may be", seg, with(seg, 20, 0x40), 1},
	} {
		t.Run(c.what, func(t *testing.T) {
			for _, vnet := range []int{0, 12} {
				x := newRig(t, everything())
				x.checkpoint(0)
				before := wireSegment(8, 1001, 500, wireACK, wireTimes(1, 1)+strings.Repeat("\x01", 28), "")
				x.Secondary(wired(vnet, before), x.now)
				x.Primary(wired(vnet, before), x.now)
				left := len(x.Primary(wired(vnet, c.p), x.now).Release)
				left += len(x.Secondary(wired(vnet, c.s), x.now).Release)
				if left != c.leaves {
					t.Errorf("virtio-net header of %d bytes: %d have left, want %d", vnet, left, c.leaves)
				}
				if r := x.checkpoint(1); len(r.Release) != 1-c.leaves {
					t.Errorf("virtio-net header of %d bytes: the checkpoint lets %d leave, want %d", vnet, len(r.Release), 1-c.leaves)
				}
			}
		})
	}
}
