package filter_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// A segment may have timestamps twice. The last ones count, as they do to Linux. The first ones
// are translated too, for a client that takes those.
func TestTimestampsThatAreRepeatedAreAllTranslated(t *testing.T) {
	twice := func(value, echo uint32) []byte {
		return append(wireTimes(value^0x1000000, echo^0x1000000), wireTimes(value, echo)...)
	}
	r := filter.NewRewriter(filter.RewriterConfig{})
	r.Inbound(segment(true, false, 500, 0, packet.SYN, twice(1, 0), nil), 0)
	r.Outbound(segment(false, false, 9000, 501, synAck, twice(5000, 1), nil), 0)
	r.Inbound(segment(true, false, 501, 1001, packet.ACK, twice(2, 3000), nil), 0)
	out := segment(false, false, 9001, 501, packet.ACK, twice(5010, 2), nil)
	r.Outbound(out, 0)
	times := append(wireTimes(5010^0x1000000-2000, 2^0x1000000), wireTimes(3010, 2)...)
	if want := segment(false, false, 1001, 501, packet.ACK, times, nil); !bytes.Equal(out, want) {
		t.Errorf("to the client: %x, want %x", out, want)
	}
	in := segment(true, false, 501, 1001, packet.ACK, twice(3, 3010), nil)
	r.Inbound(in, 0)
	times = append(wireTimes(3^0x1000000, 3010^0x1000000+2000), wireTimes(3, 5010)...)
	if want := segment(true, false, 501, 9001, packet.ACK, times, nil); !bytes.Equal(in, want) {
		t.Errorf("to the guest: %x, want %x", in, want)
	}
}

// wireTimes returns timestamps as most segments have them.
func wireTimes(value, echo uint32) []byte {
	b := binary.BigEndian.AppendUint32([]byte{1, 1, 8, 10}, value)
	return binary.BigEndian.AppendUint32(b, echo)
}
