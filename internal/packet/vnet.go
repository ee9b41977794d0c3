package packet

import "encoding/binary"

// Lengths of a virtio-net header, in bytes (VIRTIO 1.2 section 5.1.6, and
// linux/virtio_net.h for the last).
const (
	VNetLen       = 10 // struct virtio_net_hdr
	VNetMergeLen  = 12 // with num_buffers
	VNetHashLen   = 20 // with a hash report
	VNetTunnelLen = 24 // with the offsets of a tunnel's headers
)

// Flags of a virtio-net header.
const (
	VNetNeedsCsum = 1 << iota // the checksum at CsumStart is partial
	VNetDataValid             // the checksum was verified
	VNetRSCInfo               // CsumStart and CsumOffset count coalesced segments
)

// Values of GSOType, to which GSOECN may be added.
const (
	GSONone  = 0
	GSOTCPv4 = 1
	GSOUDP   = 3 // one datagram, to be cut into IP fragments
	GSOTCPv6 = 4
	GSOUDPL4 = 5 // datagrams of GSOSize bytes of data each
	GSOECN   = 0x80
)

// A VNet is the virtio-net header that a frame begins with, of at least VNetLen
// bytes. Its numbers are little-endian, as they are for a device of VIRTIO 1 and
// for a legacy one on the machines that this module runs on.
type VNet []byte

// VNetOf returns the header of frame, whose length is hdrLen bytes; nil if there
// is none, or it is too short to say anything.
func VNetOf(frame []byte, hdrLen int) VNet {
	if hdrLen < VNetLen || hdrLen > len(frame) {
		return nil
	}
	return VNet(frame[:hdrLen:hdrLen])
}

// Flags returns the flags.
func (h VNet) Flags() uint8 { return h[0] }

// GSOType returns how the frame is to be segmented, with GSOECN.
func (h VNet) GSOType() uint8 { return h[1] }

// Cuts reports whether a device can cut packets of a kind and protocol in the way that the
// header says, if it says one: a device that is told of another protocol than the packet's
// drops the packet, or writes to it where that has something else. A nil header says nothing.
func (h VNet) Cuts(kind Kind, proto uint8) bool {
	if len(h) < VNetLen {
		return true
	}
	switch h.GSOType() &^ GSOECN {
	case GSONone:
		return true
	case GSOTCPv4:
		return kind == IP4 && proto == ProtoTCP
	case GSOTCPv6:
		return kind == IP6 && proto == ProtoTCP
	case GSOUDP, GSOUDPL4:
		return proto == ProtoUDP
	}
	return false
}

// HdrLen returns what the sender says of the length of the headers, in bytes. It
// is a hint.
func (h VNet) HdrLen() int { return int(binary.LittleEndian.Uint16(h[2:])) }

// GSOSize returns how much data each segment takes, in bytes.
func (h VNet) GSOSize() int { return int(binary.LittleEndian.Uint16(h[4:])) }

// CsumStart returns where what the checksum covers begins, in bytes from the
// beginning of the Ethernet header.
func (h VNet) CsumStart() int { return int(binary.LittleEndian.Uint16(h[6:])) }

// CsumOffset returns where the checksum is, in bytes from CsumStart.
func (h VNet) CsumOffset() int { return int(binary.LittleEndian.Uint16(h[8:])) }

// PartialChecksum reports whether the header says that the checksum at offset
// field of what is at L4 is partial: the sum of the pseudo-header, to which
// whoever sends the frame on a wire adds the rest (VIRTIO_NET_HDR_F_NEEDS_CSUM).
// Changes behind the pseudo-header leave it right. A header that says so without
// saying where means the packet's only one. A nil header says nothing.
func (h VNet) PartialChecksum(p *Packet, field int) bool {
	if len(h) < VNetLen || h.Flags()&VNetNeedsCsum == 0 {
		return false
	}
	return h.CsumStart() == 0 && h.CsumOffset() == 0 || h.CsumStart() == p.L4 && h.CsumOffset() == field
}

// Complete completes the checksum of a frame, which is given without its header, if
// the header says that it is partial. It returns false if that is beyond the frame.
func (h VNet) Complete(frame []byte) bool {
	if h.Flags()&VNetNeedsCsum == 0 {
		return true
	}
	start, at := h.CsumStart(), h.CsumStart()+h.CsumOffset()
	if at+2 > len(frame) {
		return false
	}
	sum := Checksum(frame[start:])
	if sum == 0 {
		sum = 0xffff // the same number, and not "none" to UDP (RFC 768)
	}
	binary.BigEndian.PutUint16(frame[at:], sum)
	return true
}

// Offsets of the checksums of transport headers.
const (
	TCPChecksumAt  = 16
	UDPChecksumAt  = 6
	ICMPChecksumAt = 2
)

// ParseVNet parses a frame behind its virtio-net header of hdrLen bytes. Offsets
// of p count from the Ethernet header. The kind is Malformed if the frame is
// shorter than the header.
func (p *Packet) ParseVNet(frame []byte, hdrLen int) Kind {
	if hdrLen < 0 || hdrLen > len(frame) {
		*p = Packet{}
		return Malformed
	}
	return p.Parse(frame[hdrLen:])
}

// Body returns the data of a TCP segment or a UDP datagram, in the frame's own
// memory. A segment of 64 KiB that the sender has left to be cut (TSO) is a
// segment like another: its data are the same piece of the stream. ok is false for
// what is neither, or is malformed or a fragment.
func (p *Packet) Body() (data []byte, ok bool) {
	switch {
	case !p.L4OK || p.Fragment:
		return nil, false
	case p.Proto == ProtoTCP:
		return p.TCP().Payload(), true
	case p.Proto == ProtoUDP:
		u := p.UDP()
		return u[UDPLen:u.Len()], true
	}
	return nil, false
}

// Datagrams returns how many datagrams the data of a UDP frame become, and how long
// each but the last is. They are several if the sender has left the cutting to its
// device (GSOUDPL4), and otherwise one. Body is ok for the frame.
func (h VNet) Datagrams(data []byte) (n, size int) {
	size = len(data)
	if len(h) >= VNetLen && h.GSOType()&^GSOECN == GSOUDPL4 && h.GSOSize() > 0 && h.GSOSize() < size {
		size = h.GSOSize()
		return (len(data) + size - 1) / size, size
	}
	return 1, size
}

// Overlap compares what two pieces of one byte stream have in common: a begins at
// position aSeq of the stream, b at bSeq, in serial numbers (RFC 9293 section
// 3.4), and the pieces are however long the two senders or their devices made
// them, up to 64 KiB. It returns where the common part begins, its length in
// bytes, and how many of these agree from there on: all of them if equal is n.
func Overlap(aSeq uint32, a []byte, bSeq uint32, b []byte) (from uint32, n, equal int) {
	from = aSeq
	if d := int32(bSeq - aSeq); d > 0 {
		from = bSeq
		a = a[min(int(d), len(a)):]
	} else {
		b = b[min(-int(d), len(b)):]
	}
	n = min(len(a), len(b))
	return from, n, prefix(a[:n], b[:n])
}

// prefix returns how many bytes at the beginning of a and b, which are equally
// long, agree.
func prefix(a, b []byte) int {
	if string(a) == string(b) { // a comparison of memory, without a copy
		return len(a)
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}
