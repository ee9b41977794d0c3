package filter_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// sealed puts an authentication header before a segment over IPv6.
func sealed(f []byte) []byte {
	f = slices.Insert(f, 14+packet.IPv6Len, packet.ProtoTCP, 2, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 'i', 'c', 'v', '.')
	f[14+6] = packet.ProtoAH
	binary.BigEndian.PutUint16(f[14+4:], uint16(len(f)-14-packet.IPv6Len))
	return f
}

// No change of a segment survives an authentication header (RFC 4302): the connection is
// left alone, and a checkpoint asked for.
func TestConnectionsBehindAnAuthenticationHeaderAreLeftAlone(t *testing.T) {
	asked := 0
	r := newTwice(t, filter.RewriterConfig{Untranslatable: func() { asked++ }})
	for _, x := range []struct {
		toGuest  bool
		seq, ack uint32
		flags    uint8
	}{
		{true, 500, 0, packet.SYN},
		{false, 9000, 501, synAck},
		{true, 501, 1001, packet.ACK},
		{false, 9001, 501, packet.ACK},
	} {
		f := sealed(segment(x.toGuest, true, x.seq, x.ack, x.flags, nil, nil))
		was := bytes.Clone(f)
		if x.toGuest {
			r.Inbound(f, 0)
		} else {
			r.Outbound(f, 0)
		}
		if !bytes.Equal(f, was) {
			t.Errorf("%x was changed to %x", was, f)
		}
	}
	if s := r.Stats(); asked != 1 || s.Signed != 1 {
		t.Errorf("a checkpoint was asked for %d times, %+v", asked, s)
	}
}
