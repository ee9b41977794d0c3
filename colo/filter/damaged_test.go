package filter_test

import (
	"encoding/binary"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// wrongBy returns how far the checksum of a segment is from the right one, in ones' complement.
func wrongBy(frame []byte) uint16 {
	var p packet.Packet
	p.Parse(frame)
	d := uint32(p.TCP().Checksum()) + uint32(^p.TCPChecksum())
	if d = d>>16 + d&0xffff; d == 0xffff {
		return 0
	}
	return uint16(d)
}

// A segment that was damaged on its way, as a router does it whose memory fails, has a wrong
// checksum. It has one when it is translated, too, by as much, or the guest would take the
// damage for what the client has sent, and the client would be told that it has come.
func TestADamagedSegmentStaysDamaged(t *testing.T) {
	times := wireTimes(7, 9)
	for name, damage := range map[string]func(frame []byte){
		"nothing":      func([]byte) {},
		"data":         func(f []byte) { f[len(f)-1] ^= 0x40 },
		"the checksum": func(f []byte) { f[len(f)-len("data")-len(times)-4] ^= 1 },
		"a timestamp":  func(f []byte) { f[len(f)-len("data")-5] ^= 1 },
		"the window":   func(f []byte) { f[len(f)-len("data")-len(times)-6] ^= 0x80 },
	} {
		for _, v6 := range []bool{false, true} {
			edge := new(filter.Edge)
			edge.Adopt(established(v6))
			r := established(v6)
			for who, pass := range map[string]func(frame []byte, toGuest bool){
				"a Rewriter": func(f []byte, toGuest bool) {
					if toGuest {
						r.Inbound(f, 0)
					} else {
						r.Outbound(f, 0)
					}
				},
				"an Edge": func(f []byte, toGuest bool) {
					if toGuest {
						edge.Inbound(f, 0)
					} else {
						edge.Outbound(f, 0)
					}
				},
			} {
				for _, toGuest := range []bool{false, true} {
					seq, ack := uint32(9001), uint32(501)
					if toGuest {
						seq, ack = 501, 1001
					}
					f := segment(toGuest, v6, seq, ack, packet.ACK, times, []byte("data"))
					damage(f)
					was := wrongBy(f)
					if pass(f, toGuest); wrongBy(f) != was {
						t.Errorf("%s, to the guest %t, %s is damaged: the checksum was wrong by %#x, and is by %#x", who, toGuest, name, was, wrongBy(f))
					}
					var p packet.Packet
					p.Parse(f)
					if h := p.TCP(); h.Seq() == seq && h.Ack() == ack {
						t.Errorf("%s, to the guest %t: it is not translated", who, toGuest)
					}
				}
			}
		}
	}
}

// The pseudo-header of a packet that others have to pass on has the address of the last of
// them (RFC 8200 section 8.1), and not the one of the header.
func TestTheChecksumOfASourceRouteStaysRight(t *testing.T) {
	// A loose source route (RFC 791) by way of another host: what it says is the checksum's.
	plain := segment(true, false, 501, 1001, packet.ACK, nil, []byte("data"))
	route := []byte{131, 7, 4, 10, 0, 0, 7, 0}
	f := append(append(append([]byte{}, plain[:34]...), route...), plain[34:]...)
	f[14] = 0x47
	binary.BigEndian.PutUint16(f[16:], uint16(len(f)-14))
	var p packet.Packet
	p.Parse(f)
	last := packet.Update(p.TCP().Checksum(), binary.BigEndian.Uint32(f[30:]), binary.BigEndian.Uint32(route[3:]))
	p.TCP().SetChecksum(last)
	was := wrongBy(f)
	if established(false).Inbound(f, 0); wrongBy(f) != was {
		t.Errorf("off by %#x, and was by %#x", wrongBy(f), was)
	}
}
