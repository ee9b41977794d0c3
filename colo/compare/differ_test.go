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

// What becomes of a packet of the primary's guest whose twin differs from it in one thing.
// "leaves" is at once, as the primary's guest has sent it, or changed where both guests have room
// for less. Else it waits for the checkpoint: for
// a reason that is evident at once or after Cross, or until Timeout, since the twin is of
// another flow, or may be one of several.
func TestWhatTwoPacketsMayDifferIn(t *testing.T) {
	set := func(at int, v ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[at:], v); return b }
	}
	insert := func(at int, v string) func([]byte) []byte {
		return func(b []byte) []byte { return slices.Concat(b[:at], []byte(v), b[at:]) }
	}
	options4 := func(b []byte) []byte {
		b = slices.Concat(b[:34], []byte("\x94\x04\x00\x00"), b[34:])
		b[14] = 0x46
		binary.BigEndian.PutUint16(b[16:], uint16(len(b)-14))
		return b
	}
	fields4 := []struct {
		what   string
		change func([]byte) []byte
	}{
		{"class and marks of congestion", set(15, 0xbb)}, {"identification", set(18, 7, 7)}, {"time to live", set(22, 3)},
		{"DF", func(b []byte) []byte { b[20] |= 0x40; return b }}, {"options of IP", options4}, {"Ethernet addresses", set(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)},
		{"padding", func(b []byte) []byte { return append(b, 1, 2, 3) }},
	}
	type row struct {
		what   string
		frame  []byte
		change func([]byte) []byte
		want   string
	}
	times := wireTimes(5, 6)
	segment := wireSegment(9, 100, 1000, packet.ACK, times, "data")
	opening := wireSegment(9, 99, 1000, packet.SYN|packet.ACK, wireMSS+wireSACKOK+wireWindow7+times, "")
	keyed := wireSegment(9, 99, 1000, packet.SYN|packet.ACK, wireMSS+wireSACKOK+wireWindow7+"\x1e\x0c\x01\x01a key...", "")
	calling := wireSegment(9, 99, 0, packet.SYN|0xc0, wireMSS+wireSACKOK+wireWindow7+times, "")
	strange := wireSegment(9, 99, 1000, packet.SYN|packet.ACK, wireMSS+wireSACKOK+wireWindow7+"\x45\x06ENO!\xfe\x06four", "")
	sealing := wireSegment(9, 99, 1000, packet.SYN|packet.ACK, wireMSS+wireSACKOK+wireWindow7+"\x1d\x0cdigest....", "")
	pressing := wireSegment(9, 100, 1000, packet.ACK|packet.URG, "", "data")
	pressing[34+19] = 4
	datagram := wireDatagram(53, 5000, "data")
	echo := wireIPv4(packet.ProtoICMP, 0, []byte("\x00\x00\x12\x34\x00\x01\x00\x02data"))
	lite := wireIPv4(packet.ProtoUDPLite, 0, []byte("\x00\x35\x13\x88\x00\x08\x12\x34data"))
	sctp := wireIPv4(packet.ProtoSCTP, 0, []byte("\x00\x35\x13\x88\x00\x00\x00\x01\x12\x34\x56\x78data"))
	first, later := wireIPv4(packet.ProtoUDP, 0x2000, datagram[34:]), wireIPv4(packet.ProtoUDP, 2, []byte("the rest"))
	tagged := tag(wireDatagram(53, 5000, "data"), 5)
	advert := nd(136, 1, 1).Data
	rows := []row{
		{"TCP: nothing", segment, set(0), "leaves"},
		{"TCP: bits that are reserved", segment, set(46, 0x80|0x0f), "leaves"},
		{"TCP: the echo of marks of congestion", segment, set(47, packet.ACK|0xc0), "leaves"},
		{"TCP: PSH", segment, set(47, packet.ACK|packet.PSH), "leaves"},
		{"TCP: the window", segment, set(48, 1, 1), "leaves changed"},
		{"TCP: the timestamp and its echo", segment, set(54+4, 9, 9, 9, 9, 8, 8, 8, 8), "leaves"},
		{"TCP: the order of the options", segment, set(54, []byte(times[2:]+times[:2])...), "leaves"},
		{"TCP: another option", segment, set(54, []byte("\x1e\x0cmultipath.")...), "leaves"},
		{"TCP: the urgent pointer, without URG", segment, set(52, 7, 7), "leaves"},
		{"TCP: a byte", segment, set(66, 'D'), "data"},
		{"TCP: the number", segment, set(38, 0, 0, 0, 101), "position"},
		{"TCP: URG, the other guest's alone", segment, set(47, packet.ACK|packet.URG), "leaves"},
		{"TCP: URG", pressing, set(47, packet.ACK), "flags"},
		{"TCP: the urgent pointer", pressing, set(52, 0, 3), "flags"},
		{"TCP: FIN, the other guest's alone", segment, set(47, packet.ACK|packet.FIN), "leaves"},
		{"TCP: RST, the other guest's alone", segment, set(47, packet.ACK|packet.RST), "flags"},
		{"TCP: a port", segment, set(37, 8), "timeout"},
		{"SYN: its number", opening, set(38, 1, 2, 3, 4), "leaves"},
		{"SYN: the window", opening, set(48, 1, 1), "leaves"},
		{"SYN: the order of the options", opening, set(54, []byte(wireSACKOK+wireWindow7+wireMSS)...), "leaves"},
		{"SYN: a greatest segment", opening, set(57, 0xb3), "options"},
		{"SYN: the scale of the window", opening, set(65, 6), "options"},
		{"SYN: selective acknowledgments", opening, set(58, 1, 1), "options"},
		{"SYN: selective acknowledgments, of a length that nobody takes", opening, set(58, 4, 4), "options"},
		{"SYN: timestamps", opening, set(66, []byte(strings.Repeat("\x01", 12))...), "options"},
		{"SYN: marks of congestion, asked for", calling, set(47, packet.SYN), "options"},
		{"SYN: marks of congestion, the other guest's alone", opening, set(47, packet.SYN|packet.ACK|0x40), "options"},
		{"SYN: marks of congestion, counted", opening, set(46, 0xb1), "options"},
		{"SYN: bits that are reserved", opening, set(46, 0xbe), "leaves"},
		{"SYN: PSH", opening, set(47, packet.SYN|packet.ACK|packet.PSH), "leaves"},
		{"SYN: an option that is not known here", strange, set(0), "leaves"},
		{"SYN: its data", strange, set(69, 'E'), "options"},
		{"SYN: its kind", strange, set(66, 70), "options"},
		{"SYN: no such option", strange, set(66, []byte(strings.Repeat("\x01", 12))...), "options"},
		{"SYN: the order of such options", strange, set(66, []byte("\xfe\x06four\x45\x06ENO!")...), "leaves"},
		{"SYN: a signature", sealing, set(68, []byte("another")...), "leaves"},
		{"SYN: the acknowledgment", opening, set(42, 0, 0, 3, 0xe7), "timeout"},
		{"SYN: Multipath TCP, with a key", keyed, set(66, []byte("\x1e\x0c\x01\x01another.")...), "options"},
		{"SYN: Multipath TCP, with a key that is the same by accident", keyed, set(0), "options"},
		{"SYN: Multipath TCP, the primary's guest's alone", keyed, set(66, []byte(strings.Repeat("\x01", 12))...), "options"},
		{"UDP: nothing", datagram, set(0), "leaves"},
		{"UDP: no checksum instead of one", set(40, 0x12, 0x34)(bytes.Clone(datagram)), set(40, 0, 0), "packet"},
		{"UDP: a byte", datagram, set(42, 'D'), "packet"},
		{"UDP: a port", datagram, set(37, 1), "timeout"},
		{"ICMP: nothing", echo, set(0), "leaves"},
		{"ICMP: the identifier", echo, set(38, 7), "packet"},
		{"ICMP: the number", echo, set(40, 7), "packet"},
		{"ICMP: a byte", echo, set(42, 'D'), "packet"},
		{"UDP-Lite: nothing", lite, set(0), "leaves"},
		{"UDP-Lite: how much is covered", lite, set(39, 0), "packet"},
		{"SCTP: nothing", sctp, set(0), "leaves"},
		{"SCTP: the tag", sctp, set(41, 2), "packet"},
		{"a first fragment: nothing", first, set(0), "leaves"},
		{"a later fragment: nothing", later, set(0), "leaves"},
		{"a later fragment: its place", later, set(21, 3), "packet"},
		{"a later fragment: that more follow", later, set(20, 0x20), "packet"},
		{"VLAN: the priority", tagged, set(14, 0xe0), "leaves"},
		{"VLAN: its number", tagged, set(15, 6), "timeout"},
		{"ARP: request or reply, and whom it asks", arp(1, 1, 1, 2).Data, set(20, 0, 2, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 1, 1, 1, 1, 1, 1, 10, 0, 0, 3), "leaves"},
		{"ARP: the address", arp(1, 1, 1, 2).Data, set(31, 9), "timeout"},
		{"ARP: the link-layer address", arp(1, 1, 1, 2).Data, set(27, 9), "timeout"},
		{"neighbour discovery: flags", advert, set(58, 0xe0), "leaves"},
		{"neighbour discovery: the address", advert, set(77, 9), "timeout"},
		{"another EtherType: nothing", set(12, 0x88, 0xcc)(bytes.Clone(datagram)), set(0), "timeout"},
		{"an IPv4 header that contradicts itself: nothing", set(16, 9, 9)(bytes.Clone(datagram)), set(0), "timeout"},
	}
	for i, frame := range [][]byte{segment, datagram, echo, lite, sctp, first, later} {
		of := []string{"TCP", "UDP", "ICMP", "UDP-Lite", "SCTP", "a first fragment", "a later fragment"}[i]
		for _, f := range fields4 {
			want := "leaves"
			switch {
			case i < 3: // of what is in front of the header, only the addresses
			case f.what == "DF", f.what == "options of IP", f.what == "Ethernet addresses":
				want = "packet"
			}
			rows = append(rows, row{of + ": " + f.what, frame, f.change, want})
		}
	}
	hop, dest := set(14, 0x6b, 0xb1, 2, 3), insert(54, "\x06\x00\x01\x04\x00\x00\x00\x00")
	six, sixOther := asIPv6(bytes.Clone(segment)), v6(packet.ProtoSCTP, sctp[34:])
	rows = append(rows,
		row{"TCP: class and flow label", six, hop, "leaves"}, row{"TCP: hop limit", six, set(21, 3), "leaves"},
		row{"TCP: an extension header", six, func(b []byte) []byte { b = dest(b); b[20], b[19] = packet.ProtoDestOpts, b[19]+8; return b }, "leaves"},
		row{"SCTP: class and flow label", sixOther, hop, "leaves"}, row{"SCTP: hop limit", sixOther, set(21, 3), "leaves"},
		row{"SCTP: an extension header", sixOther, func(b []byte) []byte {
			b = dest(b)
			b[54], b[20], b[19] = packet.ProtoSCTP, packet.ProtoDestOpts, b[19]+8
			return b
		}, "packet"})
	for _, r := range rows {
		p, s := bytes.Clone(r.frame), sealed(r.change(bytes.Clone(r.frame)))
		x := newRig(t, everything())
		x.checkpoint(0)
		if strings.HasPrefix(r.what, "TCP") {
			syn := ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7 + wireTimes(1, 2)}
			if p[12] == 0x86 {
				syn.wrap = asIPv6
			}
			x.Primary(syn.frame(), x.now)
			x.Secondary(syn.frame(), x.now)
		}
		sealed(p)
		got := ""
		left := 0
		for _, of := range []func() compare.Result{
			func() compare.Result { return x.Primary(compare.Frame{Data: p}, x.now) },
			func() compare.Result { return x.Secondary(compare.Frame{Data: s}, x.now) },
			func() compare.Result { x.now = x.now.Add(20 * time.Millisecond); return x.Tick(x.now) },
			func() compare.Result { x.now = x.now.Add(4 * time.Second); return x.Tick(x.now) },
		} {
			if got != "" {
				break
			}
			res := of()
			switch left += len(res.Release); {
			case len(res.Release) > 0:
				if got = "leaves"; !bytes.Equal(res.Release[0].Data, p) {
					got = "leaves changed"
				}
			case res.Diverged:
				got = res.Reason.String()
			}
		}
		if got != r.want {
			t.Errorf("%s: %s, want %s", r.what, got, r.want)
		}
		if left > 0 {
			continue
		}
		x.mark(1)
		if res := x.received(1); len(res.Release) != 1 || !bytes.Equal(res.Release[0].Data, p) {
			t.Errorf("%s: %d have left with the checkpoint, or not as they were", r.what, len(res.Release))
		}
	}
}
