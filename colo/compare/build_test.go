package compare_test

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// A seg is a TCP segment to be built.
type seg struct {
	port     uint16 // the client's
	seq, ack uint32
	flags    uint8
	data     string
	id       uint16
	pad      int
	v6       bool
}

const ackOnly, push = packet.ACK, packet.ACK | packet.PSH

func (s seg) frame() compare.Frame {
	h := make([]byte, packet.TCPLen, packet.TCPLen+len(s.data))
	binary.BigEndian.PutUint16(h[0:], 80)
	binary.BigEndian.PutUint16(h[2:], s.port)
	binary.BigEndian.PutUint32(h[4:], s.seq)
	binary.BigEndian.PutUint32(h[8:], s.ack)
	h[12], h[13] = 5<<4, s.flags
	return ip(s.v6, packet.ProtoTCP, s.id, append(h, s.data...), s.pad)
}

func udp(data string) compare.Frame {
	h := make([]byte, packet.UDPLen)
	binary.BigEndian.PutUint32(h, 53<<16|5000)
	binary.BigEndian.PutUint16(h[4:], uint16(len(h)+len(data)))
	return ip(false, packet.ProtoUDP, 1, append(h, data...), 0)
}

func ip(v6 bool, proto uint8, id uint16, payload []byte, pad int) compare.Frame {
	b := make([]byte, packet.EthernetLen)
	if v6 {
		binary.BigEndian.PutUint16(b[12:], packet.TypeIPv6)
		h := make([]byte, packet.IPv6Len)
		h[0] = 0x60
		binary.BigEndian.PutUint16(h[2:], id) // the flow label differs as it likes
		binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
		h[6], h[23], h[39] = proto, 1, 2
		b = append(b, h...)
	} else {
		binary.BigEndian.PutUint16(b[12:], packet.TypeIPv4)
		h := make([]byte, packet.IPv4Len)
		h[0], h[8], h[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(payload)))
		binary.BigEndian.PutUint16(h[4:], id)
		copy(h[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
		b = append(b, h...)
	}
	b = append(b, payload...)
	return compare.Frame{Data: append(b, make([]byte, pad)...)}
}
