package compare_test

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// What the two guests of an adversary may say: frames that are right, or wrong in one way.

func (a *adversary) pick(list ...string) string { return list[a.choose(len(list))] }

// options returns the options of a segment, well-formed or not, of a connection with the initial
// number life.
func (a *adversary) options(life uint32) string {
	var o string
	switch a.choose(9) {
	case 0, 1, 2:
		a.clock += uint32(a.choose(2))
		o = wireTimes(a.clock, 7)
	case 3:
		o = wireMSS + wireSACKOK + wireWindow7
		if a.choose(2) == 0 {
			o += "\x22\x0acookie's" // data with a SYN (RFC 7413)
		}
	case 4:
		now := string(binary.BigEndian.AppendUint32(nil, a.clock))
		o = a.pick("\x08\x0a\x00\x00\x00\x01\x00\x00\x00\x02\x08\x0a"+now+"\x00\x00\x00\x02\x01\x01", // twice
			"\x08\x00\x01\x01", "\x08\x01\x01\x01", "\x08\xff\x01\x01", "\x05\x02\x01\x01", "\x05\x0b\x01\x01\x01\x01\x01\x01\x01\x01\x01\x00",
			"\x13\x12"+strings.Repeat("m", 16)+"\x01\x01", "\x1d\x10"+strings.Repeat("a", 14), "\x00\x08\x0a\x00")
	case 5:
		o = strings.Repeat("\x01", 40)
	case 6: // selective acknowledgments, as many as there is room for, at an odd place or not
		b := []byte{1, 1, 5, byte(2 + 8*(1+a.choose(4)))}
		for range (int(b[3]) - 2) / 4 {
			b = binary.BigEndian.AppendUint32(b, uint32(5000+a.choose(60)))
		}
		if o = string(b); a.choose(2) == 0 {
			o = o[1:] + "\x01"
		}
	case 7: // Multipath TCP
		n := life*5 + uint32(a.choose(40))
		switch a.choose(8) {
		case 0:
			o = a.pick("\x1e\x04\x40\x01", "\x1e\x04\x80\x00", "\x1e\x0c\x00\x01its key.", "\x1e\x02\x01\x01", "\x1e\x03\x20\x01",
				dss(uint64(n), false)+dss(uint64(n), false), "\x1e\x08\x20\x11"+string(binary.BigEndian.AppendUint32(nil, n)))
		case 1, 2:
			o = dss(1<<32+uint64(n), true)
		case 3:
			o = mapped(n, 7)
		default:
			o = dss(uint64(n), false)
		}
		if a.choose(3) == 0 {
			a.clock += uint32(a.choose(2))
			o += wireTimes(a.clock, 7)
		}
	}
	return o
}

// segment is one of a connection, whose bytes follow from their places.
func (a *adversary) segment(guest int) (h []byte) {
	life := lives[a.choose(len(lives))]
	if a.choose(4) > 0 {
		life = lives[3] // whose numbers wrap
	}
	flags := []byte{packet.ACK, packet.ACK | packet.PSH, packet.ACK, packet.ACK | packet.PSH, packet.SYN, packet.SYN | packet.ACK, packet.FIN | packet.ACK,
		packet.RST, packet.RST | packet.ACK, packet.ACK | packet.URG, packet.SYN | packet.FIN, packet.SYN | packet.RST, packet.FIN, 0, packet.ACK | 0x40, packet.ACK | 0xc0}[a.choose(16)]
	seq, n := life+1+uint32(a.choose(12)), 0
	if a.choose(3) > 0 {
		n = a.choose(12)
	}
	if flags&packet.SYN != 0 {
		if seq = life; a.choose(3) > 0 {
			n = 0
		}
	}
	opts := a.options(life)
	h = make([]byte, 20)
	binary.BigEndian.PutUint16(h, 80)
	binary.BigEndian.PutUint16(h[2:], uint16(a.choose(2)))
	binary.BigEndian.PutUint32(h[4:], seq)
	binary.BigEndian.PutUint32(h[8:], life*3+uint32(a.choose(40)))
	opts += strings.Repeat("\x00", -len(opts)&3)
	h[12], h[13] = byte(20+len(opts))<<2, flags
	if a.choose(8) == 0 {
		h[12] |= 1 // it counts marks of congestion
	}
	binary.BigEndian.PutUint16(h[14:], uint16(a.choose(3)*500))
	if flags&packet.URG != 0 {
		h[19] = byte(a.choose(4))
	}
	h = append(h, opts...)
	if flags&packet.SYN != 0 {
		seq++
	}
	for i := range uint32(n) {
		b := byte(seq+i) * 7
		if guest == 1 && a.wrong > 0 && seq+i-life >= a.wrong {
			b ^= 0x80
		}
		h = append(h, b)
	}
	return h
}

// chain puts extension headers before what has the number proto.
func (a *adversary) chain(proto byte, payload []byte) []byte {
	next := proto
	for range 1 + a.choose(3) {
		var h []byte
		kind := []byte{packet.ProtoHopByHop, packet.ProtoDestOpts, packet.ProtoRouting, packet.ProtoFragment, packet.ProtoAH}[a.choose(5)]
		switch h = []byte{next, 0, 1, 4, 0, 0, 0, byte(a.choose(2))}; kind {
		case packet.ProtoFragment:
			h[2], h[3] = 0, byte(a.choose(5)*a.choose(3)) // atomic, or one of several
		case packet.ProtoAH:
			h = append(h, 0, 0, 0, byte(a.choose(2)), 'i', 'c', 'v', '.')
			h[1] = 2
		case packet.ProtoRouting:
			h[3] = 0
		}
		payload, next = append(h, payload...), kind
	}
	return v6(next, payload)
}

// frame is anything. It is no function of the guest but for the bytes of its streams.
func (a *adversary) frame(guest int) []byte {
	h := a.segment(guest)
	var f []byte
	switch k := a.choose(24); k {
	case 0, 1, 2, 3, 4, 5, 6, 7, 8:
		f = sealed(wireIPv4(6, 0, h))
	case 9, 10, 11, 12:
		f = sealed(v6(6, h))
	case 13:
		f = sealed(a.chain(6, h))
	case 14:
		f = wireIPv4(6, uint16(a.choose(3))|0x2000*uint16(a.choose(2)), h[:8+a.choose(len(h)-7)])
	case 15:
		f = wireDatagram(uint16(53+a.choose(2)), 5000, a.pick("a", "b", "cc"))
	case 16:
		f = wireIPv4(1, 0, []byte{byte(a.choose(2) * 8), 0, 1, 1, 0, 1, 0, byte(a.choose(3)), 'x'})
		switch a.choose(3) {
		case 0: // groups that a guest joins, or leaves (IGMP, MLD)
			f = wireIPv4(2, 0, []byte{byte(0x16 + a.choose(2)), 0, 0, 0, 224, 0, 0, byte(a.choose(3))})
		case 1:
			f = v6(packet.ProtoHopByHop, append([]byte{packet.ProtoICMPv6, 0, 5, 2, 0, 0, 1, 0,
				byte(131 + a.choose(2)), 0, 0, 0, 0, 0, 0, 0, 0xff, 2}, make([]byte, 13)...))
			f = append(f, byte(a.choose(3)))
			binary.BigEndian.PutUint16(f[18:], uint16(len(f)-54))
		}
	case 17: // tunnels
		f = wireIPv4([]byte{4, 47, 41, 50, 51, 2, 132}[a.choose(7)], 0, h)
	case 18:
		f = append(make([]byte, 12), 8, 6, 0, 1, 8, 0, 6, 4, 0, byte(1+a.choose(2)), 2, 0, 0, 0, 0, byte(a.choose(2)), 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 9)
	case 19: // options of IPv4
		f = wireIPv4(6, 0, append([]byte(a.pick("\x01\x01\x01\x00", "\x94\x04\x00\x00", "\x07\x03\x04\x00")), h...))
		f[14] = 0x46
		f = sealed(f)
	case 20: // lengths that lie
		f = wireIPv4(6, 0, h)
		binary.BigEndian.PutUint16(f[16:], uint16(a.choose(80)))
	case 21:
		f = v6([]byte{6, 0, 59, 58, 17}[a.choose(5)], h)
		binary.BigEndian.PutUint16(f[18:], uint16(a.choose(60)))
	case 22: // a data offset that lies
		h[12] = byte(a.choose(16)) << 4
		f = sealed(wireIPv4(6, 0, h))
	default:
		f = append(make([]byte, 12), a.pick("\x08\x00", "\x88\x63", "\x88\x47", "\x00\x26", "\x91\x00", "\x81\x00", "\x88\x64\x11\x00\x00\x01\x00\x02")...)
		f = append(f, h[:a.choose(len(h))]...)
	}
	tag := func(tpid string, id byte) { f = slices.Insert(f, 12, []byte(tpid+"\x00"+string(id))...) }
	switch a.choose(16) {
	case 0:
		tag(a.pick("\x81\x00", "\x88\xa8"), byte(a.choose(2)))
	case 1:
		tag("\x81\x00", byte(a.choose(2)))
		tag(a.pick("\x81\x00", "\x88\xa8"), byte(a.choose(2)))
	case 2:
		tag("\x81\x00", 1)
		tag("\x81\x00", 2)
		tag("\x88\xa8", byte(a.choose(2)))
	case 3:
		proto := "\x00\x21"
		if f[12] == 0x86 {
			proto = "\x00\x57"
		}
		n := len(f) - 14 + 2
		f = slices.Concat(f[:12], []byte{0x88, 0x64, 0x11, 0, 0, byte(a.choose(2)), byte(n >> 8), byte(n)}, []byte(proto), f[14:])
		if a.choose(2) == 0 {
			tag("\x81\x00", 3)
		}
	case 4:
		f = append(f, make([]byte, max(0, 60-len(f)))...)
	case 5:
		f = f[:a.choose(len(f)+1)]
	}
	return sealed(f)
}

func sealed(f []byte) []byte {
	var p packet.Packet
	if p.Parse(f); p.IsTCP() {
		p.TCP().SetChecksum(p.TCPChecksum())
	}
	return f
}

// wrap puts a virtio-net header before a frame.
func (a *adversary) wrap(f []byte) compare.Frame {
	if a.vnet == 0 {
		return compare.Frame{Data: f}
	}
	h := make([]byte, a.vnet)
	var p packet.Packet
	p.Parse(f)
	switch a.choose(6) {
	case 0: // partial, as it ought to be
		if p.IsTCP() {
			h[0] = packet.VNetNeedsCsum
			binary.LittleEndian.PutUint16(h[6:], uint16(p.L4))
			binary.LittleEndian.PutUint16(h[8:], packet.TCPChecksumAt)
			p.TCP().SetChecksum(p.PseudoSum())
		}
	case 1:
		h[1] = []byte{0, 1, 3, 4, 5, 0x81, 0x84, 0x21}[a.choose(8)]
		binary.LittleEndian.PutUint16(h[2:], uint16(a.choose(90)))
		binary.LittleEndian.PutUint16(h[4:], uint16(a.choose(9)))
	case 2:
		h[0] = byte(a.choose(8))
		binary.LittleEndian.PutUint16(h[6:], uint16(a.choose(120)))
		binary.LittleEndian.PutUint16(h[8:], uint16(a.choose(30)))
		if p.IsTCP() && packet.VNet(h).PartialChecksum(&p, packet.TCPChecksumAt) {
			p.TCP().SetChecksum(p.PseudoSum())
		}
	}
	return compare.Frame{Data: append(h, f...), VNetHdr: a.vnet}
}
