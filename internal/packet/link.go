package packet

import "encoding/binary"

// PPP over Ethernet (RFC 2516): the EtherType of a session's packets, and the
// protocol numbers of PPP (RFC 1332, RFC 5072) that stand for an EtherType.
const (
	TypePPPoE = 0x8864

	pppIPv4 = 0x0021
	pppIPv6 = 0x0057

	pppoeLen = 8 // the header of RFC 2516 section 4, and PPP's protocol
)

// A Link says what stands between a frame's addresses and its network header.
// Packets of one link have the same Link; the zero Link is none. A tag of VLAN 0 has a
// priority and names no VLAN (802.1Q section 6.9): the answer to a packet with one may have
// none, so such tags are not in a Link.
type Link struct {
	Tags    uint8     // VLAN tags (802.1Q, 802.1ad)
	VLAN    [2]uint16 // the VLANs of the last two, the inner one first
	Service uint8     // which of these two are 802.1ad: bit 0 says it of the inner one, bit 1 of the other
	PPPoE   bool      // a session of PPP over Ethernet
	Session uint16    // the number of the PPPoE session
	Ends    uint32    // of a PPPoE session: which two stations it is between, as ends returns it
}

// Bare reports whether the packet is in no VLAN and no session of PPP.
func (l Link) Bare() bool { return l == Link{} }

// LinkKey sets k to the kind of the packet and what it comes in, and to no
// addresses. The frame may be of any kind.
func (p *Packet) LinkKey(k *Key) {
	*k = Key{Kind: p.Kind}
	k.link(&p.Link)
}

// link sets the fields of k that say what its packets come in.
func (k *Key) link(l *Link) {
	k.Layers, k.VLAN = min(l.Tags, 0xf)|l.Service<<4, l.VLAN[0]
	if l.PPPoE {
		k.Layers |= 0x80
	}
	k.Outer = (uint32(l.VLAN[1])<<16 | uint32(l.Session)) ^ l.Ends
}

// ends returns a number for the two stations of a frame, the same in both directions. Stations
// number their sessions by themselves, so that two sessions may have one number (RFC 2516 section
// 4). Of two pairs of stations one in four billion has the same number here.
func ends(e Ethernet) uint32 {
	const golden = 0x9e3779b97f4a7c15
	mix := func(a []byte) uint32 {
		n := uint64(binary.BigEndian.Uint32(a))<<16 | uint64(binary.BigEndian.Uint16(a[4:]))
		return uint32(n * golden >> 32)
	}
	return mix(e.Dst()) + mix(e.Src())
}

// link looks at what is between the addresses and the network header: it sets
// L3, Type, Tags, Link and, if it is known there, where the packet must have
// ended. It reports whether the headers are whole.
func (p *Packet) link() bool {
	frame := p.Frame
	p.L3, p.bound = EthernetLen, len(frame)
	p.Type = binary.BigEndian.Uint16(frame[12:])
	for p.Type == TypeVLAN || p.Type == TypeQinQ {
		if len(frame) < p.L3+TagLen {
			return false
		}
		if id := binary.BigEndian.Uint16(frame[p.L3:]) & 0xfff; id != 0 {
			p.Link.Service = p.Link.Service << 1 & 3
			if p.Type == TypeQinQ {
				p.Link.Service |= 1
			}
			p.Link.VLAN = [2]uint16{id, p.Link.VLAN[0]}
			p.Link.Tags = uint8(min(int(p.Link.Tags)+1, 255))
		}
		p.Type = binary.BigEndian.Uint16(frame[p.L3+2:])
		p.L3 += TagLen
		p.Tags++
	}
	if p.Type != TypePPPoE {
		return true
	}
	b := frame[p.L3:]
	if len(b) < pppoeLen || b[0] != 0x11 || b[1] != 0 {
		return false
	}
	// The length counts PPP's protocol too.
	n := int(binary.BigEndian.Uint16(b[4:]))
	if n < 2 || n > len(b)-6 {
		return false
	}
	switch binary.BigEndian.Uint16(b[6:]) {
	case pppIPv4:
		p.Type = TypeIPv4
	case pppIPv6:
		p.Type = TypeIPv6
	default:
		return true // the link's own: LCP, authentication
	}
	p.Link.PPPoE, p.Link.Session, p.Link.Ends = true, binary.BigEndian.Uint16(b[2:]), ends(frame)
	p.bound = p.L3 + 6 + n
	p.L3 += pppoeLen
	return true
}
