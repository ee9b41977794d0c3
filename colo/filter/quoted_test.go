package filter_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// message builds an ICMP message to the guest, or from it, that quotes a packet.
func message(t *testing.T, toGuest, v6, redirect bool, tags string, quoted []byte) []byte {
	t.Helper()
	f := segment(toGuest, v6, 0, 0, 0, nil, nil)
	f = f[:len(f)-packet.TCPLen]
	head := []byte{3, 4, 0, 0, 0, 0, 5, 0}
	switch {
	case v6 && redirect: // where to, for whom, an option that quotes nothing, and the one that does
		n := (len(quoted) + 15) / 8
		head = slices.Concat([]byte{137, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 32), []byte{2, 1, 2, 0, 0, 0, 0, 1, 4, byte(n), 0, 0, 0, 0, 0, 0})
		quoted = append(bytes.Clone(quoted), make([]byte, 8*n-8-len(quoted))...)
	case v6:
		head[0], head[1] = 2, 0
	case redirect:
		head[0], head[1] = 5, 1
	}
	if f = append(append(f, head...), quoted...); v6 {
		f[20] = packet.ProtoICMPv6
		binary.BigEndian.PutUint16(f[18:], uint16(len(f)-54))
	} else {
		f[23] = packet.ProtoICMP
		binary.BigEndian.PutUint16(f[16:], uint16(len(f)-14))
	}
	f = slices.Concat(f[:12], []byte(tags), f[12:])
	var p packet.Packet
	p.Parse(f)
	binary.BigEndian.PutUint16(f[p.L4+2:], ^icmpSum(&p))
	return f
}

// sealedMessage reports whether the checksum of a message is right, and sets it to zero, so
// that messages can be compared.
func sealedMessage(f []byte) bool {
	var p packet.Packet
	p.Parse(f)
	was := binary.BigEndian.Uint16(f[p.L4+2:])
	binary.BigEndian.PutUint16(f[p.L4+2:], 0)
	return was == ^icmpSum(&p)
}

// An error, or a redirect, quotes a segment as the one who sent it to the other end knows it:
// with options in front, of a fragment, in a VLAN, and cut anywhere. Each end finds its own
// numbers, and what is no segment of the connection is as it was.
func TestWhatAnErrorQuotesIsTranslatedWhereverItIsCut(t *testing.T) {
	type quote struct {
		change func(b []byte) []byte // of a whole packet
		head   int                   // how long what is in front of the segment is then; 0: there is none
	}
	insert := func(at int, v string, then func(b []byte)) func([]byte) []byte {
		return func(b []byte) []byte { b = slices.Concat(b[:at], []byte(v), b[at:]); then(b); return b }
	}
	quotes := map[bool]map[string]quote{
		false: {
			"a packet":            {func(b []byte) []byte { return b }, 20},
			"with options":        {insert(20, "\x94\x04\x00\x00\x01\x01\x01\x00", func(b []byte) { b[0] = 0x47 }), 28},
			"a first fragment":    {func(b []byte) []byte { b[6] = 0x20; return b }, 20},
			"a later fragment":    {func(b []byte) []byte { b[7] = 1; return b }, 0},
			"a header too short":  {func(b []byte) []byte { b[0] = 0x44; return b }, 0},
			"of another protocol": {func(b []byte) []byte { b[9] = packet.ProtoUDP; return b }, 0},
		},
		true: {
			"a packet":         {func(b []byte) []byte { return b }, 40},
			"with options":     {insert(40, "\x06\x01\x01\x0c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", func(b []byte) { b[6] = packet.ProtoDestOpts }), 56},
			"a first fragment": {insert(40, "\x06\x00\x00\x01\x00\x00\x00\x07", func(b []byte) { b[6] = packet.ProtoFragment }), 48},
			"a later fragment": {insert(40, "\x06\x00\x00\x09\x00\x00\x00\x07", func(b []byte) { b[6] = packet.ProtoFragment }), 0},
			"of no protocol":   {func(b []byte) []byte { b[6] = packet.ProtoNoNext; return b }, 0},
		},
	}
	edits := 0
	for _, v6 := range []bool{false, true} {
		r := established(v6)
		e := new(filter.Edge)
		e.Adopt(r)
		for name, q := range quotes[v6] {
			for how := range 8 {
				toGuest, redirect, tags := how&1 != 0, how&2 != 0, ""
				whole := func(number uint32) []byte { // what the receiver of the message had sent
					if toGuest {
						return q.change(segment(false, v6, number, 501, packet.ACK, nil, []byte("data"))[14:])
					}
					return q.change(segment(true, v6, 501, number, packet.ACK, nil, []byte("data"))[14:])
				}
				was, want := uint32(1001), uint32(9001)
				need := 8
				if !toGuest {
					was, want, need = want, was, 12
				}
				if how&4 != 0 {
					tags = "\x81\x00\x00\x05" // another network: the connection is not in it
				}
				for n := range len(whole(was)) + 1 {
					cut := whole(was)[:n]
					f := message(t, toGuest, v6, redirect, tags, cut)
					g := bytes.Clone(f)
					edited := bytes.Clone(cut)
					padded := n
					if v6 && redirect {
						padded = (n+15)/8*8 - 8 // with zeroes, of which nobody knows that they are none of it
						edited = append(edited, make([]byte, padded-n)...)
					}
					if q.head > 0 && n >= q.head+4 && padded >= q.head+need && tags == "" {
						copy(edited, whole(want)[:n])
						at := q.head + 4
						if !toGuest {
							at = q.head + 8
						}
						if n < at+4 { // a number of which some is padding
							binary.BigEndian.PutUint32(edited[at:], binary.BigEndian.Uint32(append(bytes.Clone(cut), make([]byte, 8)...)[at:])+want-was)
						}
						switch {
						case n >= q.head+20:
						case padded >= q.head+20:
							continue // its checksum is whatever it is
						case n > q.head+16: // it is not whole, and so nobody can look at its checksum
							copy(edited[q.head+16:], cut[q.head+16:])
						}
						edits++
					}
					wanted := message(t, toGuest, v6, redirect, tags, edited)
					if toGuest {
						r.Inbound(f, 0)
						e.Inbound(g, 0)
					} else {
						r.Outbound(f, 0)
						e.Outbound(g, 0)
					}
					sealedMessage(wanted)
					if !sealedMessage(f) || !sealedMessage(g) || !bytes.Equal(f, wanted) || !bytes.Equal(g, wanted) {
						t.Fatalf("%s of %d bytes, to the guest %t, a redirect %t, tags %x, IPv6 %t:\n%x and\n%x, not\n%x", name, n, toGuest, redirect, tags, v6, f, g, wanted)
					}
				}
			}
		}
	}
	if edits < 300 {
		t.Errorf("%d were translated: nothing was tried", edits)
	}
}
