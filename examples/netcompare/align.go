package main

import (
	"encoding/binary"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
)

// Two guests that were captured on their own have numbers of their own on every
// connection, and so had the clients that talked to them. Here the packets of
// the secondary get the numbers of the primary: the first pass over both captures
// learns with which numbers each connection begins, and the second one translates.

// A beginning is how a connection begins in one capture, as the guest's SYN or
// SYN|ACK and its first acknowledgment tell.
type beginning struct {
	at           time.Time
	seq, peer    uint32 // the initial numbers, of the guest and of the other end
	val, echo    uint32 // the first timestamps
	known, heard bool   // those of the guest, and of the other end
	timed        bool

	reach reach // how far the guest's data has come, by the first pass
}

// A numbering follows the connections of one capture, in either pass.
type numbering struct {
	conns map[packet.Key][]*beginning
	at    map[packet.Key]int // which of them the packets are of now
	echos map[packet.Key][]uint16

	stations map[packet.Key]station
}

func newNumbering() *numbering {
	return &numbering{map[packet.Key][]*beginning{}, map[packet.Key]int{}, map[packet.Key][]uint16{}, map[packet.Key]station{}}
}

// again returns n for another pass.
func (n *numbering) again() *numbering {
	return &numbering{n.conns, map[packet.Key]int{}, n.echos, n.stations}
}

// flow returns the key of a packet's flow, whatever VLAN it is in: what the two
// captures call it may differ. What is not IP has the zero key.
func flow(p *packet.Packet) (k packet.Key) {
	if p.Kind != packet.IP4 && p.Kind != packet.IP6 {
		return k
	}
	p.Key(&k)
	k.Layers, k.VLAN, k.Outer = 0, 0, 0
	return k
}

// conn returns the beginning of the connection that a segment is of, and which one
// it is of those between the two ports.
func (n *numbering) conn(k packet.Key, h packet.TCP, at time.Time) (b *beginning, i int) {
	list, i := n.conns[k], n.at[k]
	syn := h.Flags()&packet.SYN != 0
	switch {
	case len(list) == 0:
		b = &beginning{at: at}
	case syn && list[i].known && list[i].seq != h.Seq(), syn && !list[i].known:
		if i++; i < len(list) {
			n.at[k] = i
			b = list[i]
			break
		}
		b = &beginning{at: at}
	default:
		b = list[i]
	}
	if i == len(list) {
		n.conns[k], n.at[k] = append(list, b), i
	}
	if syn && !b.known {
		b.seq, b.known = h.Seq(), true
		if ts := times(h); ts != nil {
			b.val, b.timed = binary.BigEndian.Uint32(ts), true
		}
	}
	if b.known && !b.heard && h.Flags()&packet.ACK != 0 {
		b.peer, b.heard = h.Ack()-1, true
		if ts := times(h); ts != nil {
			b.echo = binary.BigEndian.Uint32(ts[4:])
		}
	}
	return b, i
}

// A difference is added to the numbers of a connection of the secondary to get those of the
// primary.
type difference struct{ seq, ack, val, echo uint32 }

// difference returns the difference of the i-th connection of a flow. ok reports whether it is
// known, as it is where both captures have the beginning of the connection.
func (n *numbering) difference(primary *numbering, k packet.Key, i int) (d difference, ok bool) {
	p, s := primary.conns[k], n.conns[k]
	if i >= len(p) || i >= len(s) || !p[i].known || !s[i].known {
		return d, false
	}
	d.seq = p[i].seq - s[i].seq
	if p[i].heard && s[i].heard {
		d.ack = p[i].peer - s[i].peer
	}
	if p[i].timed && s[i].timed {
		d.val, d.echo = p[i].val-s[i].val, p[i].echo-s[i].echo
	}
	return d, true
}

// apply translates a segment of the secondary.
func (d difference) apply(h packet.TCP) {
	h.SetSeq(h.Seq() + d.seq)
	if h.Flags()&packet.ACK != 0 {
		h.SetAck(h.Ack() + d.ack)
	}
	for opts := h.Options(); ; {
		kind, data, rest, ok := packet.NextOption(opts)
		switch {
		case !ok:
			return
		case kind == packet.OptSACK:
			for ; len(data) >= 4; data = data[4:] {
				add(data, d.ack)
			}
		case kind == packet.OptTimestamps && len(data) == 8:
			add(data, d.val)
			if binary.BigEndian.Uint32(data[4:]) != 0 {
				add(data[4:], d.echo)
			}
		}
		opts = rest
	}
}

func add(b []byte, n uint32) { binary.BigEndian.PutUint32(b, binary.BigEndian.Uint32(b)+n) }

// times returns the two timestamps of a segment, nil if it has none.
func times(h packet.TCP) []byte {
	for opts := h.Options(); ; {
		kind, data, rest, ok := packet.NextOption(opts)
		switch {
		case !ok:
			return nil
		case kind == packet.OptTimestamps && len(data) == 8:
			return data
		}
		opts = rest
	}
}

// echo returns the identifier of an ICMP or ICMPv6 echo or its reply, which the one
// who asks has chosen.
func echo(p *packet.Packet) (id uint16, ok bool) {
	if !p.L4OK || p.Fragment {
		return 0, false
	}
	m := p.Payload()
	switch t := m[0]; {
	case p.Proto == packet.ProtoICMP && (t == 0 || t == 8), p.Proto == packet.ProtoICMPv6 && (t == 128 || t == 129):
		return binary.BigEndian.Uint16(m[4:]), true
	}
	return 0, false
}

// asked notes the identifier of an echo.
func (n *numbering) asked(k packet.Key, id uint16) {
	if l := n.echos[k]; len(l) == 0 || l[len(l)-1] != id {
		n.echos[k] = append(l, id)
	}
}

// otherwise reports whether the echos of a flow are not the same in the two
// captures: then somebody has sent two different requests, and the replies repeat
// what was in them.
func (n *numbering) otherwise(o *numbering, k packet.Key) bool {
	a, b := n.echos[k], o.echos[k]
	if len(a) == 0 || len(b) == 0 {
		return false
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return true
		}
	}
	return false
}

// anonymous clears all of an echo reply but the sequence number that it answers and the
// length, which the guest that sends it decides.
func anonymous(p *packet.Packet) {
	m := p.Payload()
	clear(m[2:6])
	clear(m[packet.ICMPLen:])
}
