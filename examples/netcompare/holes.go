package main

import (
	"slices"

	"github.com/gocolo/lockstep/internal/packet"
)

// A reach is how far the data of a connection has come in a capture, and what is missing from it. A
// guest repeats what was lost on the network, and so what is in no packet of the capture was most
// likely dropped by the program that captured, for want of memory.
type reach struct {
	begun bool
	next  uint32      // all before it has come, or was given up
	ahead [][2]uint32 // stretches beyond next, in order and apart from each other
	lost  uint64      // what was given up, in bytes
}

// maxStretches bounds the stretches that are remembered of one connection.
const maxStretches = 1024

// add adds the data of a segment.
func (r *reach) add(h packet.TCP) {
	from := h.Seq()
	if h.Flags()&packet.SYN != 0 {
		from++
	}
	to := from + uint32(len(h.Payload()))
	if h.Flags()&packet.FIN != 0 {
		to++
	}
	if !r.begun {
		r.begun, r.next = true, from
	}
	switch {
	case h.Flags()&packet.RST != 0, int32(to-r.next) <= 0:
		return
	case int32(from-r.next) < 0:
		from = r.next
	}
	at := 0
	for at < len(r.ahead) && int32(r.ahead[at][1]-from) < 0 {
		at++
	}
	n := at
	for ; n < len(r.ahead) && int32(r.ahead[n][0]-to) <= 0; n++ {
		if int32(r.ahead[n][0]-from) < 0 {
			from = r.ahead[n][0]
		}
		if int32(r.ahead[n][1]-to) > 0 {
			to = r.ahead[n][1]
		}
	}
	r.ahead = slices.Replace(r.ahead, at, n, [2]uint32{from, to})
	if len(r.ahead) > maxStretches {
		r.lost += uint64(r.ahead[0][0] - r.next)
		r.next = r.ahead[0][0]
	}
	if r.ahead[0][0] == r.next {
		r.next = r.ahead[0][1]
		r.ahead = slices.Delete(r.ahead, 0, 1)
	}
}

// missing returns how many bytes of the connection are in no packet.
func (r *reach) missing() uint64 {
	n, next := r.lost, r.next
	for _, x := range r.ahead {
		n += uint64(x[0] - next)
		next = x[1]
	}
	return n
}

// holes returns in how many connections of the capture something is missing, and how many bytes.
func (n *numbering) holes() (conns int, bytes uint64) {
	for _, list := range n.conns {
		for _, b := range list {
			if m := b.reach.missing(); m > 0 {
				conns++
				bytes += m
			}
		}
	}
	return conns, bytes
}
