package compare_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// routed returns a packet of IPv6 that goes to hop first, in a routing header of a kind which
// names end.
func routed(kind byte, hop, end byte, next byte, payload []byte) []byte {
	header := append([]byte{next, 2, kind, 1, 0, 0, 0, 0, 15: 0}, 0, 0, 0, 0, 0, 0, 0, end)
	f := extended(header, packet.ProtoRouting, slices.Clone(payload))
	f[53] = hop
	return f
}

// sourceRouted returns a packet of IPv4 that goes to hop first, then to another, in an option which
// names end. A route that is run has been followed to its end, which hop is then.
func sourceRouted(option byte, run bool, hop, end byte, proto byte, payload []byte) []byte {
	at := byte(4)
	if run {
		at = 12
	}
	route := []byte{1, option, 11, at, 10, 0, 0, 5, 10, 0, 0, end}
	f := wireIPv4(proto, 0, slices.Concat(route, payload))
	f[14], f[33] = 0x48, hop
	return f
}

func whole(f []byte) compare.Frame { return compare.Frame{Data: f} }

// Two connections, or two flows of datagrams, with the same ports go to two ends by one hop.
// They are two: what a guest has said to one end, it has not said to the other. And one that
// changes its hop is one, as its end is one.
func TestWhatGoesByOneHopToTwoEndsIsNotOneConnection(t *testing.T) {
	const segments, home, source = 4, 2, 0
	const loose, strict = 0x83, 0x89
	type way struct {
		what  string
		known bool // which end the packet goes to
		frame func(hop, end byte, proto byte, payload []byte) []byte
	}
	var ways []way
	for _, kind := range []byte{segments, home, source} {
		ways = append(ways, way{fmt.Sprint("routing of type ", kind), kind == segments, func(hop, end byte, proto byte, payload []byte) []byte {
			return routed(kind, hop, end, proto, payload)
		}})
	}
	for _, option := range []byte{loose, strict} {
		ways = append(ways, way{fmt.Sprint("option ", option), true, func(hop, end byte, proto byte, payload []byte) []byte {
			return sourceRouted(option, false, hop, end, proto, payload)
		}})
	}
	tcp, udp := wireSegment(9, 1001, 500, wireACK, "", "data")[34:], wireDatagram(53, 5000, "data")[34:]
	for what, c := range map[string]struct {
		next    byte
		payload []byte
	}{"a segment": {packet.ProtoTCP, tcp}, "a datagram": {packet.ProtoUDP, udp}} {
		for _, w := range ways {
			to := func(hop, end byte) []byte { return sealed(w.frame(hop, end, c.next, slices.Clone(c.payload))) }
			x := newRig(t, everything())
			x.checkpoint(0)
			left := func(why string, n int, want int) {
				t.Helper()
				if !w.known {
					want = 0 // it is not looked into
				}
				if n != want {
					t.Errorf("%s, %s, %s: %d have left, want %d", what, w.what, why, n, want)
				}
			}
			n := len(x.Secondary(whole(to(3, 8)), x.now).Release)
			n += len(x.Primary(whole(to(3, 7)), x.now).Release)
			left("to another end", n, 0)
			left("to that end", len(x.Secondary(whole(to(3, 7)), x.now).Release), 1)
			left("to the other by another hop", len(x.Primary(whole(to(4, 8)), x.now).Release), 1)
			x.mark(1)
			if r := x.received(1); len(r.Release) == 0 != w.known {
				t.Errorf("%s, %s: %d have left with the checkpoint", what, w.what, len(r.Release))
			}
		}
	}
}

// What is behind such a header says nothing of a connection with the hop itself, that has the
// same ports.
func TestWhatGoesByAHopSaysNothingOfAConnectionWithIt(t *testing.T) {
	direct := func(seq, ack uint32, data string) []byte {
		f := extended(nil, packet.ProtoTCP, wireSegment(9, seq, ack, wireACK, "", data)[34:])
		f[53] = 3
		return sealed(f)
	}
	for _, kind := range []byte{4, 2} {
		x := newRig(t, everything())
		x.checkpoint(0)
		x.Secondary(whole(direct(1001, 500, "data")), x.now)
		if r := x.Primary(whole(direct(1001, 500, "data")), x.now); len(r.Release) != 1 {
			t.Fatalf("%+v", r)
		}
		by := sealed(routed(kind, 3, 7, packet.ProtoTCP, wireSegment(9, 5001, 900, wireACK, "", "data")[34:]))
		x.Primary(whole(by), x.now)
		x.Secondary(whole(by), x.now)
		x.checkpoint(1)
		r := x.Primary(whole(direct(1005, 900, "")), x.now)
		for _, f := range r.Release {
			if ack := binary.BigEndian.Uint32(f.Data[62:]); ack != 500 {
				t.Errorf("type %d: %d is acknowledged, which the other guest has not", kind, ack)
			}
		}
	}
}

// A packet of IPv6 may be from another source than its header says: from a home address, or from
// what a context of Shim6 stands for. What one of these has said, the others have not.
func TestWhatIsFromTwoHomesIsNotOneFlow(t *testing.T) {
	tcp, udp := wireSegment(9, 1001, 500, wireACK, "", "data")[34:], wireDatagram(53, 5000, "data")[34:]
	for what, header := range map[string]func(next, home byte) []byte{
		"a home address": func(next, home byte) []byte {
			return []byte{next, 2, 1, 4, 0, 0, 0, 0, 0xc9, 16, 0xfd, 22: 0, 23: home}
		},
		"a home address behind paddings": func(next, home byte) []byte {
			return []byte{next, 2, 0, 1, 0, 0xc9, 16, 0xfd, 20: home, 21: 1, 22: 1, 23: 0}
		},
		"a context": func(next, home byte) []byte { return []byte{next, 0, 0x80, 0, 0, 0, 0, home} },
	} {
		first := byte(packet.ProtoDestOpts)
		if what == "a context" {
			first = packet.ProtoShim6
		}
		for proto, payload := range map[byte][]byte{packet.ProtoTCP: tcp, packet.ProtoUDP: udp} {
			from := func(home byte) compare.Frame {
				return whole(sealed(extended(header(proto, home), first, slices.Clone(payload))))
			}
			x := newRig(t, everything())
			x.checkpoint(0)
			n := len(x.Secondary(from(8), x.now).Release) + len(x.Primary(from(7), x.now).Release)
			if n > 0 {
				t.Errorf("%s, protocol %d: it leaves, and the other guest has said it as another", what, proto)
			}
			if r := x.checkpoint(1); len(r.Release) != 1 {
				t.Errorf("%s, protocol %d: %d have left with the checkpoint", what, proto, len(r.Release))
			}
		}
	}
	other := whole(sealed(extended([]byte{packet.ProtoUDP, 0, 0x1e, 4, 0xc9, 16, 0, 0}, packet.ProtoDestOpts, udp)))
	x := newRig(t, everything())
	x.checkpoint(0)
	x.Secondary(other, x.now)
	if r := x.Primary(other, x.now); len(r.Release) != 1 {
		t.Error("a datagram waits whose options say nothing of its source")
	}
}
