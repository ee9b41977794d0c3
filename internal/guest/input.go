package guest

import (
	"encoding/binary"
	"fmt"
)

// Offsets in the page of the frame buffer, as in guest.S.
const (
	inputOffset = 0x200
	replyOffset = 0x300
	lastM       = 0x400
	lastY       = 0x408
	inputEnd    = 0x410

	replyMagic = 0x4c535452 // "LSTR"
	inputMagic = 0x4c535449 // "LSTI"
)

// ReplyPort is the port that vCPU 0 answers from, and takes input at; the others
// follow. Answers go to a port of their own: two flows to one port, of which each guest
// has begun another, are taken for one that both begin from ports chosen at random.
const (
	ReplyPort     = 7200
	ReplyDestPort = 7300
)

// putReplyTemplate writes a vCPU's buffer for answers.
func putReplyTemplate(buffer []byte, vcpu int) {
	binary.LittleEndian.PutUint32(buffer, FrameSize)
	putHeaders(buffer[lengthSize:bufferSize], ReplyPort+vcpu, ReplyDestPort, replyMagic, vcpu)
}

// Input is a word that a client sends to a vCPU: word v, number m, counted from 1.
type Input struct {
	VCPU int
	M, V uint64
}

// AppendFrame appends the frame that says so to b.
func (in Input) AppendFrame(b []byte) []byte {
	var f [FrameSize]byte
	putHeaders(f[:], 0, 0, inputMagic, in.VCPU)
	be := binary.BigEndian
	copy(f[:6], template[6:12])
	copy(f[6:12], template[:6])
	ip, udp := f[ethernetSize:], f[ethernetSize+ipv4Size:]
	copy(ip[12:16], template[ethernetSize+16:]) // the sum of the header stays the same
	copy(ip[16:20], template[ethernetSize+12:])
	be.PutUint16(udp, DestPort)
	be.PutUint16(udp[2:], uint16(ReplyPort+in.VCPU))
	be.PutUint64(f[payloadOffset+payloadN:], in.M)
	be.PutUint64(f[payloadOffset+payloadH:], in.V)
	return append(b, f[:]...)
}

// ParseInput reads a frame for the guest.
func ParseInput(b []byte) (Input, error) {
	if len(b) != FrameSize {
		return Input{}, fmt.Errorf("guest: input of %d bytes, want %d", len(b), FrameSize)
	}
	be, payload := binary.BigEndian, b[payloadOffset:]
	vcpu := be.Uint32(payload[payloadVCPU:])
	if be.Uint32(payload[payloadMagic:]) != inputMagic || vcpu >= MaxVCPUs {
		return Input{}, fmt.Errorf("guest: input %#x of vCPU %d", be.Uint32(payload[payloadMagic:]), vcpu)
	}
	return Input{int(vcpu), be.Uint64(payload[payloadN:]), be.Uint64(payload[payloadH:])}, nil
}

// A Reply is a vCPU's answer: it has taken the inputs up to M, of which the last
// was V and all together hash to Y.
type Reply struct {
	VCPU    int
	M, Y, V uint64
}

// ParseReply reads a frame that answers an input. It refuses whatever the program
// would not have sent; it keeps nothing of b.
func ParseReply(b []byte) (Reply, error) {
	f, err := parse(b, ReplyPort, ReplyDestPort, replyMagic)
	return Reply{f.VCPU, f.N, f.H, f.T}, err
}

// NextInput returns the hash of all inputs from that before m and v.
func NextInput(y, m, v uint64) uint64 { return mix(mix(y, m), v) }

// PutInput puts the frame of an input into its vCPU's buffer, and returns which
// bytes of mem that changes. The vCPU must be reading PortStatus, and is told
// StatusInput; or, in Go, [Answer] is called.
func PutInput(mem []byte, vcpu int, frame []byte) (off, n uint64, err error) {
	if vcpu < 0 || vcpu >= MaxVCPUs || len(mem) < lowMemory || len(frame) != FrameSize {
		return 0, 0, fmt.Errorf("guest: input of %d bytes for vCPU %d in %d bytes of memory", len(frame), vcpu, len(mem))
	}
	at := frameBuffer(vcpu) + inputOffset
	binary.LittleEndian.PutUint32(mem[at:], FrameSize)
	copy(mem[at+lengthSize:], frame)
	return uint64(at), bufferSize, nil
}

// Answer does what the program does with the input in its vCPU's buffer. It
// returns the address of the frame to emit (see [Emitted]), 0 if the input is
// ignored, and which bytes of mem it has changed. It is for the guest in Go.
func Answer(mem []byte, vcpu int) (reply, off, n uint64, err error) {
	if vcpu < 0 || vcpu >= MaxVCPUs || len(mem) < lowMemory {
		return 0, 0, 0, fmt.Errorf("guest: no vCPU %d in %d bytes of memory", vcpu, len(mem))
	}
	page := mem[frameBuffer(vcpu):][:PageSize]
	le, be := binary.LittleEndian, binary.BigEndian
	in, out := page[inputOffset+lengthSize+payloadOffset:], page[replyOffset+lengthSize+payloadOffset:]
	m, v, last := be.Uint64(in[payloadN:]), be.Uint64(in[payloadH:]), le.Uint64(page[lastM:])
	reply = uint64(frameBuffer(vcpu) + replyOffset)
	switch {
	case m == last:
		return reply, 0, 0, nil
	case m != last+1:
		return 0, 0, 0, nil
	}
	y := NextInput(le.Uint64(page[lastY:]), m, v)
	le.PutUint64(page[lastM:], m)
	le.PutUint64(page[lastY:], y)
	be.PutUint64(out[payloadN:], m)
	be.PutUint64(out[payloadH:], y)
	be.PutUint64(out[payloadT:], v)
	return reply, reply, inputEnd - replyOffset, nil
}

// LastInput returns the number of the input that a vCPU has taken last, 0 for
// none, and the hash of all of them. The vCPU must not run.
func LastInput(mem []byte, vcpu int) (m, y uint64, err error) {
	if vcpu < 0 || vcpu >= MaxVCPUs || len(mem) < lowMemory {
		return 0, 0, fmt.Errorf("guest: no vCPU %d in %d bytes of memory", vcpu, len(mem))
	}
	page := mem[frameBuffer(vcpu):]
	return binary.LittleEndian.Uint64(page[lastM:]), binary.LittleEndian.Uint64(page[lastY:]), nil
}
