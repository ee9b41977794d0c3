package packet

import "encoding/binary"

// EtherTypes (IEEE 802 numbers).
const (
	TypeIPv4 = 0x0800
	TypeARP  = 0x0806
	TypeVLAN = 0x8100 // 802.1Q
	TypeQinQ = 0x88a8 // 802.1ad
	TypeIPv6 = 0x86dd
)

// Protocol numbers of the IP header (IANA).
const (
	ProtoHopByHop = 0
	ProtoICMP     = 1
	ProtoTCP      = 6
	ProtoUDP      = 17
	ProtoDCCP     = 33
	ProtoRouting  = 43
	ProtoFragment = 44
	ProtoESP      = 50
	ProtoAH       = 51
	ProtoICMPv6   = 58
	ProtoNoNext   = 59
	ProtoDestOpts = 60
	ProtoSCTP     = 132
	ProtoMobility = 135
	ProtoUDPLite  = 136
	ProtoHIP      = 139
	ProtoShim6    = 140
)

// Lengths of headers without options, in bytes.
const (
	EthernetLen = 14
	TagLen      = 4
	IPv4Len     = 20
	IPv6Len     = 40
	TCPLen      = 20
	UDPLen      = 8
	ICMPLen     = 8
)

// Ethernet is a frame, from its destination address on.
type Ethernet []byte

// Dst returns the destination address.
func (e Ethernet) Dst() []byte { return e[0:6] }

// Src returns the source address.
func (e Ethernet) Src() []byte { return e[6:12] }

// Type returns the type, which is that of a tag if the frame has one.
func (e Ethernet) Type() uint16 { return binary.BigEndian.Uint16(e[12:]) }

// IPv4 is a packet of RFC 791, from its header on.
type IPv4 []byte

// Version returns the version field, 4.
func (h IPv4) Version() int { return int(h[0] >> 4) }

// HeaderLen returns the length of the header with its options, in bytes.
func (h IPv4) HeaderLen() int { return int(h[0]&15) * 4 }

// TotalLen returns the length of the packet, in bytes.
func (h IPv4) TotalLen() int { return int(binary.BigEndian.Uint16(h[2:])) }

// ID returns the identification.
func (h IPv4) ID() uint16 { return binary.BigEndian.Uint16(h[4:]) }

// MoreFragments reports the flag of this name.
func (h IPv4) MoreFragments() bool { return h[6]&0x20 != 0 }

// FragmentOffset returns the fragment offset in bytes.
func (h IPv4) FragmentOffset() int { return int(binary.BigEndian.Uint16(h[6:])&0x1fff) * 8 }

// Proto returns the protocol number.
func (h IPv4) Proto() uint8 { return h[9] }

// Checksum returns the header checksum.
func (h IPv4) Checksum() uint16 { return binary.BigEndian.Uint16(h[10:]) }

// Src returns the source address.
func (h IPv4) Src() []byte { return h[12:16] }

// Dst returns the destination address.
func (h IPv4) Dst() []byte { return h[16:20] }

// IPv6 is a packet of RFC 8200, from its header on.
type IPv6 []byte

// Version returns the version field, 6.
func (h IPv6) Version() int { return int(h[0] >> 4) }

// PayloadLen returns the length of what follows the header, in bytes.
func (h IPv6) PayloadLen() int { return int(binary.BigEndian.Uint16(h[4:])) }

// NextHeader returns the number of the first extension header or protocol.
func (h IPv6) NextHeader() uint8 { return h[6] }

// Src returns the source address.
func (h IPv6) Src() []byte { return h[8:24] }

// Dst returns the destination address.
func (h IPv6) Dst() []byte { return h[24:40] }

// TCP is a segment of RFC 9293, from its header to the end of its data.
type TCP []byte

// The control bits of TCP.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
)

// SrcPort returns the source port.
func (h TCP) SrcPort() uint16 { return binary.BigEndian.Uint16(h[0:]) }

// DstPort returns the destination port.
func (h TCP) DstPort() uint16 { return binary.BigEndian.Uint16(h[2:]) }

// Seq returns the sequence number.
func (h TCP) Seq() uint32 { return binary.BigEndian.Uint32(h[4:]) }

// SetSeq changes the sequence number, and not the checksum.
func (h TCP) SetSeq(v uint32) { binary.BigEndian.PutUint32(h[4:], v) }

// Ack returns the acknowledgment number.
func (h TCP) Ack() uint32 { return binary.BigEndian.Uint32(h[8:]) }

// SetAck changes the acknowledgment number, and not the checksum.
func (h TCP) SetAck(v uint32) { binary.BigEndian.PutUint32(h[8:], v) }

// HeaderLen returns the length of the header with its options, in bytes.
func (h TCP) HeaderLen() int { return int(h[12]>>4) * 4 }

// Flags returns the control bits.
func (h TCP) Flags() uint8 { return h[13] }

// Checksum returns the checksum.
func (h TCP) Checksum() uint16 { return binary.BigEndian.Uint16(h[16:]) }

// SetChecksum changes the checksum.
func (h TCP) SetChecksum(v uint16) { binary.BigEndian.PutUint16(h[16:], v) }

// Options returns the options, for [NextOption].
func (h TCP) Options() []byte { return h[TCPLen:h.HeaderLen()] }

// Payload returns the data.
func (h TCP) Payload() []byte { return h[h.HeaderLen():] }

// Kinds of TCP options (RFC 9293, 7323, 2018, 2385, 5925, 8684).
const (
	OptEnd        = 0
	OptNop        = 1
	OptMSS        = 2
	OptWScale     = 3
	OptSACKPermit = 4
	OptSACK       = 5
	OptTimestamps = 8
	OptMD5        = 19
	OptAO         = 29
	OptMultipath  = 30
)

// Signed reports whether the segment carries a signature over itself (TCP-MD5,
// RFC 2385, or TCP-AO, RFC 5925), which no change of it survives.
func (h TCP) Signed() bool {
	opts := h.Options()
	if len(opts) == 12 && binary.BigEndian.Uint32(opts) == 0x0101080a {
		return false // what nearly all segments have: timestamps, and no more
	}
	for {
		kind, _, rest, ok := NextOption(opts)
		if !ok {
			return false
		}
		if kind == OptMD5 || kind == OptAO {
			return true
		}
		opts = rest
	}
}

// NextOption takes the first option off opts and returns its kind and its data.
// Padding is passed over. At the end of the list, or where it is malformed, ok
// is false.
func NextOption(opts []byte) (kind uint8, data, rest []byte, ok bool) {
	for len(opts) > 0 && opts[0] == OptNop {
		opts = opts[1:]
	}
	if len(opts) < 2 || opts[0] == OptEnd || opts[1] < 2 || int(opts[1]) > len(opts) {
		return 0, nil, nil, false
	}
	n := opts[1]
	return opts[0], opts[2:n:n], opts[n:], true
}

// UDP is a datagram of RFC 768.
type UDP []byte

// SrcPort returns the source port.
func (h UDP) SrcPort() uint16 { return binary.BigEndian.Uint16(h[0:]) }

// DstPort returns the destination port.
func (h UDP) DstPort() uint16 { return binary.BigEndian.Uint16(h[2:]) }

// Len returns the length field: header and data, in bytes.
func (h UDP) Len() int { return int(binary.BigEndian.Uint16(h[4:])) }

// Checksum returns the checksum; 0 is none.
func (h UDP) Checksum() uint16 { return binary.BigEndian.Uint16(h[6:]) }
