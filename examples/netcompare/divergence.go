package main

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// A history keeps what each side has said of late, by flow. A divergence is looked up in it.
type history struct {
	flows map[packet.Key]*[2][]piece
}

// A piece is the content of one packet: a part of a stream, or a payload.
type piece struct {
	n     int // the packet's, in its capture
	tcp   bool
	seq   uint32
	flags uint8
	ack   uint32
	data  []byte
}

const (
	maxPieces  = 128  // of one side of one flow
	maxHistory = 4096 // flows whose history is kept
)

func (h *history) add(side, n int, data []byte) {
	var p packet.Packet
	if p.Parse(data); p.Kind != packet.IP4 && p.Kind != packet.IP6 {
		return
	}
	k, e := flow(&p), piece{n: n, data: append([]byte(nil), p.Payload()...)}
	if p.IsTCP() {
		t := p.TCP()
		e.tcp, e.seq, e.ack, e.flags = true, t.Seq(), t.Ack(), t.Flags()
		e.data = append([]byte(nil), t.Payload()...)
		if e.flags&packet.SYN != 0 {
			e.seq++
		}
	}
	if h.flows == nil || len(h.flows) >= maxHistory && h.flows[k] == nil {
		h.flows = map[packet.Key]*[2][]piece{}
	}
	f := h.flows[k]
	if f == nil {
		f = new([2][]piece)
		h.flows[k] = f
	}
	if len(f[side]) >= maxPieces {
		f[side] = append(f[side][:0], f[side][1:]...)
	}
	f[side] = append(f[side], e)
}

// find returns the sides of the flow that the engine names.
func (h *history) find(f compare.Flow) *[2][]piece {
	for k, sides := range h.flows {
		if k.Proto != f.Proto || uint16(k.Ports>>16) != f.Src.Port() || uint16(k.Ports) != f.Dst.Port() {
			continue
		}
		src, dst := f.Src.Addr().As16(), f.Dst.Addr().As16()
		if f.Src.Addr().Is4() {
			a, b := f.Src.Addr().As4(), f.Dst.Addr().As4()
			src, dst = [16]byte{}, [16]byte{}
			copy(src[:], a[:])
			copy(dst[:], b[:])
		}
		if k.Src == src && k.Dst == dst {
			return sides
		}
	}
	return nil
}

// clear forgets what the two sides of a flow have said.
func (h *history) clear(f compare.Flow) {
	if sides := h.find(f); sides != nil {
		*sides = [2][]piece{}
	}
}

// A finding is where two sides of a flow part.
type finding struct {
	Offset    *uint32 `json:"offset,omitempty"` // in the stream, or in the packet behind its IP header
	Primary   string  `json:"primary,omitempty"`
	Secondary string  `json:"secondary,omitempty"`

	primary, secondary []byte
	note               string
}

const shown = 16 // bytes of each side

// look finds where the two sides part. A stream's offset counts from base, its
// first byte.
func (h *history) look(f compare.Flow, base func(k *piece) uint32) (r finding, ok bool) {
	sides := h.find(f)
	if sides == nil {
		return r, false
	}
	p, s := sides[0], sides[1]
	if len(p) == 0 || len(s) == 0 {
		return r, false
	}
	if !p[0].tcp {
		return differing(p, s)
	}
	// The first position of the stream where the bytes are not the same.
	var best int32
	found := false
	for i := range p {
		for j := range s {
			from, n, equal := packet.Overlap(p[i].seq, p[i].data, s[j].seq, s[j].data)
			if equal == n {
				continue
			}
			at := from + uint32(equal)
			if d := int32(at - base(&p[i])); !found || d < best {
				best, found = d, true
				offset := uint32(d)
				r.Offset = &offset
				r.primary, r.secondary = tail(&p[i], at), tail(&s[j], at)
			}
		}
	}
	if !found {
		r.note = apart(p[len(p)-1], s[len(s)-1], base)
	}
	r.show()
	return r, true
}

// tail returns what a piece has from a position on.
func tail(p *piece, at uint32) []byte {
	b := p.data[at-p.seq:]
	return b[:min(len(b), shown)]
}

// apart says how far two sides of a stream that agrees have come.
func apart(p, s piece, base func(*piece) uint32) string {
	end := func(e piece) uint32 { return e.seq + uint32(len(e.data)) - base(&e) }
	return fmt.Sprintf("primary at %d%s, secondary at %d%s", end(p), flagNames(p.flags), end(s), flagNames(s.flags))
}

func flagNames(f uint8) string {
	var names []string
	for i, n := range []string{"FIN", "SYN", "RST"} {
		if f&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return " " + strings.Join(names, "|")
}

// differing finds the first packet of each side that has no equal on the other.
func differing(p, s []piece) (r finding, ok bool) {
	lone := func(a, b []piece) *piece {
		used := make([]bool, len(b))
	next:
		for i := range a {
			for j := range b {
				if !used[j] && string(a[i].data) == string(b[j].data) {
					used[j] = true
					continue next
				}
			}
			return &a[i]
		}
		return nil
	}
	x, y := lone(p, s), lone(s, p)
	if x == nil || y == nil {
		return r, false
	}
	n := min(len(x.data), len(y.data))
	at := 0
	for at < n && x.data[at] == y.data[at] {
		at++
	}
	offset := uint32(at)
	r.Offset = &offset
	r.primary, r.secondary = x.data[at:min(len(x.data), at+shown)], y.data[at:min(len(y.data), at+shown)]
	r.show()
	return r, true
}

func (r *finding) show() {
	r.Primary, r.Secondary = hex.EncodeToString(r.primary), hex.EncodeToString(r.secondary)
}

// text says a finding in words.
func (r *finding) text() string {
	if r.Offset == nil {
		return r.note
	}
	return fmt.Sprintf("at offset %d:\n%s\n%s", *r.Offset, dumped("primary", r.primary), dumped("secondary", r.secondary))
}

func dumped(side string, b []byte) string {
	printable := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '.'
		}
		return c
	}, latin(b))
	return fmt.Sprintf("%23s % -*x  %s", side, 3*shown, b, printable)
}

func latin(b []byte) string {
	r := make([]rune, len(b))
	for i, c := range b {
		r[i] = rune(c)
	}
	return string(r)
}
