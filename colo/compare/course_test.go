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

// A course is what happens to an engine, one event a line, a millisecond after each other:
//
//	p FLAGS SEQ ACK [WORD VALUE]... [data] => what leaves
//	p udp FROM TO data, p udp0 FROM TO data, p echo SEQ data, p unreachable data [CUT],
//	p fragment IDENT PLACE more data, p ether => what leaves
//	s ... => the same for the secondary's guest
//	in FLAGS SEQ ACK ecr N => the echo that the guest gets, if it is changed
//	mark; received => what leaves; heard [EPOCH] => what leaves; checkpoint => what leaves in all three
//	loaded, without markers
//	wait MS => what leaves; failover => what leaves
//
// The client begins with 500, the primary's guest with 1000, the secondary's with 9000. What
// leaves is the numbers of segments, and what else of them is unusual; - is nothing; behind !
// is why a checkpoint is wanted.
type course struct{ what, events string }

// moreFragments is the flag of this name in the field of IPv4 that a fragment's place is in.
const moreFragments = 0x2000

// A vessel is what the packets of a course come in.
type vessel struct {
	what   string
	v6     bool
	wrap   func(f []byte) []byte
	vnet   int
	guest  uint32 // is added to the numbers of the guests
	client uint32 // is added to those of the client
	clock  uint32 // is added to the timestamps of the guests
	tagged bool   // the packets are in VLANs or in PPPoE
	differ bool   // the secondary's guest has other values in what is not compared
	alert  bool   // it alone has an option of IP
}

func vessels() []vessel {
	same := func(f []byte) []byte { return f }
	vlan := func(tags string) func([]byte) []byte {
		return func(f []byte) []byte { return kindsVLAN(f, tags) }
	}
	return []vessel{
		{what: "IPv4", wrap: same},
		{what: "IPv6", v6: true, wrap: same},
		{what: "IPv4 behind a virtio-net header", wrap: same, vnet: 12},
		{what: "IPv6 behind a long virtio-net header", v6: true, wrap: same, vnet: 24},
		{what: "IPv4 in a VLAN", wrap: vlan("\x81\x00\x20\x05"), tagged: true},
		{what: "IPv6 in two VLANs", v6: true, wrap: vlan("\x88\xa8\x00\x02\x81\x00\x00\x03"), vnet: 10, tagged: true},
		{what: "IPv4 in PPPoE", wrap: asPPPoE, tagged: true},
		{what: "IPv4, the guest's numbers wrap", wrap: same, guest: 1<<32 - 1001},
		{what: "IPv6, the guest's numbers wrap in the data", v6: true, wrap: same, guest: 1<<32 - 1003},
		{what: "IPv4, the client's numbers wrap", wrap: same, client: 1<<32 - 601},
		{what: "IPv4, the client's numbers wrap at once", wrap: same, client: 1<<32 - 501},
		{what: "IPv4, the numbers become negative", wrap: same, guest: 1<<31 - 1003, client: 1<<31 - 601},
		{what: "IPv4, timestamps that become 0", wrap: same, clock: 1<<32 - 15},
		{what: "IPv6, timestamps in their upper half", v6: true, wrap: same, clock: 1 << 31},
		{what: "IPv4, headers that differ", wrap: same, differ: true},
		{what: "IPv4, headers and options that differ", wrap: same, differ: true, alert: true},
		{what: "IPv6, headers that differ", v6: true, wrap: same, differ: true},
	}
}

// packet returns a packet of a line's words, from the guest, or to it if toGuest.
func (v *vessel) packet(words []string, toGuest, primary bool) compare.Frame {
	num := func(s string) (n uint32) {
		fmt.Sscan(s, &n)
		return n
	}
	var payload []byte
	proto, frag := byte(packet.ProtoTCP), uint32(0)
	icmp, checksum, gso := byte(packet.ProtoICMP), -1, uint32(0)
	if v.v6 {
		icmp = packet.ProtoICMPv6
	}
	switch words[0] {
	case "udp", "udp0":
		proto, checksum = packet.ProtoUDP, packet.UDPChecksumAt
		payload = make([]byte, packet.UDPLen)
		binary.BigEndian.PutUint32(payload, num(words[1])<<16|num(words[2]))
		payload = append(payload, strings.Join(words[3:], " ")...)
		binary.BigEndian.PutUint16(payload[4:], uint16(len(payload)))
		if words[0] == "udp0" {
			checksum = -1
		}
	case "echo":
		proto, checksum = icmp, packet.ICMPChecksumAt
		payload = append([]byte{0, 0, 0, 0, 0, 1, 0, byte(num(words[1]))}, words[2]...)
		if v.v6 {
			payload[0] = 129
		}
	case "unreachable":
		proto, checksum = icmp, packet.ICMPChecksumAt
		quoted := wireDatagram(5000, 53, words[1])[packet.EthernetLen:]
		if len(words) > 2 {
			quoted = quoted[:num(words[2])]
		}
		payload = append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, quoted...)
		if v.v6 {
			payload[0], payload[1] = 1, 4
		}
	case "fragment":
		proto, payload = packet.ProtoUDP, []byte(words[len(words)-1])
		frag = num(words[1])<<16 | num(words[2])/8
		if words[3] == "more" {
			frag |= moreFragments
		}
	case "ether":
		f := append(make([]byte, v.vnet+12), 0x88, 0xcc, 2, 7, 4, 0)
		return compare.Frame{Data: f, VNetHdr: v.vnet}
	default:
		h := make([]byte, packet.TCPLen)
		binary.BigEndian.PutUint16(h, 80)
		for i, c := range "FSRPAUEC" {
			if strings.ContainsRune(words[0], c) {
				h[13] |= 1 << i
			}
		}
		checksum = packet.TCPChecksumAt
		own, other := v.guest, v.client
		if toGuest {
			own, other = other, own
		}
		port, seq, ack, win := uint32(9), num(words[1])+own, num(words[2])+other, uint32(1000)
		if h[13]&packet.ACK == 0 {
			ack = 0
		}
		for words = words[3:]; len(words) > 1; words = words[2:] {
			switch n := num(words[1]); words[0] {
			case "win":
				win = n
			case "port":
				port = n
			case "from":
				binary.BigEndian.PutUint16(h, uint16(n))
			case "ts":
				h = append(h, wireTimes(n+v.clock, 1)...)
			case "ecr":
				h = append(h, wireTimes(1, n+v.clock)...)
			case "oddecr": // not where nearly all segments have it
				h = append(append(h, 1), wireTimes(1, n+v.clock)[2:]...)
				h = append(h, 1)
			case "ws":
				h = append(h, 1, 3, 3, byte(n))
			case "urg":
				binary.BigEndian.PutUint16(h[18:], uint16(n))
			case "md5":
				h = append(h, wireSigned...)
			case "gso":
				gso = n
			case "sack":
				blocks := strings.Split(words[1], ",")
				h = append(h, 1, 1, packet.OptSACK, byte(2+8*len(blocks)))
				for _, b := range blocks {
					from, to, _ := strings.Cut(b, "-")
					h = binary.BigEndian.AppendUint32(h, num(from)+other)
					h = binary.BigEndian.AppendUint32(h, num(to)+other)
				}
			default:
				panic(words[0])
			}
		}
		binary.BigEndian.PutUint16(h[2:], uint16(port))
		if toGuest {
			h[0], h[1], h[2], h[3] = h[2], h[3], h[0], h[1]
		}
		binary.BigEndian.PutUint32(h[4:], seq)
		binary.BigEndian.PutUint32(h[8:], ack)
		h[12] = byte(len(h)) << 2
		binary.BigEndian.PutUint16(h[14:], uint16(win))
		payload = h
		if len(words) == 1 {
			payload = append(payload, words[0]...)
		}
	}
	f := v.ip(proto, frag, payload, frag > 0, !primary && v.differ, toGuest)
	if checksum >= 0 {
		at := len(f) - len(payload)
		sum := packet.Checksum(payload) // of UDP it is another, but this one is as good for a comparison
		if proto == packet.ProtoTCP {
			var p packet.Packet
			p.Parse(f)
			sum = p.TCPChecksum()
		}
		binary.BigEndian.PutUint16(f[at+checksum:], sum)
	}
	f = v.wrap(f)
	head := make([]byte, v.vnet)
	if gso > 0 && v.vnet > 0 {
		head[1] = packet.GSOTCPv4
		if v.v6 {
			head[1] = packet.GSOTCPv6
		}
		binary.LittleEndian.PutUint16(head[4:], uint16(gso))
	}
	return compare.Frame{Data: append(head, f...), VNetHdr: v.vnet}
}

// ip puts a payload into a frame.
func (v *vessel) ip(proto byte, frag uint32, payload []byte, fragment, differ, toGuest bool) []byte {
	one, two := byte(1), byte(2)
	if toGuest {
		one, two = two, one
	}
	f := make([]byte, packet.EthernetLen)
	f[5], f[11] = two, one
	if differ && !fragment {
		f[0], f[6] = 2, 6
	}
	var h []byte
	if v.v6 {
		h = make([]byte, packet.IPv6Len)
		h[0], h[6], h[7], h[23], h[39] = 0x60, proto, 64, one, two
		if differ {
			h[1], h[2], h[3], h[7] = 0x2a, 7, 7, 63
		}
		if fragment {
			h[6] = 44
			h = append(h, proto, 0, 0, 0, 0, 0, 0, byte(frag>>16))
			more := byte(0)
			if frag&moreFragments != 0 {
				more = 1
			}
			binary.BigEndian.PutUint16(h[42:], uint16(frag&0x1fff)<<3|uint16(more))
		}
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)-packet.IPv6Len+len(payload)))
		binary.BigEndian.PutUint16(f[12:], packet.TypeIPv6)
	} else {
		h = make([]byte, packet.IPv4Len)
		h[0], h[8], h[9] = 0x45, 64, proto
		if differ && !fragment {
			h[1], h[5], h[8] = 0x28, 9, 63
		}
		if differ && !fragment && v.alert {
			h[0] = 0x46
			h = append(h, 0x94, 4, 0, 0) // a router alert (RFC 2113)
		}
		binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(payload)))
		if fragment {
			binary.BigEndian.PutUint16(h[4:], uint16(frag>>16))
			binary.BigEndian.PutUint16(h[6:], uint16(frag))
		}
		copy(h[12:], []byte{10, 0, 0, one, 10, 0, 0, two})
		binary.BigEndian.PutUint16(h[10:], packet.Checksum(h))
		binary.BigEndian.PutUint16(f[12:], packet.TypeIPv4)
	}
	return slices.Concat(f, h, payload)
}

// shows names what has left.
func (v *vessel) shows(t *testing.T, r compare.Result) string {
	var out []string
	for _, f := range r.Release {
		var p packet.Packet
		p.Parse(f.Data[f.VNetHdr:])
		switch {
		case p.IsTCP():
			out = append(out, v.showsSegment(t, &p))
		case p.Fragment:
			out = append(out, "fragment "+string(p.Payload()))
		case p.Proto == packet.ProtoUDP:
			out = append(out, strings.TrimSpace("udp "+string(p.Payload()[packet.UDPLen:])))
		case p.L4OK:
			said := string(p.Payload()[packet.ICMPLen:])
			out = append(out, "icmp "+said[max(0, len(said)-3):])
		default:
			out = append(out, "ether")
		}
	}
	s := strings.Join(out, ", ")
	if r.Diverged {
		s = strings.TrimSpace(s + " !" + r.Reason.String())
	}
	if s == "" {
		return "-"
	}
	return s
}

func (v *vessel) showsSegment(t *testing.T, p *packet.Packet) string {
	h := p.TCP()
	if h.Checksum() != p.TCPChecksum() {
		t.Errorf("%s: the checksum of %x is wrong", v.what, p.Frame)
	}
	ack := h.Ack() - v.client
	if h.Flags()&packet.ACK == 0 {
		ack = h.Ack()
	}
	s := fmt.Sprintf("%d/%d", h.Seq()-v.guest, ack)
	if win := binary.BigEndian.Uint16(h[14:]); win != 1000 {
		s += fmt.Sprint(" win ", win)
	}
	for kind, data, rest, ok := packet.NextOption(h.Options()); ok; kind, data, rest, ok = packet.NextOption(rest) {
		switch kind {
		case packet.OptTimestamps:
			s += fmt.Sprint(" ts ", binary.BigEndian.Uint32(data)-v.clock)
		case packet.OptSACK:
			s += " sack"
			for ; len(data) >= 8; data = data[8:] {
				s += fmt.Sprintf(" %d-%d", binary.BigEndian.Uint32(data)-v.client, binary.BigEndian.Uint32(data[4:])-v.client)
			}
		}
	}
	return strings.TrimSpace(s + " " + string(h.Payload()))
}

func (c course) run(t *testing.T, cfg compare.Config, v *vessel, thorough bool) {
	t.Helper()
	for i, got := range c.outcomes(t, cfg, v, thorough) {
		event, want, _ := strings.Cut(got.line, " => ")
		if want == "" {
			want = "-"
		}
		if got.is != want {
			t.Errorf("%s, %s, thorough %t: %d: %s: %s, want %s", c.what, v.what, thorough, i, event, got.is, want)
		}
	}
}

// An outcomeOf is what has followed from an event.
type outcomeOf struct{ line, is string }

// outcomes returns what has followed from each event.
func (c course) outcomes(t *testing.T, cfg compare.Config, v *vessel, thorough bool) (all []outcomeOf) {
	t.Helper()
	x := newRig(t, cfg)
	if thorough {
		x.TakeNothingAsPlain()
	}
	var epoch uint64
	for line := range strings.Lines(c.events) {
		line = strings.TrimSpace(line)
		event, _, _ := strings.Cut(line, " => ")
		words := strings.Fields(event)
		if len(words) == 0 {
			continue
		}
		x.now = x.now.Add(time.Millisecond)
		got := "-"
		switch words[0] {
		case "p":
			f := v.packet(words[1:], false, true)
			got = v.shows(t, x.Primary(f, x.now))
		case "s":
			f := v.packet(words[1:], false, false)
			got = v.shows(t, x.Secondary(f, x.now))
			clear(f.Data) // the engine does not keep what it is given
		case "in":
			f := v.packet(words[1:], true, true)
			var p packet.Packet
			if x.Inbound(f) {
				p.Parse(f.Data[f.VNetHdr:])
				for kind, data, rest, ok := packet.NextOption(p.TCP().Options()); ok; kind, data, rest, ok = packet.NextOption(rest) {
					if kind == packet.OptTimestamps {
						got = fmt.Sprint("ecr ", binary.BigEndian.Uint32(data[4:])-v.clock)
					}
				}
			}
			if p.Parse(f.Data[f.VNetHdr:]); p.TCP().Checksum() != p.TCPChecksum() {
				t.Errorf("%s, %s: %s: the checksum is wrong", c.what, v.what, event)
			}
		case "mark":
			x.mark(epoch)
			epoch++
		case "received":
			got = v.shows(t, x.received(epoch-1))
		case "loaded":
			if err := x.Loaded(epoch - 1); err != nil {
				t.Fatal(err)
			}
		case "heard", "checkpoint":
			if words[0] == "checkpoint" {
				x.mark(epoch)
				epoch++
			}
			of := epoch - 1
			if len(words) > 1 {
				fmt.Sscan(words[1], &of)
			}
			r, err := x.SecondaryMark(of)
			if err != nil {
				t.Fatal(err)
			}
			got = v.shows(t, r)
		case "wait":
			var ms time.Duration
			fmt.Sscan(words[1], &ms)
			x.now = x.now.Add(ms * time.Millisecond)
			got = v.shows(t, x.Tick(x.now))
		case "failover":
			got = v.shows(t, x.Failover())
			epoch = 0
		default:
			t.Fatalf("%s: %s", c.what, event)
		}
		all = append(all, outcomeOf{line, got})
	}
	x.Failover()
	if s := x.Stats(); s.Held != 0 || s.HeldBytes != 0 {
		t.Errorf("%s, %s: at the end %+v", c.what, v.what, s)
	}
	return all
}
