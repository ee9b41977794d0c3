package compare_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// A testimony collects all that a guest has said.
type testimony struct {
	facts map[string]bool
	acks  map[string]uint32
	words map[string]int
}

func newTestimony() *testimony {
	return &testimony{map[string]bool{}, map[string]uint32{}, map[string]int{}}
}

func (w *testimony) clone() *testimony {
	c := newTestimony()
	for k := range w.facts {
		c.facts[k] = true
	}
	for k, v := range w.acks {
		c.acks[k] = v
	}
	for k, v := range w.words {
		c.words[k] = v
	}
	return c
}

// lives are the initial numbers that connections begin with. Numbers near one of them
// belong to it.
var lives = [...]uint32{0x20000000, 0x40000000, 0x7ffffff0, 0xfffffff0}

func lifeOf(seq uint32) int {
	for i, n := range lives {
		if int32(seq-n) > -1<<20 && int32(seq-n) < 1<<20 {
			return i
		}
	}
	return -1
}

// says lists the facts of a segment, and returns its flow, its acknowledgment and whether it
// has one.
func says(p *packet.Packet) (flow string, facts []string, ack uint32, has bool) {
	h := p.TCP()
	var k packet.Key
	p.Key(&k)
	seq, flags := h.Seq(), h.Flags()
	flow = fmt.Sprintf("%x %x/%d", linkOf(p), k, lifeOf(seq))
	say := func(format string, args ...any) { facts = append(facts, flow+fmt.Sprintf(format, args...)) }
	if flags&packet.RST != 0 {
		flags &^= packet.SYN | packet.FIN // nobody looks at them then
	}
	if flags&packet.SYN != 0 {
		opts := map[byte]string{} // of several of a kind the last one counts
		for kind, data, rest, ok := packet.NextOption(h.Options()); ok; kind, data, rest, ok = packet.NextOption(rest) {
			switch {
			case kind == packet.OptMSS && len(data) == 2, kind == packet.OptWScale && len(data) == 1:
				opts[kind] = string(data)
			case kind == packet.OptTimestamps && len(data) == 8, kind == packet.OptSACKPermit && len(data) == 0:
				opts[kind] = ""
			}
		}
		// The guests' initial numbers differ.
		facts = append(facts, fmt.Sprintf("%x %x SYN%q", linkOf(p), k, opts))
		if flags&packet.FIN != 0 {
			facts = append(facts, fmt.Sprintf("%x %x SYN FIN", linkOf(p), k))
		}
		flags &^= packet.FIN
		seq++
	}
	for i, b := range h.Payload() {
		say(" %d=%d", seq+uint32(i), b)
	}
	if flags&packet.FIN != 0 {
		say(" FIN %d", seq+uint32(len(h.Payload())))
	}
	if flags&(packet.URG|packet.SYN|packet.RST) == packet.URG {
		say(" URG %d", seq+uint32(binary.BigEndian.Uint16(h[18:])))
	}
	if flags&packet.RST != 0 {
		facts = append(facts, fmt.Sprintf("%x %x RST", linkOf(p), k))
	}
	if _, _, odd := multipath(h); odd != "" && flags&packet.SYN == 0 {
		say(" Multipath TCP %x", odd)
	}
	return flow, facts, h.Ack(), flags&packet.ACK != 0
}

// multipath returns the DATA_ACK of a segment (RFC 8684), if it has one, and all that it says of
// Multipath TCP if that is more.
func multipath(h packet.TCP) (ack uint32, has bool, odd string) {
	var all []byte
	more := false
	for kind, data, rest, ok := packet.NextOption(h.Options()); ok; kind, data, rest, ok = packet.NextOption(rest) {
		if kind != packet.OptMultipath {
			continue
		}
		all = append(all, data...)
		switch {
		case len(data) > 0 && (data[0]>>4 <= 1 || data[0]>>4 == 8):
		case len(data) < 2 || data[0]>>4 != 2 || data[1]&0x10 != 0 || has:
			more = true
		case data[1]&1 == 0:
		case data[1]&2 == 0 && len(data) >= 6:
			ack, has = binary.BigEndian.Uint32(data[2:]), true
		case data[1]&2 != 0 && len(data) >= 10:
			ack, has = binary.BigEndian.Uint32(data[6:]), true
		default:
			more = true
		}
	}
	if more {
		odd = string(all)
	}
	return ack, has, odd
}

// linkOf returns what tells networks apart: the tags, without their priorities, but for those
// that are nothing else, and what PPP over Ethernet says.
func linkOf(p *packet.Packet) (b []byte) {
	at := 12
	for range p.Tags {
		if tag := p.Frame[at : at+4]; tag[2]&0x0f != 0 || tag[3] != 0 {
			b = append(b, tag[0], tag[1], tag[2]&0x0f, tag[3])
		}
		at += 4
	}
	b = append(b, p.Frame[at:p.L3]...)
	if p.Link.PPPoE {
		clear(b[len(b)-4 : len(b)-2]) // its length
	}
	return b
}

// word returns the part of a frame that a comparison packet by packet looks at: frames with
// equal words are equal to it.
func word(f compare.Frame) string {
	var p packet.Packet
	kind := p.ParseVNet(f.Data, f.VNetHdr)
	switch {
	case kind == packet.ARP && len(p.Frame) >= p.L3+28:
		return fmt.Sprintf("%x claims %x", linkOf(&p), p.Frame[p.L3+8:p.L3+18])
	case kind != packet.IP4 && kind != packet.IP6:
		return fmt.Sprintf("%x", p.Frame[min(12, len(p.Frame)):])
	}
	b := bytes.Clone(p.Frame[p.L3:p.End])
	head := b[:p.L4-p.L3]
	if kind == packet.IP4 {
		head[1], head[8] = 0, 0
		clear(head[4:6])
		clear(head[10:12])
	} else {
		head[0], head[7] = 0x60, 0
		clear(head[1:4])
		next := head[6]
		for at := 40; at < len(head); { // the identifications of fragments
			n := 8 * (1 + int(head[at+1]))
			switch next {
			case packet.ProtoFragment:
				n = 8
				clear(head[at+4 : at+8])
			case packet.ProtoAH:
				n = 4 * (2 + int(head[at+1]))
			}
			next, at = head[at], at+n
		}
	}
	if p.L4OK && !p.Fragment { // it is compared from its header on
		var k packet.Key
		p.Key(&k)
		return fmt.Sprintf("%x %x %x", linkOf(&p), k, p.Payload())
	}
	return fmt.Sprintf("%x %x", linkOf(&p), b)
}

// learn takes in what a guest says.
func (w *testimony) learn(f compare.Frame) {
	var p packet.Packet
	if p.ParseVNet(f.Data, f.VNetHdr); !p.IsTCP() {
		w.words[word(f)]++
		return
	}
	flow, facts, ack, has := says(&p)
	for _, x := range facts {
		w.facts[x] = true
	}
	if h := p.TCP(); h.Flags()&(packet.SYN|packet.FIN|packet.RST) == packet.SYN|packet.FIN {
		w.facts[fmt.Sprintf("%s FIN %d", flow, h.Seq()+1+uint32(len(h.Payload())))] = true
	} else if h.Flags()&packet.FIN != 0 && len(h.Payload()) == 0 && slices.Contains(lives[:], h.Seq()-1) {
		var k packet.Key
		p.Key(&k)
		w.facts[fmt.Sprintf("%x %x SYN FIN", linkOf(&p), k)] = true // it is the same, said apart
	}
	w.acknowledge(flow, ack, has)
	ack, has, _ = multipath(p.TCP())
	w.acknowledge(flow+" data", ack, has)
}

func (w *testimony) acknowledge(what string, n uint32, has bool) {
	if old, ok := w.acks[what]; has && (!ok || int32(n-old) > 0) {
		w.acks[what] = n
	}
}

// lacks returns what of a frame the guest has not said.
func (w *testimony) lacks(f compare.Frame) string {
	var p packet.Packet
	if kind := p.ParseVNet(f.Data, f.VNetHdr); !p.IsTCP() {
		if w.words[word(f)] > 0 {
			if kind != packet.ARP {
				w.words[word(f)]--
			}
			return ""
		}
		return "the frame"
	}
	flow, facts, ack, has := says(&p)
	h := p.TCP()
	apart := fmt.Sprintf("%s FIN %d", flow, h.Seq()+1+uint32(len(h.Payload()))) // the FIN of a SYN, said later
	for _, x := range facts {
		if !w.facts[x] && !(strings.HasSuffix(x, " SYN FIN") && w.facts[apart]) {
			return x
		}
	}
	if old, ok := w.acks[flow]; has && (!ok || int32(ack-old) > 0) {
		return fmt.Sprintf("%s acknowledgment %d: %d (%t)", flow, ack, old, ok)
	}
	ack, has, _ = multipath(p.TCP())
	if old, ok := w.acks[flow+" data"]; has && (!ok || int32(ack-old) > 0) {
		return fmt.Sprintf("%s DATA_ACK %d: %d (%t)", flow, ack, old, ok)
	}
	return ""
}

// doubtful reports whether a frame cannot be compared, and so may leave by a checkpoint
// only: its headers contradict each other, or its virtio-net header contradicts them.
func doubtful(f compare.Frame) bool {
	var p packet.Packet
	switch p.ParseVNet(f.Data, f.VNetHdr) {
	case packet.Malformed, packet.Other:
		return true
	case packet.ARP:
		return len(p.Frame) < p.L3+28
	}
	if !p.IsTCP() {
		return !p.L4OK && !p.Fragment && slices.Contains([]uint8{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMP, packet.ProtoICMPv6}, p.Proto)
	}
	h := packet.VNetOf(f.Data, f.VNetHdr)
	if h == nil {
		return false
	}
	right := byte(packet.GSOTCPv4)
	if p.Kind == packet.IP6 {
		right = packet.GSOTCPv6
	}
	gso := h.GSOType() &^ packet.GSOECN
	return h.Flags()&packet.VNetNeedsCsum != 0 && !h.PartialChecksum(&p, packet.TCPChecksumAt) ||
		gso != packet.GSONone && gso != right
}
