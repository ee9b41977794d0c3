package filter_test

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// stampedAt returns a segment of client i, or of the guest to it, with a timestamp and an echo.
func stampedAt(t *testing.T, i int, toGuest bool, flags uint8, val, echo uint32) []byte {
	f := segment(toGuest, false, 501, 1001, flags, stamps(t, val, echo), nil)
	at := 36
	if toGuest {
		at = 34
	}
	binary.BigEndian.PutUint16(f[at:], uint16(40000+i))
	return resealed(f)
}

// The connections were open at the checkpoint, and need no translation. The clock of the secondary's
// guest is behind, and a client echoes what the primary's guest has sent.
func TestAGuestIsEchoedNoTimeThatItHasNotComeToOnAConnectionOfTheCheckpoint(t *testing.T) {
	const ack = packet.ACK
	r := filter.NewRewriter(filter.RewriterConfig{MaxConns: 2})
	r.Commit(0)
	say := func(i int, flags uint8, val uint32) {
		t.Helper()
		f := stampedAt(t, i, false, flags, val, 70)
		if r.Outbound(f, 0); numbers(t, f) != "501/1001" || times(f) != fmt.Sprintf("%d/70", val) {
			t.Errorf("it leaves as %s with %s", numbers(t, f), times(f))
		}
	}
	comes := func(why string, i int, flags uint8, echo uint32, want string) {
		t.Helper()
		f := stampedAt(t, i, true, flags, 71, echo)
		if !r.Inbound(f, 0) || times(f) != want || numbers(t, f) != "501/1001" {
			t.Errorf("%s: %s with %s, want %s", why, numbers(t, f), times(f), want)
		}
	}
	comes("nothing was said", 0, ack, 1050, "71/1050")
	say(0, ack, 1000)
	say(0, ack, 990) // again
	comes("a time to come", 0, ack, 1050, "71/1000")
	comes("a time of before", 0, ack, 995, "71/995")
	comes("without a meaning", 0, packet.RST|ack, 1050, "71/1050")
	comes("on another connection", 1, ack, 1050, "71/1050")
	say(0, packet.RST|ack, 5000)
	comes("a RST counts for nothing", 0, ack, 1050, "71/1000")
	damaged := stampedAt(t, 0, true, ack, 71, 1050)
	damaged[len(damaged)-20] ^= 1
	r.Inbound(damaged, 0)
	var p packet.Packet
	if p.Parse(damaged); p.TCP().Checksum() == p.TCPChecksum() {
		t.Error("a damaged segment has become a good one")
	}
	r.Failover()
	comes("alone", 0, ack, 1050, "71/1000")
	say(0, packet.SYN|ack, 10)
	comes("another connection", 0, ack, 1050, "71/10")
	r.Commit(1)
	comes("another guest", 0, ack, 1050, "71/1050")

	for i := range 4 { // of which two are remembered
		say(i, ack, 1000)
	}
	known := 0
	for i := range 4 {
		f := stampedAt(t, i, true, ack, 71, 1050)
		if r.Inbound(f, 0); times(f) == "71/1000" {
			known++
		}
	}
	if known != 2 {
		t.Errorf("the clocks of %d connections are known, want 2", known)
	}
	out, in := stampedAt(t, 3, false, ack, 1000, 70), stampedAt(t, 3, true, ack, 71, 1000)
	if n := testing.AllocsPerRun(100, func() {
		binary.BigEndian.PutUint32(out[58:], binary.BigEndian.Uint32(out[58:])+1)
		r.OutboundCopy(out, 0)
		r.Inbound(in, 0)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
