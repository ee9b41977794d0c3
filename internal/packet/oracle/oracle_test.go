package oracle

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/gocolo/lockstep/internal/packet"
)

// randomFrame has gopacket write a frame of some kind, lengths and checksums
// right.
func randomFrame(t testing.TB, r *rand.Rand) []byte {
	t.Helper()
	addr := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	var stack []gopacket.SerializableLayer
	push := func(l gopacket.SerializableLayer) { stack = append(stack, l) }

	inner := []layers.EthernetType{layers.EthernetTypeIPv4, layers.EthernetTypeIPv4, layers.EthernetTypeIPv6, layers.EthernetTypeIPv6, layers.EthernetTypeARP}[r.IntN(5)]
	tags := max(0, r.IntN(5)-2)
	types := []layers.EthernetType{inner}
	for range tags {
		types = append(types, []layers.EthernetType{layers.EthernetTypeDot1Q, layers.EthernetTypeQinQ}[r.IntN(2)])
	}
	slices.Reverse(types)
	push(&layers.Ethernet{DstMAC: addr(6), SrcMAC: addr(6), EthernetType: types[0]})
	for _, next := range types[1:] {
		push(&layers.Dot1Q{VLANIdentifier: uint16(r.IntN(4096)), Priority: uint8(r.IntN(8)), Type: next})
	}

	proto := []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolTCP, layers.IPProtocolUDP, layers.IPProtocolICMPv4, 200, 201}[r.IntN(6)]
	var network gopacket.NetworkLayer
	fragment := r.IntN(6) == 0
	switch inner {
	case layers.EthernetTypeARP:
		push(&layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
			SourceHwAddress: addr(6), SourceProtAddress: addr(4), DstHwAddress: addr(6), DstProtAddress: addr(4)})
	case layers.EthernetTypeIPv4:
		ip := &layers.IPv4{Version: 4, TOS: uint8(r.Uint32()), Id: uint16(r.Uint32()), TTL: 64, Protocol: proto, SrcIP: addr(4), DstIP: addr(4)}
		if fragment {
			ip.FragOffset = uint16(r.IntN(3) * r.IntN(8192))
			if r.IntN(2) == 0 || ip.FragOffset == 0 {
				ip.Flags = layers.IPv4MoreFragments
			}
		}
		for range max(0, r.IntN(5)-2) {
			n := r.IntN(9)
			ip.Options = append(ip.Options, layers.IPv4Option{OptionType: 7, OptionLength: uint8(n + 2), OptionData: addr(n)})
		}
		network = ip
		push(ip)
	case layers.EthernetTypeIPv6:
		if proto == layers.IPProtocolICMPv4 {
			proto = layers.IPProtocolICMPv6
		}
		ip := &layers.IPv6{Version: 6, TrafficClass: uint8(r.Uint32()), FlowLabel: r.Uint32N(1 << 20), HopLimit: 64, SrcIP: addr(16), DstIP: addr(16)}
		network = ip
		push(ip)
		next := &ip.NextHeader
		if r.IntN(4) == 0 { // pads are the option that anything may have
			*next = layers.IPProtocolIPv6Destination
			ext := &layers.IPv6Destination{Options: []*layers.IPv6DestinationOption{{OptionType: 1, OptionData: addr(4 + 8*r.IntN(3))}}}
			push(ext)
			next = &ext.NextHeader
		}
		if fragment {
			*next = layers.IPProtocolIPv6Fragment
			raw := addr(8)
			raw[0], raw[1], raw[3] = byte(proto), 0, raw[3]&^6
			if r.IntN(2) == 0 {
				raw[2], raw[3] = 0, 1
			}
			push(gopacket.Payload(raw))
		} else {
			*next = proto
		}
	}
	if inner != layers.EthernetTypeARP {
		switch proto {
		case layers.IPProtocolTCP:
			h := &layers.TCP{SrcPort: layers.TCPPort(r.Uint32()), DstPort: layers.TCPPort(r.Uint32()), Seq: r.Uint32(), Ack: r.Uint32(), Window: uint16(r.Uint32()),
				FIN: r.IntN(4) == 0, SYN: r.IntN(4) == 0, RST: r.IntN(4) == 0, PSH: r.IntN(2) == 0, ACK: r.IntN(4) != 0, URG: r.IntN(8) == 0}
			room := 40
			for room > 0 && r.IntN(4) != 0 {
				o := layers.TCPOption{OptionType: layers.TCPOptionKind([]uint8{1, 2, 3, 4, 5, 8, 253, 254}[r.IntN(8)])}
				o.OptionLength = 1
				if o.OptionType != 1 {
					o.OptionData = addr(map[layers.TCPOptionKind]int{2: 2, 3: 1, 4: 0, 5: 8 * (1 + r.IntN(3)), 8: 8, 253: 4, 254: r.IntN(9)}[o.OptionType])
					o.OptionLength = uint8(2 + len(o.OptionData))
				}
				if room -= int(o.OptionLength); room >= 0 {
					h.Options = append(h.Options, o)
				}
			}
			h.SetNetworkLayerForChecksum(network)
			push(h)
		case layers.IPProtocolUDP:
			h := &layers.UDP{SrcPort: layers.UDPPort(r.Uint32()), DstPort: layers.UDPPort(r.Uint32())}
			h.SetNetworkLayerForChecksum(network)
			push(h)
		case layers.IPProtocolICMPv4:
			push(&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: uint16(r.Uint32()), Seq: uint16(r.Uint32())})
		case layers.IPProtocolICMPv6:
			h := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
			h.SetNetworkLayerForChecksum(network)
			push(h)
			push(gopacket.Payload(addr(4)))
		default:
			push(gopacket.Payload(addr(r.IntN(12))))
		}
		push(gopacket.Payload(addr(r.IntN(2) * r.IntN(200))))
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...); err != nil {
		t.Fatal(err)
	}
	frame := bytes.Clone(buf.Bytes())
	if r.IntN(2) == 0 { // as a wire pads it
		frame = append(frame, make([]byte, max(0, 60-len(frame)))...)
	}
	return frame
}

// A theirs has what gopacket sees in a frame, as far as package packet looks.
type theirs struct {
	kind packet.Kind
	tags int
	src  net.IP
	dst  net.IP

	proto    uint8
	fragment bool
	first    bool
	payload  []byte // behind the IP header and its extensions
	tcp      *layers.TCP
	udp      *layers.UDP

	wrong     bool // the version is
	truncated bool
	doubts    string // what gopacket objects to
}

// What gopacket says of a protocol that it does not know.
const (
	unsupported = "Layer type not currently supported"
	unable      = "Unable to decode IPProtocol"
)

// again reads the transport header alone: what gopacket thinks of its data, which
// it goes by the ports for, is beside the point.
func (v *theirs) again(l gopacket.DecodingLayer) {
	if !v.wrong {
		v.doubts = ""
	}
	if err := l.DecodeFromBytes(v.payload, gopacket.NilDecodeFeedback); err != nil {
		v.doubts = err.Error()
	}
}

func look(frame []byte) (v theirs) {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
	v.truncated = p.Metadata().Truncated
	if err := p.ErrorLayer(); err != nil && err.Error().Error() != unsupported && !strings.HasPrefix(err.Error().Error(), unable) {
		v.doubts = err.Error().Error()
	}
	for _, l := range p.Layers() {
		switch l := l.(type) {
		case *layers.Ethernet:
			v.kind = packet.Other
		case *layers.Dot1Q:
			if v.kind == packet.Other {
				v.tags++
			}
		case *layers.ARP:
			v.kind = packet.ARP
			return v
		case *layers.IPv4:
			if v.kind != packet.Other {
				return v // a tunnel
			}
			v.kind, v.src, v.dst, v.proto = packet.IP4, l.SrcIP, l.DstIP, uint8(l.Protocol)
			v.first = l.FragOffset == 0
			v.fragment = !v.first || l.Flags&layers.IPv4MoreFragments != 0
			v.payload = l.Payload
			// From the bytes: it forgives, and corrects, a length that is wrong.
			n := -1
			if len(l.Contents) >= 4 {
				n = int(l.Contents[2])<<8 | int(l.Contents[3])
			}
			if l.Version != 4 || n != len(l.Contents)+len(l.Payload) {
				v.doubts, v.wrong = fmt.Sprintf("version %d, length %d", l.Version, l.Length), true
			}
		case *layers.IPv6:
			if v.kind != packet.Other {
				return v
			}
			v.kind, v.src, v.dst, v.proto = packet.IP6, l.SrcIP, l.DstIP, uint8(l.NextHeader)
			v.first, v.payload = true, l.Payload
			if l.Length == 0 { // it takes the padding for data then
				v.payload, v.doubts = nil, ""
				if ext[v.proto] {
					v.doubts = "no room for an extension header"
				}
			}
			if l.Version != 6 || int(l.Length) > len(l.Payload) && l.Length != 0 {
				v.doubts, v.wrong = fmt.Sprintf("version %d", l.Version), true
			}
			if l.Length == 0 {
				return v
			}
		case *layers.IPv6HopByHop:
			v.proto, v.payload = uint8(l.NextHeader), l.Payload
		case *layers.IPv6Destination:
			v.proto, v.payload = uint8(l.NextHeader), l.Payload
		case *layers.IPv6Routing:
			v.proto, v.payload = uint8(l.NextHeader), l.Payload
		case *layers.IPv6Fragment:
			v.proto, v.payload = uint8(l.NextHeader), l.Payload
			v.first = l.FragmentOffset == 0
			v.fragment = !v.first || l.MoreFragments
			return v // gopacket looks no further
		case *layers.TCP:
			v.tcp = l
			v.again(new(layers.TCP))
			return v
		case *layers.UDP:
			v.udp = l
			v.again(new(layers.UDP))
			return v
		default:
			return v
		}
	}
	return v
}

// agree holds the two readings of a frame together. Of a whole frame everything
// must agree. Of a broken one we must not see more than gopacket does, and what
// both see must be the same.
func agree(t *testing.T, frame []byte, whole bool) {
	t.Helper()
	var p packet.Packet
	p.Parse(frame)
	shown := p
	shown.Frame = nil
	v := look(frame)
	bad := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s\nours %+v\ntheirs %+v\nframe %x", fmt.Sprintf(format, args...), shown, v, frame)
	}
	if whole && v.doubts != "" {
		bad("gopacket doubts what it has written")
	}
	if p.Kind != v.kind {
		if !whole && p.Kind == packet.Malformed && v.kind == packet.IP6 && ext[v.proto] {
			return // by an extension header that gopacket does not know
		}
		ip := p.Kind == packet.IP4 || p.Kind == packet.IP6
		arp := p.Kind == packet.ARP || v.kind == packet.ARP
		// Options that are wrong are for who reads them; we let them lie. An
		// ARP packet's content is none of our business. Whole is what must be
		// called whole by both.
		if whole || ip && v.doubts == "" || !ip && !arp && v.doubts == "" && !v.truncated && v.kind != packet.Other {
			bad("kind %d, gopacket's %d", p.Kind, v.kind)
		}
		return
	}
	if p.Tags != v.tags && v.kind != packet.Other {
		bad("%d tags, gopacket's %d", p.Tags, v.tags)
	}
	if p.Kind != packet.IP4 && p.Kind != packet.IP6 {
		return
	}
	if !whole && len(v.src) == 0 {
		return // it gave up at an option
	}
	src, dst := []byte(nil), []byte(nil)
	if p.Kind == packet.IP4 {
		src, dst = p.IPv4().Src(), p.IPv4().Dst()
		if whole && packet.Checksum(p.IPv4()[:p.IPv4().HeaderLen()]) != 0 {
			bad("the header's checksum")
		}
	} else {
		src, dst = p.IPv6().Src(), p.IPv6().Dst()
	}
	if !bytes.Equal(src, v.src) || !bytes.Equal(dst, v.dst) {
		bad("addresses")
	}
	if v.doubts != "" && p.Kind == packet.IP6 && p.Proto != v.proto {
		return // an extension header that gopacket did not get past
	}
	if p.Kind == packet.IP6 && !known[v.proto] && known[p.Proto] {
		return // one that it does not know
	}
	if p.Kind == packet.IP6 && v.proto != p.Proto && ext[v.proto] {
		return // behind the fragment header, where it does not look
	}
	if p.Proto != v.proto || p.First != v.first || p.Fragment != v.fragment || !bytes.Equal(p.Payload(), v.payload) {
		bad("proto %d, first %t, fragment %t, %d bytes", p.Proto, p.First, p.Fragment, len(p.Payload()))
		return
	}
	if v.tcp != nil && !p.IsTCP() && v.doubts == "" || p.IsTCP() && v.tcp == nil && v.doubts == "" {
		bad("TCP: %t", p.IsTCP())
	} else if v.tcp != nil && p.IsTCP() {
		segment(&p, v.tcp, whole, bad)
	}
	if !p.Fragment && p.Proto == packet.ProtoUDP {
		ours := p.L4OK
		if v.udp != nil && !ours && v.doubts == "" && v.udp.Length != 0 && !v.truncated || ours && v.udp == nil && v.doubts == "" {
			bad("UDP: %t", ours)
		} else if ours && v.udp != nil && (p.UDP().SrcPort() != uint16(v.udp.SrcPort) || p.UDP().DstPort() != uint16(v.udp.DstPort) ||
			p.UDP().Len() != int(v.udp.Length) || p.UDP().Checksum() != v.udp.Checksum) {
			bad("UDP fields")
		} else if whole && packet.Sum(p.PseudoSum(), p.Payload()) != 0xffff {
			bad("UDP checksum")
		}
	}
}

// Extension headers, and what gopacket decodes behind IPv6.
var (
	ext   = map[uint8]bool{0: true, 43: true, 44: true, 51: true, 60: true, 135: true, 139: true, 140: true}
	known = map[uint8]bool{0: true, 6: true, 17: true, 43: true, 44: true, 58: true, 60: true}
)

func segment(p *packet.Packet, v *layers.TCP, whole bool, bad func(string, ...any)) {
	h := p.TCP()
	flag := func(f uint8) bool { return h.Flags()&f != 0 }
	if h.SrcPort() != uint16(v.SrcPort) || h.DstPort() != uint16(v.DstPort) || h.Seq() != v.Seq || h.Ack() != v.Ack ||
		h.HeaderLen() != int(v.DataOffset)*4 || h.Checksum() != v.Checksum || !bytes.Equal(h.Payload(), v.Payload) ||
		flag(packet.FIN) != v.FIN || flag(packet.SYN) != v.SYN || flag(packet.RST) != v.RST ||
		flag(packet.PSH) != v.PSH || flag(packet.ACK) != v.ACK || flag(packet.URG) != v.URG {
		bad("TCP fields")
	}
	opts := h.Options()
	for _, o := range v.Options {
		if o.OptionType == packet.OptEnd {
			break
		}
		if o.OptionType == packet.OptNop {
			continue
		}
		kind, data, rest, ok := packet.NextOption(opts)
		if !ok || kind != uint8(o.OptionType) || !bytes.Equal(data, o.OptionData) {
			bad("option %d %x %t, gopacket's %v", kind, data, ok, o)
			return
		}
		opts = rest
	}
	if kind, _, _, ok := packet.NextOption(opts); ok {
		bad("an option %d too many", kind)
	}
	if whole && p.TCPChecksum() != v.Checksum {
		bad("checksum %#x, gopacket's %#x", p.TCPChecksum(), v.Checksum)
	}
}

func frames(t testing.TB) int {
	if testing.Short() {
		return 2000
	}
	return 60000
}

func TestWholeFramesReadTheSame(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	kinds := map[string]int{}
	for range frames(t) {
		f := randomFrame(t, r)
		agree(t, f, true)
		if t.Failed() {
			return
		}
		var p packet.Packet
		p.Parse(f)
		kinds[fmt.Sprintf("kind %d tcp %t fragment %t tags %t", p.Kind, p.IsTCP(), p.Fragment, p.Tags > 0)]++
	}
	if len(kinds) != 2+2*6 {
		t.Errorf("not all kinds were there: %v", kinds)
	}
}

func TestBrokenFramesReadTheSame(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range frames(t) {
		f := randomFrame(t, r)
		if r.IntN(3) == 0 {
			f = f[:r.IntN(len(f)+1)]
		}
		for range r.IntN(4) {
			if len(f) > 12 {
				// Where the lengths and types are.
				f[12+r.IntN(min(len(f)-12, 72))] = byte(r.Uint32())
			}
		}
		agree(t, f, false)
		if t.Failed() {
			return
		}
	}
}
