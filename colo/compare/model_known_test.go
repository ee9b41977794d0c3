package compare_test

import (
	"encoding/binary"
	"fmt"
	"maps"

	"github.com/gocolo/lockstep/internal/packet"
)

// known holds what a guest has said, and so remembers: of each connection the greatest
// acknowledgment, the bytes, and the events of its stream. Connections are told
// apart by the high bits of their sequence numbers.
type known struct {
	ack    map[uint64]uint32
	bytes  map[uint64]byte // by the connection, and the sequence number
	fin    map[uint64]bool
	syn    map[uint64]bool
	rst    map[uint64]bool
	words  map[string]int // datagrams
	claims map[string]bool
}

func newKnown() *known {
	return &known{
		map[uint64]uint32{}, map[uint64]byte{}, map[uint64]bool{}, map[uint64]bool{}, map[uint64]bool{},
		map[string]int{}, map[string]bool{},
	}
}

func (k *known) clone() *known {
	return &known{
		maps.Clone(k.ack), maps.Clone(k.bytes), maps.Clone(k.fin), maps.Clone(k.syn), maps.Clone(k.rst),
		maps.Clone(k.words), maps.Clone(k.claims),
	}
}

// connection names a TCP connection: its port, and which of those with that port.
func connection(h packet.TCP) uint64 {
	return uint64(binary.BigEndian.Uint16(h[2:]))<<32 | uint64(h.Seq()>>24)
}

func position(h packet.TCP, seq uint32) uint64 {
	return uint64(binary.BigEndian.Uint16(h[2:]))<<32 | uint64(seq)
}

// learn takes in what a guest says.
func (k *known) learn(f []byte) {
	var p packet.Packet
	p.Parse(f)
	switch {
	case p.IsTCP():
		h := p.TCP()
		c := connection(h)
		if h.Flags()&packet.ACK != 0 {
			if a, ok := k.ack[c]; !ok || int32(h.Ack()-a) > 0 {
				k.ack[c] = h.Ack()
			}
		}
		for i, b := range h.Payload() {
			k.bytes[position(h, h.Seq()+uint32(i))] = b
		}
		if h.Flags()&packet.FIN != 0 {
			k.fin[position(h, h.Seq()+uint32(len(h.Payload())))] = true
		}
		k.syn[c] = k.syn[c] || h.Flags()&packet.SYN != 0
		k.rst[c] = k.rst[c] || h.Flags()&packet.RST != 0
	case p.Kind == packet.ARP:
		k.claims[claimed(f)] = true
	default:
		k.words[heard(&p)]++
	}
}

// heard returns what tells a datagram from others: all of it but the addresses of Ethernet and priorities.
func heard(p *packet.Packet) string { return string(linkOf(p)) + string(p.Frame[p.L3:]) }

func claimed(f []byte) string { return string(f[22:32]) }

// lacks says what of a frame a guest does not know, or nothing.
func (k *known) lacks(f []byte) string {
	var p packet.Packet
	p.Parse(f)
	switch {
	case p.IsTCP():
		h := p.TCP()
		c := connection(h)
		if h.Flags()&packet.ACK != 0 {
			if a, ok := k.ack[c]; !ok || int32(h.Ack()-a) > 0 {
				return fmt.Sprintf("acknowledgment %d, it has given %d (%t)", h.Ack(), a, ok)
			}
		}
		for i, b := range h.Payload() {
			if got, ok := k.bytes[position(h, h.Seq()+uint32(i))]; !ok || got != b {
				return fmt.Sprintf("byte %q at %d, it has said %q (%t)", b, h.Seq()+uint32(i), got, ok)
			}
		}
		switch {
		case h.Flags()&packet.FIN != 0 && !k.fin[position(h, h.Seq()+uint32(len(h.Payload())))]:
			return "FIN"
		case h.Flags()&packet.SYN != 0 && !k.syn[c]:
			return "SYN"
		case h.Flags()&packet.RST != 0 && !k.rst[c]:
			return "RST"
		}
	case p.Kind == packet.ARP:
		if !k.claims[claimed(f)] {
			return "a claim"
		}
	default:
		if k.words[heard(&p)] == 0 {
			return fmt.Sprintf("datagram %x", f[12:])
		}
	}
	return ""
}

// broken reports whether what a frame says is not for the model.
func broken(f []byte) bool {
	var p packet.Packet
	p.Parse(f)
	return p.Kind == packet.Malformed || p.Kind == packet.Other || p.Kind == packet.IP4 && p.Proto == packet.ProtoTCP && !p.IsTCP() && !p.Fragment
}
