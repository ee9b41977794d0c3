package packet

import "encoding/binary"

// A Quoted is the TCP segment that an ICMP error or a redirect carries, as far as it
// carries it: the beginning of a packet which its receiver had sent (RFC 792, RFC 4443
// section 3, RFC 4861 section 4.6.3). There are at least its ports and its sequence number.
type Quoted struct {
	L4  int // where the segment begins, in bytes from the beginning of the frame
	End int // where what is quoted ends
	Key Key // the flow of the segment, in the direction of the segment
}

// ICMPError reports whether the message at L4 is an error or a redirect, which quotes a
// packet.
func (p *Packet) ICMPError() bool {
	if !p.L4OK || p.Fragment {
		return false
	}
	switch t := p.Frame[p.L4]; {
	case p.Kind == IP4 && p.Proto == ProtoICMP:
		return t == 3 || t == 4 || t == 5 || t == 11 || t == 12
	case p.Kind == IP6 && p.Proto == ProtoICMPv6:
		return t >= 1 && t <= 4 || t == ndRedirect
	}
	return false
}

// A redirect of IPv6 is a message of neighbour discovery, which quotes a packet in an option.
const (
	ndRedirect        = 137
	ndRedirectLen     = 40 // without options
	ndRedirectedOpt   = 4
	ndRedirectedAtOpt = 8 // where the packet begins in the option
)

// redirected returns where the packet that a redirect of IPv6 quotes begins and ends.
func (p *Packet) redirected() (at, end int, ok bool) {
	for at = p.L4 + ndRedirectLen; p.End-at >= ndRedirectedAtOpt; {
		n := 8 * int(p.Frame[at+1])
		if n == 0 || n > p.End-at {
			return 0, 0, false
		}
		if p.Frame[at] == ndRedirectedOpt {
			return at + ndRedirectedAtOpt, at + n, true
		}
		at += n
	}
	return 0, 0, false
}

// Quoted sets q to the TCP segment that the packet quotes, and reports whether
// there is one. The quoted packet is mostly cut, and what is beyond 8 bytes of the
// segment need not be there.
func (p *Packet) Quoted(q *Quoted) bool {
	if !p.ICMPError() {
		return false
	}
	at, end := p.L4+ICMPLen, p.End
	if p.Kind == IP6 && p.Frame[p.L4] == ndRedirect {
		var ok bool
		if at, end, ok = p.redirected(); !ok {
			return false
		}
	}
	b := p.Frame[at:end]
	*q = Quoted{End: end, Key: Key{Proto: ProtoTCP, Kind: p.Kind}}
	if p.L3 != EthernetLen {
		q.Key.link(&p.Link)
	}
	if p.Kind == IP4 {
		if len(b) < IPv4Len {
			return false
		}
		h := IPv4(b)
		n := h.HeaderLen()
		if h.Version() != 4 || n < IPv4Len || n > len(b) || h.Proto() != ProtoTCP || h.FragmentOffset() != 0 {
			return false
		}
		copy(q.Key.Src[:], h.Src())
		copy(q.Key.Dst[:], h.Dst())
		if last, unclear := lastHop(h[:n]); last > 0 && !unclear {
			copy(q.Key.Dst[:], h[last:][:4])
		}
		q.L4 = at + n
	} else {
		if len(b) < IPv6Len {
			return false
		}
		h := IPv6(b)
		if h.Version() != 6 {
			return false
		}
		n, last, ok := quotedExtensions(b)
		if !ok {
			return false
		}
		copy(q.Key.Src[:], h.Src())
		copy(q.Key.Dst[:], b[last:][:16])
		q.L4 = at + n
	}
	if end-q.L4 < 8 {
		return false
	}
	q.Key.Ports = binary.BigEndian.Uint32(p.Frame[q.L4:])
	return true
}

// quotedExtensions returns how long the headers of a quoted IPv6 packet are in
// front of its TCP segment, and where the address of its last destination is, as far as that is
// known.
func quotedExtensions(b []byte) (n, last int, ok bool) {
	const dst = 24
	last = dst
	routed := false
	next := IPv6(b).NextHeader()
	for n = IPv6Len; ; {
		if next == ProtoTCP {
			if routed {
				last = dst
			}
			return n, last, true
		}
		if len(b)-n < 8 {
			return 0, 0, false
		}
		step := 8
		switch next {
		case ProtoHopByHop, ProtoRouting, ProtoDestOpts, ProtoMobility, ProtoHIP, ProtoShim6:
			step += 8 * int(b[n+1])
		case ProtoAH:
			step += 4 * int(b[n+1])
		case ProtoFragment:
			if binary.BigEndian.Uint16(b[n+2:])&^7 != 0 {
				return 0, 0, false
			}
		default:
			return 0, 0, false
		}
		if step > len(b)-n {
			return 0, 0, false
		}
		if next == ProtoRouting && b[n+3] > 0 {
			l, ok := lastSegment(b[n : n+step])
			routed = routed || !ok || last != dst
			last = n + l
		}
		next = b[n]
		n += step
	}
}

// Replace32 changes the 32-bit number at offset at of the frame, which lies behind
// an Internet checksum at offset sumAt, at an even distance from the beginning of
// what that covers, and the checksum with it: it is as right or wrong as before.
func Replace32(frame []byte, sumAt, at int, v uint32) {
	old := binary.BigEndian.Uint32(frame[at:])
	sum := binary.BigEndian.Uint16(frame[sumAt:])
	binary.BigEndian.PutUint16(frame[sumAt:], Update(sum, old, v))
	binary.BigEndian.PutUint32(frame[at:], v)
}
