package filter_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// A script takes a decision from each byte of a fuzzer.
type script struct{ b []byte }

func (s *script) next() int {
	if len(s.b) == 0 {
		return 0
	}
	v := s.b[0]
	s.b = s.b[1:]
	return int(v)
}

func (s *script) take(n int) []byte {
	n = min(n, len(s.b))
	p := s.b[:n:n]
	s.b = s.b[n:]
	return p
}

// frame makes a frame of somebody who knows addresses and not numbers: a segment of
// the connection or of another one, with any flags and options, an error that
// quotes it, a fragment, a tag, a tunnel, or one of these cut or changed anywhere.
func (s *script) frame(toGuest, v6 bool) []byte {
	kind, flags := s.next(), uint8(s.next())
	seq, a, b := 1<<20+uint32(s.next())<<16, uint32(s.next()), uint32(s.next()) // nowhere near what the two sides use
	ack := a<<24 | b
	if toGuest {
		seq += b
	} else {
		ack = 1<<20 + a<<16 + b // it may answer another client
	}
	opts := s.take(s.next() % 41 &^ 3)
	f := segment(toGuest, v6, seq, ack, flags, opts, s.take(s.next()%32))
	port := packet.EthernetLen + packet.IPv4Len
	if v6 {
		port = packet.EthernetLen + packet.IPv6Len
	}
	switch kind & 15 {
	case 0: // another connection, by the client's port
		if !toGuest {
			port += 2
		}
		f[port] = byte(s.next())
		resealed(f)
	case 1: // an error, about a segment of the other direction
		quoted := f[packet.EthernetLen:]
		h := bytes.Clone(f[:port])
		proto, total := byte(packet.ProtoICMP), len(quoted)+packet.ICMPLen+packet.IPv4Len
		if v6 {
			h[14+6] = packet.ProtoICMPv6
			binary.BigEndian.PutUint16(h[14+4:], uint16(len(quoted)+packet.ICMPLen))
		} else {
			h[14+9] = proto
			binary.BigEndian.PutUint16(h[14+2:], uint16(total))
		}
		f = append(append(h, byte(s.next()), 4, 0, 0, 0, 0, 0, 0), quoted...)
	case 2: // a tag
		f = append(append(bytes.Clone(f[:12]), 0x81, 0, byte(s.next()), byte(s.next())), f[12:]...)
	case 3: // a fragment
		if !v6 {
			f[14+6] = byte(s.next())
		}
	case 4: // cut
		f = f[:s.next()%(len(f)+1)]
	case 5: // changed, but for the ports and numbers of a segment
		if at := s.next() % len(f); at < port || at >= port+12 {
			f[at] ^= byte(s.next())
		}
	case 6:
		f = s.take(s.next())
	}
	return f
}

// A connection lives through whatever others send, as long as the guest does not
// say otherwise: each of its segments is translated, with the right checksum.
func FuzzRewriter(f *testing.F) {
	f.Add([]byte{0, 0, 9, 2, 5, 6, 7})
	f.Add([]byte{1, 1, 0, 9, 2, 7, 0, 0, 0, 0, 0, 9, 16, 3, 3, 3, 0, 0, 0, 1, 9, 16})
	f.Add(append([]byte{2, 0, 1, 16, 1, 1, 1, 0, 12, 3, 0}, bytes.Repeat([]byte{0, 9, 4, 200, 1, 0, 0, 12, 1}, 20)...))
	f.Add(append([]byte{3, 0, 1, 16, 1, 1, 1, 0, 12, 3, 0}, bytes.Repeat([]byte{2, 1, 4, 200, 5, 0, 0, 40, 1}, 20)...))
	// A guest that has taken data with the SYN of another connection, speaks, and is answered.
	f.Add([]byte{8,
		0, 0, packet.SYN, 1, 0, 0, 0, 4, 'a', 's', 'k', '!', 77,
		5, 0, synAck, 9, 1, 5, 0, 0, 77,
		5, 0, packet.ACK, 9, 1, 5, 0, 2, 'h', 'i', 77,
		0, 0, packet.ACK, 1, 7, 5, 0, 0, 77})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &script{b}
		how := s.next()
		v6, byGuest := how&1 != 0, how&2 != 0
		r := newTwice(t, filter.RewriterConfig{MaxConns: 3, Strict: how&4 != 0, KeepLate: how&8 != 0, Edge: new(filter.Edge)})
		if byGuest {
			r.Outbound(segment(false, v6, 9000, 0, packet.SYN, nil, nil), 0)
			r.Inbound(segment(true, v6, 500, 1001, synAck, nil, nil), 0)
			r.Outbound(segment(false, v6, 9001, 501, packet.ACK, nil, nil), 0)
		} else {
			r.Inbound(segment(true, v6, 500, 0, packet.SYN, nil, nil), 0)
			r.Outbound(segment(false, v6, 9000, 501, synAck, nil, nil), 0)
			r.Inbound(segment(true, v6, 501, 1001, packet.ACK, nil, nil), 0)
		}
		ahead := uint32(8000)
		for len(s.b) > 0 {
			switch op := s.next(); op & 7 {
			case 0, 1, 2, 3, 4: // to the guest, which answers with what it has acknowledged
				fr := s.frame(true, v6)
				n := len(fr)
				r.Inbound(fr, 0)
				if len(fr) != n {
					t.Fatal("grown")
				}
				if op&8 != 0 {
					r.Outbound(segment(false, v6, 1001+ahead, 501, packet.ACK, nil, nil), 0)
				}
			case 5: // the guest, but for what says something of this connection
				fr := s.frame(false, v6)
				var p packet.Packet
				if p.Parse(fr); !p.IsTCP() || p.TCP().DstPort() != 40000 {
					r.Outbound(fr, 0)
				}
			case 6:
				r.Commit(0)
				ahead = 0
			case 7:
				if s.next()&1 != 0 {
					r.Failover()
				}
				vnet := s.next()%26 - 1
				fr := append(s.take(max(vnet, 0)), s.frame(true, v6)...)
				r.Inbound(fr, vnet)
			}
			for r.Late() != nil {
			}
		}
		if how&4 != 0 {
			return // a stranger does what it likes with QEMU's
		}
		in := segment(true, v6, 501, 1001, packet.ACK, nil, []byte("x"))
		if got := numbers(t, in); !r.Inbound(in, 0) || numbers(t, in) != fmt.Sprintf("501/%d", 1001+ahead) {
			t.Errorf("%s came as %s, %d ahead", got, numbers(t, in), ahead)
		}
		out := segment(false, v6, 1001+ahead, 502, packet.ACK, nil, []byte("y"))
		if r.Outbound(out, 0); numbers(t, out) != "1001/502" {
			t.Errorf("left as %s, %d ahead", numbers(t, out), ahead)
		}
	})
}
