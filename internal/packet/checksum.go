package packet

import (
	"encoding/binary"
	"math/bits"
)

// Sum adds the 16-bit words of b to sum, in ones' complement (RFC 1071). An odd
// last byte counts as if followed by zero; only the last piece may be odd.
func Sum(sum uint16, b []byte) uint16 {
	// The sum of words in the other byte order is the sum in the other byte
	// order (RFC 1071 section 2): the one that needs no swapping is taken.
	acc := uint64(bits.ReverseBytes16(sum))
	var c uint64
	for len(b) >= 64 {
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b), 0)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[8:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[16:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[24:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[32:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[40:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[48:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[56:]), c)
		acc, c = bits.Add64(acc, 0, c)
		acc += c
		b = b[64:]
	}
	for len(b) >= 8 {
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b), 0)
		acc += c // there is room: a sum that has carried is not all ones
		b = b[8:]
	}
	acc = acc>>32 + acc&0xffffffff
	for len(b) >= 2 {
		acc += uint64(binary.LittleEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) > 0 {
		acc += uint64(b[0])
	}
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return bits.ReverseBytes16(uint16(acc>>16 + acc))
}

// Checksum returns the Internet checksum of b.
func Checksum(b []byte) uint16 { return ^Sum(0, b) }

// PseudoSum returns the sum of the pseudo-header of an IP packet (RFC 9293
// section 3.1, RFC 8200 section 8.1) for the protocol and length of what is at
// L4.
func (p *Packet) PseudoSum() uint16 {
	var sum uint16
	if p.Kind == IP4 {
		sum = Sum(Sum(0, p.Frame[p.L3+12:p.L3+16]), p.Frame[p.dst():][:4])
	} else {
		sum = Sum(Sum(0, p.Frame[p.L3+8:p.L3+24]), p.Frame[p.dst():][:16])
	}
	return add(add(sum, uint16(p.Proto)), uint16(p.End-p.L4))
}

// TCPChecksum returns what the segment's checksum ought to be, whatever it is
// now. IsTCP reports whether there is a segment.
func (p *Packet) TCPChecksum() uint16 {
	// Without options or extensions the addresses lie in front of the segment,
	// so that one pass does for both.
	from := p.L4
	switch {
	case p.Kind == IP4 && p.L4 == p.L3+IPv4Len:
		from -= 8
	case p.Kind == IP6 && p.L4 == p.L3+IPv6Len:
		from -= 32
	default:
		b := p.Frame[p.L4:p.End]
		return ^Sum(Sum(p.PseudoSum(), b[:16]), b[18:])
	}
	was := TCP(p.Frame[p.L4:p.End]).Checksum()
	sum := Sum(0, p.Frame[from:p.End])
	// Taking it out is adding its complement.
	return ^add(add(sum, ^was), add(ProtoTCP, uint16(p.End-p.L4)))
}

// Damaged reports whether a guest drops the segment, which comes with the virtio-net header v,
// because its checksum is wrong. That is not known, and so taken for no, where the virtio-net
// header says that the guest need not look at it, where there is none but a zero, and where
// extensions of IPv6 may put another address into the pseudo-header (RFC 8200 section 8.1, RFC
// 6275 section 11.3.1). All of the segment is read: it is asked only of one that would change
// what is known of a connection. IsTCP reports whether there is a segment.
func (p *Packet) Damaged(v VNet) bool {
	sum := p.TCP().Checksum()
	switch {
	case v != nil && v.Flags()&(VNetNeedsCsum|VNetDataValid) != 0:
		return false
	case sum == 0, p.Routed, p.Kind == IP6 && p.L4 != p.L3+IPv6Len:
		return false
	}
	want := p.TCPChecksum()
	return sum != want && (sum != 0xffff || want != 0)
}

// Update returns the checksum sum after a 32-bit field that it covers, at an
// even offset, went from old to new (RFC 1624, equation 3). It is as right or
// wrong as sum was.
func Update(sum uint16, old, new uint32) uint16 {
	s := uint32(^sum) + uint32(^uint16(old>>16)) + uint32(^uint16(old)) + new>>16 + new&0xffff
	s = s>>16 + s&0xffff
	return ^uint16(s>>16 + s)
}

// add is ones' complement addition.
func add(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s>>16 + s)
}
