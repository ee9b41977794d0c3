package compare_test

import (
	"encoding/binary"
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

func whole(f []byte) compare.Frame { return compare.Frame{Data: f} }

// Two connections, or two flows of datagrams, with the same ports go to two ends by one hop.
// They are two: what a guest has said to one end, it has not said to the other. And one that
// changes its hop is one, as its end is one.
func TestWhatGoesByOneHopToTwoEndsIsNotOneConnection(t *testing.T) {
	const segments, home, source = 4, 2, 0
	tcp, udp := wireSegment(9, 1001, 500, wireACK, "", "data")[34:], wireDatagram(53, 5000, "data")[34:]
	for what, c := range map[string]struct {
		next    byte
		payload []byte
	}{"a segment": {packet.ProtoTCP, tcp}, "a datagram": {packet.ProtoUDP, udp}} {
		for _, kind := range []byte{segments, home, source} {
			to := func(hop, end byte) []byte { return sealed(routed(kind, hop, end, c.next, c.payload)) }
			x := newRig(t, everything())
			x.checkpoint(0)
			left := func(why string, n int, want int) {
				t.Helper()
				if kind != segments {
					want = 0 // it is not looked into
				}
				if n != want {
					t.Errorf("%s, routing of type %d, %s: %d have left, want %d", what, kind, why, n, want)
				}
			}
			n := len(x.Secondary(whole(to(3, 8)), x.now).Release)
			n += len(x.Primary(whole(to(3, 7)), x.now).Release)
			left("to another end", n, 0)
			left("to that end", len(x.Secondary(whole(to(3, 7)), x.now).Release), 1)
			left("to the other by another hop", len(x.Primary(whole(to(4, 8)), x.now).Release), 1)
			x.mark(1)
			if r := x.received(1); len(r.Release) == 0 == (kind != segments) {
				t.Errorf("%s, routing of type %d: %d have left with the checkpoint", what, kind, len(r.Release))
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
