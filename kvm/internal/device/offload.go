package device

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// The work on checksums and segments that a driver and a card can leave to each other, by
// feature bits. (Virtio 1.1, section 5.1.3.)
const (
	netCsum      = 1 << 0  // VIRTIO_NET_F_CSUM: the guest sends partial checksums
	netGuestCsum = 1 << 1  // VIRTIO_NET_F_GUEST_CSUM: and takes them
	netGuestTSO4 = 1 << 7  // VIRTIO_NET_F_GUEST_TSO4: it takes segments of up to 64 KiB
	netGuestTSO6 = 1 << 8  // VIRTIO_NET_F_GUEST_TSO6
	netHostTSO4  = 1 << 11 // VIRTIO_NET_F_HOST_TSO4: and sends them
	netHostTSO6  = 1 << 12 // VIRTIO_NET_F_HOST_TSO6
	netMerge     = 1 << 15 // VIRTIO_NET_F_MRG_RXBUF: a frame for the guest may take several buffers

	netOffloads = netCsum | netGuestCsum | netGuestTSO4 | netGuestTSO6 | netHostTSO4 | netHostTSO6 | netMerge
)

// leastGSO is the least data that a segment may be cut into. It bounds how many frames one
// frame becomes. No TCP sends less: the least MSS that it believes of the other side is 48,
// of which options can take 40.
const leastGSO = 8

// honest reports whether the work that a header asks for can be done on the frame behind it.
// It clears the fields that the flags do not use, and corrects the length of the headers. The
// only segmentation is that of TCP, with a partial checksum.
func honest(h packet.VNet, frame []byte) bool {
	flags := h.Flags() & (packet.VNetNeedsCsum | packet.VNetDataValid)
	kind, size := h.GSOType(), h.GSOSize()
	start, field := h.CsumStart(), h.CsumOffset()
	if kind != packet.GSONone {
		var p packet.Packet
		p.Parse(frame)
		ip := packet.IP4
		if kind&^packet.GSOECN == packet.GSOTCPv6 {
			ip = packet.IP6
		} else if kind&^packet.GSOECN != packet.GSOTCPv4 {
			return false
		}
		if p.Kind != ip || !p.IsTCP() || p.End != len(frame) || size < leastGSO ||
			p.L3 != packet.EthernetLen+packet.TagLen*p.Tags { // no other headers, whose lengths would have to change
			return false
		}
		if flags&packet.VNetNeedsCsum == 0 || start != p.L4 || field != packet.TCPChecksumAt {
			return false
		}
		clear(h[:vnetLen])
		h[1] = kind
		binary.LittleEndian.PutUint16(h[2:], uint16(p.L4+p.TCP().HeaderLen()))
		binary.LittleEndian.PutUint16(h[4:], uint16(size))
	} else {
		clear(h[:vnetLen])
	}
	if flags&packet.VNetNeedsCsum != 0 {
		if start < packet.EthernetLen || start+field+2 > len(frame) {
			return false
		}
		flags = packet.VNetNeedsCsum
		binary.LittleEndian.PutUint16(h[6:], uint16(start))
		binary.LittleEndian.PutUint16(h[8:], uint16(field))
	}
	h[0] = flags
	return true
}

// sends reports whether the header asks only for work that the driver may leave undone,
// by the features that it has taken. It clears the header of a driver that may leave nothing.
func sends(features uint32, h packet.VNet, frame []byte) bool {
	switch {
	case features&netCsum == 0: // a driver that leaves nothing says nothing
		clear(h[:vnetLen])
		return true
	case !honest(h, frame):
		return false
	}
	h[0] &= packet.VNetNeedsCsum
	switch h.GSOType() {
	case packet.GSONone:
		return true
	case packet.GSOTCPv4:
		return features&netHostTSO4 != 0
	case packet.GSOTCPv6:
		return features&netHostTSO6 != 0
	}
	return false
}

// takesWhole reports whether the driver takes a frame with this header as it is, rather
// than its segments.
func takesWhole(features uint32, h packet.VNet) bool {
	switch {
	case h.GSOType() == packet.GSONone:
		return true
	case features&netGuestCsum == 0:
		return false
	case h.GSOType() == packet.GSOTCPv4:
		return features&netGuestTSO4 != 0
	case h.GSOType() == packet.GSOTCPv6:
		return features&netGuestTSO6 != 0
	}
	return false
}

// complete completes a frame's checksum if the driver does not take it as it is.
func complete(features uint32, h packet.VNet, frame []byte) {
	if features&netGuestCsum == 0 {
		h.Complete(frame)
		clear(h[:vnetLen])
	}
}

// Flags of a TCP header that only the first or the last of the segments has into which a
// frame is cut.
const (
	tcpFIN = 1 << 0
	tcpPSH = 1 << 3
	tcpCWR = 1 << 7
)

// cut cuts a frame, whose header is honest, into segments, and appends them, each with
// its checksums. It returns false, and appends nothing, if there is not room for all.
func (q *frames) cut(h packet.VNet, frame []byte) bool {
	var p packet.Packet
	p.Parse(frame)
	size, l3, l4 := h.GSOSize(), p.L3, p.L4
	headers, data := frame[:l4+p.TCP().HeaderLen()], p.TCP().Payload()
	n := max((len(data)+size-1)/size, 1)
	if n*(frameOver+len(headers))+len(data) > q.free() {
		return false
	}
	be := binary.BigEndian
	for i := range n {
		piece := data[i*size : min((i+1)*size, len(data))]
		b := q.add(vnetLen + len(headers) + len(piece))
		clear(b[:vnetLen])
		f := b[vnetLen:]
		copy(f[copy(f, headers):], piece)
		if ip := f[l3:l4]; p.Kind == packet.IP4 {
			be.PutUint16(ip[2:], uint16(len(f)-l3))
			be.PutUint16(ip[4:], be.Uint16(ip[4:])+uint16(i))
			be.PutUint16(ip[10:], 0)
			be.PutUint16(ip[10:], packet.Checksum(ip))
		} else {
			be.PutUint16(ip[4:], uint16(len(f)-l3-packet.IPv6Len))
		}
		tcp := packet.TCP(f[l4:])
		tcp.SetSeq(tcp.Seq() + uint32(i*size))
		if i > 0 {
			tcp[13] &^= tcpCWR
		}
		if i < n-1 {
			tcp[13] &^= tcpFIN | tcpPSH
		}
		var segment packet.Packet
		segment.Parse(f)
		tcp.SetChecksum(segment.TCPChecksum())
	}
	return true
}
