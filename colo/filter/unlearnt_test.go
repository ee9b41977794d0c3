package filter_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// spoilt changes a number of a segment, and not its checksum.
func spoilt(f []byte) []byte {
	var p packet.Packet
	p.Parse(f)
	h := p.TCP()
	if h.Flags()&packet.ACK != 0 {
		h.SetAck(h.Ack() ^ 0x40)
	} else {
		f[len(f)-1] ^= 0x40
	}
	return f
}

// A guest drops a segment whose checksum is wrong, and so nothing of what it says becomes known:
// whatever is damaged, the connection goes on as without it.
func TestADamagedSegmentTeachesNothing(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		in := func(flags uint8, seq, ack uint32, data string) []byte {
			return segment(true, v6, seq, ack, flags, nil, []byte(data))
		}
		for _, c := range []struct {
			name string
			bad  []byte
			at   int // before which step it comes
		}{
			{"a SYN", in(packet.SYN, 700, 0, "x"), 0},
			{"an acknowledgment of what is still to come", in(packet.ACK, 501, 1001, ""), 1},
			{"data that come before the number is known", in(packet.ACK, 505, 1001, "data"), 2},
			{"the acknowledgment of the SYN|ACK", in(packet.ACK, 501, 1001, ""), 2},
			{"a RST of the handshake", in(packet.RST|packet.ACK, 501, 1001, ""), 2},
			{"a RST", in(packet.RST|packet.ACK, 501, 1001, ""), 3},
			{"a FIN", in(packet.FIN|packet.ACK, 501, 1001, ""), 3},
			{"the acknowledgment of a FIN", in(packet.FIN|packet.ACK, 501, 1002, ""), 4},
		} {
			for _, over := range []bool{false, true} {
				x := talk{T: t, r: newTwice(t, filter.RewriterConfig{}), v6: v6}
				why := fmt.Sprintf("IPv6 %t, %s is damaged", v6, c.name)
				steps := []func(){
					func() { x.in(why+": SYN", "500/0", packet.SYN, 500, 0) },
					func() {
						if over {
							x.r.Failover()
						}
						x.out(why+": SYN|ACK", "9000/501", synAck, 9000, 501)
					},
					func() { x.in(why+": ACK", "501/9001", packet.ACK, 501, 1001) },
					func() { x.out(why+": data", "1001/501", packet.FIN|packet.ACK, 9001, 501) },
					func() { x.in(why+": the end", "501/9002", packet.FIN|packet.ACK, 501, 1002) },
				}
				for i, do := range steps {
					if i == c.at {
						f := spoilt(bytes.Clone(c.bad))
						was := wrongBy(f)
						if !x.r.Inbound(f, 0) {
							t.Errorf("%s: it is held", why)
						}
						if wrongBy(f) != was {
							t.Errorf("%s: its checksum was wrong by %#x, and is by %#x", why, was, wrongBy(f))
						}
					}
					do()
				}
				if s := x.r.Stats(); s.Held != 0 || s.Dropped != 0 || s.Conns != 1 {
					t.Errorf("%s: %+v", why, s)
				}
			}
		}
	}
}

// What ends a connection makes room for another, and what is damaged ends none: neither in a
// Rewriter nor in an Edge.
func TestADamagedSegmentEndsNoConnection(t *testing.T) {
	for _, c := range []struct {
		name  string
		flags uint8
		ack   uint32
	}{{"a RST", packet.RST | packet.ACK, 1001}, {"a FIN", packet.FIN | packet.ACK, 1002}} {
		for _, damage := range []bool{false, true} {
			refused := 0
			r := filter.NewRewriter(filter.RewriterConfig{MaxConns: 1, Untranslatable: func() { refused++ }})
			r.Inbound(calling(0, true, 500, 0, packet.SYN, ""), 0)
			r.Outbound(calling(0, false, 9000, 501, synAck, ""), 0)
			r.Inbound(calling(0, true, 501, 1001, packet.ACK, ""), 0)
			r.Outbound(calling(0, false, 9001, 501, packet.FIN|packet.ACK, ""), 0)
			f := calling(0, true, 501, c.ack, c.flags, "")
			if damage {
				f[len(f)-6] ^= 0x20 // the window
			}
			r.Inbound(f, 0)
			r.Outbound(calling(0, false, 9002, 502, packet.ACK, ""), 0)
			r.Inbound(calling(1, true, 600, 0, packet.SYN, ""), 0)
			r.Outbound(calling(1, false, 19000, 601, synAck, ""), 0)
			if (refused > 0) != damage {
				t.Errorf("%s, damaged %t: another connection has no place: %t", c.name, damage, refused > 0)
			}
		}
	}
}

// A checksum that nobody looks at says nothing of damage.
func TestAChecksumThatIsNotCheckedIsNoDamage(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, vnet := range []int{0, 10, 12, 20, 24} {
			for name, unsum := range map[string]func(f []byte) []byte{
				"partial": func(f []byte) []byte { return offloaded(f, vnet) },
				"verified": func(f []byte) []byte {
					spoilt(f)
					return append(append([]byte{packet.VNetDataValid}, make([]byte, vnet-1)...), f...)
				},
				"zero": func(f []byte) []byte {
					var p packet.Packet
					p.Parse(f)
					p.TCP().SetChecksum(0)
					return append(make([]byte, vnet), f...)
				},
			} {
				if vnet == 0 && name != "zero" {
					continue
				}
				r := filter.NewRewriter(filter.RewriterConfig{})
				for _, f := range [][]byte{
					unsum(segment(true, v6, 500, 0, packet.SYN, nil, []byte("x"))),
					nil,
					unsum(segment(true, v6, 501, 1001, packet.ACK, nil, nil)),
				} {
					if f == nil {
						r.Outbound(segment(false, v6, 9000, 501, synAck, nil, nil), 0)
						continue
					}
					if !r.Inbound(f, vnet) {
						t.Errorf("%s, header of %d bytes: it is held", name, vnet)
					}
				}
				out := segment(false, v6, 9001, 501, packet.ACK, nil, []byte("data"))
				r.Outbound(out, 0)
				if got, want := numbers(t, out), "1001/501"; got != want && name != "verified" {
					t.Errorf("%s, header of %d bytes: %s, want %s", name, vnet, got, want)
				} else if name == "verified" && binary.BigEndian.Uint32(out[len(out)-20:]) == 9001 {
					t.Errorf("%s, header of %d bytes: it is not translated", name, vnet)
				}
			}
		}
	}
}
