package proxy_test

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/gocolo/lockstep/internal/packet"
)

// frame builds the frame of a segment, without a virtio-net header.
func (o *ordeal) frame(toGuest bool, s ordealSegment, mark uint16) []byte {
	opts := s.options()
	h := make([]byte, packet.TCPLen+len(opts), packet.TCPLen+len(opts)+len(s.data))
	copy(h[packet.TCPLen:], opts)
	h[12], h[13] = byte(len(h)/4)<<4, s.flags
	binary.BigEndian.PutUint32(h[4:], s.seq)
	binary.BigEndian.PutUint32(h[8:], s.ack)
	binary.BigEndian.PutUint16(h[14:], ordealWindow)
	server, client, sp, cp := byte(1), byte(2), uint16(80), s.port
	if toGuest {
		server, client, sp, cp = client, server, cp, sp
	}
	binary.BigEndian.PutUint16(h, sp)
	binary.BigEndian.PutUint16(h[2:], cp)
	h = append(h, s.data...)
	b := append([]byte{2, 0, 0, 0, 0, client, 2, 0, 0, 0, 0, server}, o.tags...)
	if o.v6 {
		b = append(b, 0x86, 0xdd, 0x60, 0, byte(mark>>8), byte(mark), byte(len(h)>>8), byte(len(h)), packet.ProtoTCP, 64)
		src := make([]byte, 32)
		src[0], src[16], src[15], src[31] = 0xfd, 0xfd, server, client
		b = append(b, src...)
	} else {
		i := make([]byte, packet.IPv4Len)
		i[0], i[8], i[9] = 0x45, 64, packet.ProtoTCP
		binary.BigEndian.PutUint16(i[2:], uint16(len(i)+len(h)))
		binary.BigEndian.PutUint16(i[4:], mark)
		copy(i[12:], []byte{10, 0, 0, server, 10, 0, 0, client})
		binary.BigEndian.PutUint16(i[10:], packet.Checksum(i))
		b = append(append(b, 8, 0), i...)
	}
	b = append(b, h...)
	var p packet.Packet
	p.Parse(b)
	p.TCP().SetChecksum(p.TCPChecksum())
	return b
}

// markOf returns what a frame is.
func markOf(p *packet.Packet) uint16 {
	if p.Kind == packet.IP6 {
		return binary.BigEndian.Uint16(p.Frame[p.L3+2:])
	}
	return p.IPv4().ID()
}

// wrap gives a frame a virtio-net header: one that a driver or a device may give it, or, where odd is set, any.
func (o *ordeal) wrap(f []byte, odd, fromGuest bool) []byte {
	if o.vnet == 0 {
		return f
	}
	v := make([]byte, o.vnet)
	var p packet.Packet
	p.Parse(f)
	h := p.TCP()
	partial := o.r.IntN(3) > 0
	if partial {
		v[0] = packet.VNetNeedsCsum
		binary.LittleEndian.PutUint16(v[6:], uint16(p.L4))
		binary.LittleEndian.PutUint16(v[8:], packet.TCPChecksumAt)
		h.SetChecksum(p.PseudoSum())
	}
	if n := len(h.Payload()); n > 0 && partial && o.r.IntN(2) == 0 {
		v[1] = packet.GSOTCPv4
		if o.v6 {
			v[1] = packet.GSOTCPv6
		}
		if o.r.IntN(4) == 0 {
			v[1] |= packet.GSOECN
		}
		binary.LittleEndian.PutUint16(v[4:], uint16(1+o.r.IntN(1400)))
	}
	// The length of the headers is a hint, and may be anything.
	binary.LittleEndian.PutUint16(v[2:], uint16([]int{0, p.L4 + h.HeaderLen(), p.L4, 65535, o.r.IntN(200)}[o.r.IntN(5)]))
	if !fromGuest && !partial && o.r.IntN(2) == 0 {
		v[0] |= packet.VNetDataValid
	}
	if o.vnet >= packet.VNetMergeLen { // the device alone decides how many buffers there are
		binary.LittleEndian.PutUint16(v[10:], uint16([]int{0, 1, 65535, o.r.IntN(1 << 16)}[o.r.IntN(4)]))
	}
	if odd {
		switch o.r.IntN(6) {
		case 0: // cut into segments of nothing
			v[1] = packet.GSOTCPv4
			v[4], v[5] = 0, 0
		case 1:
			v[1] = byte([]int{packet.GSOUDP, packet.GSOUDPL4, 2, 0x21, 0x40, 0x7f, 0xff}[o.r.IntN(7)])
		case 2: // a checksum anywhere
			v[0] |= packet.VNetNeedsCsum
			binary.LittleEndian.PutUint16(v[6:], uint16(o.r.IntN(len(f)+20)))
		case 3:
			v[0] |= packet.VNetNeedsCsum
			binary.LittleEndian.PutUint16(v[8:], uint16(o.r.IntN(len(f)+20)))
		case 4:
			v[0] |= packet.VNetNeedsCsum
			binary.LittleEndian.PutUint32(v[6:], o.r.Uint32())
		default:
			for i := range 10 {
				v[i] = byte(o.r.IntN(256))
			}
		}
	}
	return append(v, f...)
}

// unwrap does to a frame what a device does before the frame is on a wire. The frame is none if a device drops it;
// wrong says what is wrong with one that is in order.
func (o *ordeal) unwrap(f []byte) (s ordealSegment, mark uint16, ok bool, wrong string) {
	f = slices.Clone(f)
	var p packet.Packet
	p.ParseVNet(f, o.vnet)
	if !p.IsTCP() {
		return s, 0, false, ""
	}
	mark = markOf(&p)
	good := mark == markGood || mark == markStranger
	v := packet.VNetOf(f, o.vnet)
	if v != nil {
		if gso := v.GSOType() &^ packet.GSOECN; gso != packet.GSONone && (!v.Cuts(p.Kind, p.Proto) || v.GSOSize() == 0 || v.Flags()&packet.VNetNeedsCsum == 0) || !v.Complete(p.Frame) {
			if good {
				wrong = "a device drops a frame that was in order"
			}
			return s, mark, false, wrong
		}
		p.ParseVNet(f, o.vnet)
		if !p.IsTCP() {
			return s, mark, false, ""
		}
	}
	h := p.TCP()
	sum, want := h.Checksum(), p.TCPChecksum()
	if right := sum == want || sum == 0xffff && want == 0; right != (mark != markDamaged) && mark != markOdd {
		return s, mark, false, fmt.Sprintf("the checksum is %#x, and would be right as %#x", sum, want)
	} else if !right {
		return s, mark, false, ""
	}
	s = ordealSegment{way: ordealWay{scale: noScale}, seq: h.Seq(), ack: h.Ack(), flags: h.Flags(), win: binary.BigEndian.Uint16(h[14:]), data: h.Payload(), port: h.SrcPort()}
	if s.port == 80 {
		s.port = h.DstPort()
	}
	for kind, data, rest, ok := packet.NextOption(h.Options()); ok; kind, data, rest, ok = packet.NextOption(rest) {
		switch {
		case kind == 2 && len(data) == 2:
			s.way.mss = binary.BigEndian.Uint16(data)
		case kind == 3 && len(data) == 1:
			s.way.scale = data[0]
		case kind == 4 && len(data) == 0:
			s.way.sack = true
		case kind == packet.OptTimestamps && len(data) == 8:
			s.way.stamps = true
			s.stamp, s.echo = binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:])
		}
	}
	return s, mark, true, ""
}
