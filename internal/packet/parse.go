package packet

import "encoding/binary"

// A Kind says how far a frame could be understood.
type Kind uint8

// The kinds.
const (
	Malformed Kind = iota // too short, or a header that contradicts itself
	Other                 // some other EtherType
	ARP
	IP4
	IP6
)

// A Packet says where the parts of a frame are. It is reused: Parse sets all
// of it. Offsets count from the beginning of the frame.
type Packet struct {
	Frame []byte // as given, without a virtio-net header
	Kind  Kind
	Tags  int    // number of VLAN tags, those of VLAN 0 included
	Link  Link   // the VLANs, and PPP over Ethernet
	Type  uint16 // the EtherType behind them

	L3  int // the network header
	L4  int // what the IP header and its extensions are followed by
	End int // the end of the IP packet; what is behind it is padding

	bound int // where the frame's data ends, as far as the link says so
	last  int // where the address of the last destination is, in a route of IPv4 or a segment routing header of IPv6; 0: in the IP header

	Proto    uint8 // IANA's number of the protocol at L4
	Fragment bool  // the packet is a fragment: what is at L4 is part of something
	First    bool  // it is the first one, and has the transport header
	Ident    int   // of a fragment of IPv6: where the identification is
	Sealed   bool  // an authentication header of IPv6 covers the packet (RFC 4302), which no change of it survives
	Routed   bool  // it goes to other destinations first, and which is the last is not known here; or it is from another source than its header says
	L4OK     bool  // TCP, UDP, ICMP and ICMPv6: the transport header is whole and consistent
}

// Parse looks at a frame. It keeps the slice and returns the kind.
func (p *Packet) Parse(frame []byte) Kind {
	*p = Packet{Frame: frame}
	if len(frame) < EthernetLen {
		return Malformed
	}
	if !p.link() {
		return Malformed
	}
	switch p.Type {
	case TypeIPv4:
		if p.ipv4() {
			p.Kind = IP4
		}
	case TypeIPv6:
		if p.ipv6() {
			p.Kind = IP6
		}
	case TypeARP:
		p.Kind = ARP
	default:
		p.Kind = Other
	}
	if p.Kind == IP4 || p.Kind == IP6 {
		p.L4OK = p.transport()
	}
	return p.Kind
}

func (p *Packet) ipv4() bool {
	b := p.Frame[p.L3:p.bound]
	if len(b) < IPv4Len {
		return false
	}
	h := IPv4(b)
	n, total := h.HeaderLen(), h.TotalLen()
	if h.Version() != 4 || n < IPv4Len || total < n || total > len(b) {
		return false
	}
	p.L4, p.End = p.L3+n, p.L3+total
	p.Proto = h.Proto()
	p.First = h.FragmentOffset() == 0
	p.Fragment = !p.First || h.MoreFragments()
	if n > IPv4Len {
		p.last, p.Routed = lastHop(h[:n])
		if p.last > 0 {
			p.last += p.L3
		}
	}
	return true
}

// lastHop returns where the address of the last destination is in a header of IPv4 whose
// options have a route that is not run yet (RFC 791 section 3.1): it is at the end of the route.
// Without one it returns 0. Where nobody can tell which destination is the last, unclear is true.
func lastHop(h []byte) (at int, unclear bool) {
	const end, nop, loose, strict = 0, 1, 0x83, 0x89
	for i := IPv4Len; i < len(h) && h[i] != end; {
		if h[i] == nop {
			i++
			continue
		}
		if len(h)-i < 2 || h[i+1] < 2 || int(h[i+1]) > len(h)-i {
			return at, false // what is behind it nobody reads
		}
		n := int(h[i+1])
		if o := h[i:][:n]; o[0] == loose || o[0] == strict {
			const route, address = 3, 4
			switch {
			case n < route, int(o[2]) <= n && (at > 0 || o[2] < address || o[2]%address != 0 || n%address != route):
				return 0, true
			case int(o[2]) <= n:
				at = i + n - address
			}
		}
		i += n
	}
	return at, false
}

func (p *Packet) ipv6() bool {
	b := p.Frame[p.L3:p.bound]
	if len(b) < IPv6Len {
		return false
	}
	h := IPv6(b)
	if h.Version() != 6 || h.PayloadLen() > len(b)-IPv6Len {
		return false
	}
	at, end := p.L3+IPv6Len, p.L3+IPv6Len+h.PayloadLen()
	next := h.NextHeader()
	p.First = true
	for {
		var n int
		switch next {
		case ProtoHopByHop, ProtoRouting, ProtoDestOpts, ProtoMobility, ProtoHIP, ProtoShim6:
			if end-at < 8 {
				return false
			}
			n = 8 + 8*int(p.Frame[at+1])
			if next == ProtoRouting && p.Frame[at+3] > 0 && n <= end-at {
				l, ok := lastSegment(p.Frame[at : at+n])
				p.Routed = p.Routed || !ok || p.last > 0
				p.last = at + l
			}
			if n <= end-at && (next == ProtoShim6 || next == ProtoDestOpts && hasHome(p.Frame[at:at+n])) {
				p.Routed = true
			}
		case ProtoAH:
			if end-at < 8 {
				return false
			}
			n = 8 + 4*int(p.Frame[at+1])
			p.Sealed = true
		case ProtoFragment:
			if end-at < 8 {
				return false
			}
			v := binary.BigEndian.Uint16(p.Frame[at+2:])
			if v&^6 != 0 { // an atomic fragment is none (RFC 6946)
				p.Fragment, p.Ident = true, at+4
			}
			p.First = p.First && v&^7 == 0
			n = 8
		default:
			p.L4, p.End, p.Proto = at, end, next
			return true
		}
		if n > end-at {
			return false
		}
		next = p.Frame[at]
		at += n
		if !p.First { // what follows is the middle of something
			p.L4, p.End, p.Proto = at, end, next
			return true
		}
	}
}

// lastSegment returns where the address of the last destination is in a routing header of
// IPv6 that has segments left: of segment routing it is the first in the list (RFC 8754
// section 2). Of other types the last address stands elsewhere, or in another form (RFC 5095,
// RFC 6275 section 6.4, RFC 6554), and ok is false.
func lastSegment(b []byte) (at int, ok bool) {
	const segmentRouting = 4
	return 8, b[2] == segmentRouting && len(b) >= 8+16
}

// hasHome reports whether a header of destination options of IPv6 names another source than the
// IP header does (RFC 6275 section 6.3).
func hasHome(b []byte) bool {
	const pad, homeAddress = 0, 0xc9
	for b = b[2:]; len(b) > 0; {
		switch {
		case b[0] == pad:
			b = b[1:]
			continue
		case b[0] == homeAddress:
			return true
		case len(b) < 2 || len(b) < 2+int(b[1]):
			return false
		}
		b = b[2+int(b[1]):]
	}
	return false
}

func (p *Packet) transport() bool {
	b := p.Frame[p.L4:p.End]
	switch {
	case !p.First:
		return false
	case p.Proto == ProtoTCP:
		return len(b) >= TCPLen && TCP(b).HeaderLen() >= TCPLen && TCP(b).HeaderLen() <= len(b)
	case p.Proto == ProtoUDP:
		return len(b) >= UDPLen && UDP(b).Len() >= UDPLen && (UDP(b).Len() <= len(b) || p.Fragment)
	case p.Proto == ProtoICMP && p.Kind == IP4, p.Proto == ProtoICMPv6 && p.Kind == IP6:
		return len(b) >= ICMPLen
	}
	return false
}

// IPv4 returns the packet without padding. The kind is IP4.
func (p *Packet) IPv4() IPv4 { return IPv4(p.Frame[p.L3:p.End]) }

// IPv6 returns the packet without padding. The kind is IP6.
func (p *Packet) IPv6() IPv6 { return IPv6(p.Frame[p.L3:p.End]) }

// IsTCP reports whether the frame has one whole TCP segment.
func (p *Packet) IsTCP() bool { return p.Proto == ProtoTCP && p.L4OK && !p.Fragment }

// Signed reports whether a signature covers the segment, so that no change of it survives:
// an option of its own (TCP-MD5, TCP-AO), or an authentication header before it. IsTCP
// reports whether there is a segment.
func (p *Packet) Signed() bool { return p.Sealed || p.TCP().Signed() }

// TCP returns the segment. IsTCP reports whether there is one.
func (p *Packet) TCP() TCP { return TCP(p.Frame[p.L4:p.End]) }

// UDP returns the datagram. The protocol is UDP, and L4OK.
func (p *Packet) UDP() UDP { return UDP(p.Frame[p.L4:p.End]) }

// Payload returns what is behind the IP header and its extensions.
func (p *Packet) Payload() []byte { return p.Frame[p.L4:p.End] }

// A Key names a flow in one direction. It is comparable.
type Key struct {
	Src, Dst [16]byte // an IPv4 address is in the first four bytes
	Ports    uint32   // source port, destination port; what stands for them elsewhere, or 0
	Proto    uint8
	Kind     Kind
	Layers   uint8  // VLAN tags, and which are 802.1ad; 0x80 for a session of PPP over Ethernet
	VLAN     uint16 // the innermost VLAN, 0 if there is none
	Outer    uint32 // the VLAN around it, and the number of the session, mixed with its two stations
}

// dst returns where the address of the last destination of a packet is. That destination is the end of
// the connection, and the checksum covers its address (RFC 9293 section 3.1, RFC 8200 section 8.1).
func (p *Packet) dst() int {
	switch {
	case p.last > 0 && !p.Routed:
		return p.last
	case p.Kind == IP4:
		return p.L3 + 16
	}
	return p.L3 + 24
}

// Key sets k to the flow of an IP packet, to its last destination where that is known. What is a
// fragment has no ports, all of the fragments between two hosts are one flow. What is no IP packet
// has no addresses.
func (p *Packet) Key(k *Key) {
	*k = Key{Proto: p.Proto, Kind: p.Kind}
	if p.L3 != EthernetLen {
		k.link(&p.Link)
	}
	if p.Kind == IP4 {
		// As arrays, whose length is known, they are moved without a call.
		*(*[4]byte)(k.Src[:]) = [4]byte(p.Frame[p.L3+12:])
		*(*[4]byte)(k.Dst[:]) = [4]byte(p.Frame[p.dst():])
	} else if p.Kind == IP6 {
		k.Src = [16]byte(p.Frame[p.L3+8:])
		k.Dst = [16]byte(p.Frame[p.dst():])
	}
	if p.Fragment {
		return
	}
	b := p.Frame[p.L4:max(p.L4, p.End)]
	switch p.Proto {
	case ProtoTCP, ProtoUDP, ProtoDCCP, ProtoESP, ProtoSCTP, ProtoUDPLite:
		if len(b) >= 4 {
			k.Ports = binary.BigEndian.Uint32(b)
		}
	case ProtoAH:
		if len(b) >= 8 {
			k.Ports = binary.BigEndian.Uint32(b[4:])
		}
	}
}

// HeadKey sets k to the flow of a TCP segment in fragments, if the packet is the first of them and
// has the segment's header, and reports whether it is. TCP returns that part of the segment then.
func (p *Packet) HeadKey(k *Key) bool { return p.L4OK && p.FirstKey(k) }

// FirstKey sets k to the flow of a TCP segment in fragments, if the packet is the first of them, and
// reports whether it is. The header of the segment may go on in the next fragment.
func (p *Packet) FirstKey(k *Key) bool { return p.Proto == ProtoTCP && p.WholeKey(k) }

// WholeKey sets k to the flow that a packet in fragments would be of if it were whole, if this is the first of
// them, and reports whether it is.
func (p *Packet) WholeKey(k *Key) bool {
	if !p.Fragment || !p.First || p.End-p.L4 < 4 {
		return false
	}
	p.Fragment = false
	p.Key(k)
	p.Fragment = true
	return true
}

// Reverse returns the key of the other direction.
func (k Key) Reverse() Key {
	k.Src, k.Dst = k.Dst, k.Src
	k.Ports = k.Ports<<16 | k.Ports>>16
	return k
}
