package protect

import (
	"encoding/binary"
	"io"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/packet"
)

// deadUplink is an uplink that brings nothing.
type deadUplink struct{}

func (deadUplink) ReadPacket() ([]byte, error) { return nil, io.EOF }
func (deadUplink) WritePacket([]byte) error    { return nil }
func (deadUplink) Close() error                { return nil }

// half returns a segment of a connection between 10.0.0.2, a client, and 10.0.0.1.
func half(toGuest bool, flags uint8, seq, ack uint32) []byte {
	f := make([]byte, 54)
	f[12], f[14], f[17], f[23] = 8, 0x45, 40, packet.ProtoTCP
	copy(f[26:], []byte{10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 156, 64})
	if toGuest {
		copy(f[26:], []byte{10, 0, 0, 2, 10, 0, 0, 1, 156, 64, 0, 80})
	}
	binary.BigEndian.PutUint32(f[38:], seq)
	binary.BigEndian.PutUint32(f[42:], ack)
	f[46], f[47], f[48] = 5<<4, flags, 1
	return f
}

// A Proxy tells its Edge of the checkpoints: what a client's answer tells waits for the one that
// carries it.
func TestAProxyHoldsAnAnswerUntilACheckpointHasIt(t *testing.T) {
	for _, alone := range []bool{false, true} {
		n, err := NewProxy(ProxyConfig{Uplink: deadUplink{}, Deliver: func([]byte) error { return nil }})
		if err != nil {
			t.Fatal(err)
		}
		asked := 0
		n.host.Checkpoint = func(event.Cause) { asked++ }
		close(n.started)
		r := filter.NewRewriter(filter.RewriterConfig{})
		r.Inbound(half(true, packet.SYN, 500, 0), 0)
		r.Outbound(half(false, packet.SYN|packet.ACK, 9000, 501), 0)
		n.edge.Adopt(r)
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(n.Mark(0))
		must(n.Received(0))
		answer := func() bool { return n.edge.Inbound(half(true, packet.ACK, 501, 1001), 0) }
		if answer() || asked != 1 {
			t.Errorf("it is delivered, or %d checkpoints are asked for", asked)
		}
		if alone {
			must(n.Failover())
		} else {
			must(n.Mark(1))
			must(n.Received(1))
		}
		if !answer() {
			t.Errorf("alone=%t: then it is not delivered", alone)
		}
	}
}
