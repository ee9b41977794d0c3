package guest

import (
	"encoding/binary"
	"fmt"
)

// A frame buffer holds the frame's length (le32), then the frame: Ethernet,
// IPv4 and UDP headers and the payload. The payload is big-endian: magic (4
// bytes), vCPU (4), n, h, t (8 each).
const (
	lengthSize    = 4
	ethernetSize  = 14
	ipv4Size      = 20
	udpSize       = 8
	payloadOffset = ethernetSize + ipv4Size + udpSize

	payloadMagic = 0
	payloadVCPU  = 4
	payloadN     = 8
	payloadH     = 16
	payloadT     = 24
	payloadSize  = 32

	bufferSize = lengthSize + FrameSize
	magic      = 0x4c535450 // "LSTP"
)

// FrameSize is the length of every frame, in bytes.
const FrameSize = payloadOffset + payloadSize

// UDP ports. Each vCPU sends from one of its own, SourcePort + vCPU.
const (
	SourcePort = 7000
	DestPort   = 7100
)

// template is the frame of vCPU 0 up to its payload, UDP checksum 0 (none, RFC
// 768), IPv4 checksum in place: 52:54:00:00:00:01 192.0.2.2 sends to
// 52:54:00:00:00:02 192.0.2.1.
var template = [payloadOffset]byte{
	0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1, 0x08, 0x00,
	0x45, 0, 0, FrameSize - ethernetSize, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1,
	0, 0, DestPort >> 8, DestPort & 0xff, 0, udpSize + payloadSize, 0, 0,
}

// putTemplate writes a vCPU's frame buffer.
func putTemplate(buffer []byte, vcpu int) {
	binary.LittleEndian.PutUint32(buffer, FrameSize)
	putHeaders(buffer[lengthSize:bufferSize], SourcePort+vcpu, DestPort, magic, vcpu)
}

// putHeaders writes all of a frame of the guest but the words of its payload.
func putHeaders(frame []byte, from, to int, magic uint32, vcpu int) {
	copy(frame, template[:])
	be := binary.BigEndian
	ip := frame[ethernetSize:][:ipv4Size]
	be.PutUint16(ip[10:], checksum(ip))
	udp := frame[ethernetSize+ipv4Size:]
	be.PutUint16(udp, uint16(from))
	be.PutUint16(udp[2:], uint16(to))
	payload := frame[payloadOffset:]
	be.PutUint32(payload[payloadMagic:], magic)
	be.PutUint32(payload[payloadVCPU:], uint32(vcpu))
}

// checksum returns the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(p []byte) uint16 {
	var sum uint32
	for i := 0; i < len(p); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Frame is the content of a frame: the report of one round.
type Frame struct {
	VCPU int
	N, H uint64
	T    uint64 // the time-stamp counter that the round took in, or 0
}

// ParseFrame reads a frame. It refuses whatever the program would not have
// sent; it keeps nothing of b.
func ParseFrame(b []byte) (Frame, error) { return parse(b, SourcePort, DestPort, magic) }

// parse reads a frame from a vCPU's port, counted from base, to a port of the client.
func parse(b []byte, base, to int, magic uint32) (Frame, error) {
	if len(b) != FrameSize {
		return Frame{}, fmt.Errorf("guest: frame of %d bytes, want %d", len(b), FrameSize)
	}
	be := binary.BigEndian
	payload := b[payloadOffset:]
	vcpu := be.Uint32(payload[payloadVCPU:])
	if vcpu >= MaxVCPUs {
		return Frame{}, fmt.Errorf("guest: frame of vCPU %d", vcpu)
	}
	var want [FrameSize]byte
	putHeaders(want[:], base+int(vcpu), to, magic, int(vcpu))
	for i, w := range want[:payloadOffset+payloadN] {
		if b[i] != w {
			return Frame{}, fmt.Errorf("guest: byte %d of the frame is %#02x, want %#02x", i, b[i], w)
		}
	}
	return Frame{
		VCPU: int(vcpu),
		N:    be.Uint64(payload[payloadN:]),
		H:    be.Uint64(payload[payloadH:]),
		T:    be.Uint64(payload[payloadT:]),
	}, nil
}

// pollsOffset is the place of a counter in the frame buffer, after the frame.
const pollsOffset = 0x80

// Polls returns how often a vCPU of the assembled program had read PortStatus
// when it last emitted a frame: a device that counts too knows whether a read was
// ever lost or answered twice. (The counter is not part of any hash: how long a
// device is busy is not the guest's history.)
func Polls(mem []byte, vcpu int) (uint64, error) {
	if vcpu < 0 || vcpu >= MaxVCPUs || len(mem) < lowMemory {
		return 0, fmt.Errorf("guest: no vCPU %d in %d bytes of memory", vcpu, len(mem))
	}
	return binary.LittleEndian.Uint64(mem[frameBuffer(vcpu)+pollsOffset:]), nil
}

// Emitted returns the frame in the buffer whose address the guest wrote to
// PortEmit: a view of mem, valid until the guest runs on.
func Emitted(mem []byte, addr uint64) ([]byte, error) {
	size := uint64(len(mem))
	if addr > size || size-addr < lengthSize {
		return nil, fmt.Errorf("guest: frame buffer at %#x is outside %d bytes of memory", addr, size)
	}
	n := uint64(binary.LittleEndian.Uint32(mem[addr:]))
	if n > size-addr-lengthSize {
		return nil, fmt.Errorf("guest: frame of %d bytes at %#x is outside %d bytes of memory", n, addr, size)
	}
	return mem[addr+lengthSize:][:n:n], nil
}
