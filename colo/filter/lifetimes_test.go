package filter_test

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// calling builds a segment of the client at port 40000+i.
func calling(i int, toGuest bool, seq, ack uint32, flags uint8, data string) []byte {
	f := segment(toGuest, false, seq, ack, flags, nil, []byte(data))
	at := 34
	if !toGuest {
		at = 36
	}
	binary.BigEndian.PutUint16(f[at:], uint16(40000+i))
	return resealed(f)
}

// given returns the numbers with which a segment reaches the guest, or "waits", and said those
// with which one leaves it.
func given(t *testing.T, r *filter.Rewriter, f []byte) string {
	t.Helper()
	if !r.Inbound(f, 0) {
		return "waits"
	}
	return numbers(t, f)
}

func said(t *testing.T, r *filter.Rewriter, f []byte) string {
	t.Helper()
	r.Outbound(f, 0)
	return numbers(t, f)
}

// Two ends may open a connection at once: each sends a SYN, and answers that of the other (RFC
// 9293 section 3.5). The primary's guest has 1000, and the secondary's 9000.
func TestAConnectionThatBothEndsOpenAtOnceIsTranslated(t *testing.T) {
	for name, last := range map[string]struct {
		frame []byte
		want  string
	}{
		"with the client's SYN|ACK":              {calling(0, true, 500, 1001, synAck, ""), "500/9001"},
		"the client's SYN|ACK is lost":           {calling(0, true, 501, 1001, packet.ACK, ""), "501/9001"},
		"and its first data comes before an ACK": {calling(0, true, 501, 1001, packet.ACK, "data"), "501/9001"},
	} {
		r := filter.NewRewriter(filter.RewriterConfig{})
		if got := said(t, r, calling(0, false, 9000, 0, packet.SYN, "")); got != "9000/0" {
			t.Errorf("%s: the guest's SYN leaves as %s", name, got)
		}
		if got := given(t, r, calling(0, true, 500, 0, packet.SYN, "")); got != "500/0" {
			t.Errorf("%s: the client's SYN comes as %s", name, got)
		}
		if got := said(t, r, calling(0, false, 9000, 501, synAck, "")); got != "9000/501" {
			t.Errorf("%s: the guest's SYN|ACK leaves as %s", name, got)
		}
		if got := given(t, r, last.frame); got != last.want {
			t.Errorf("%s: the guest gets %s, want %s", name, got, last.want)
		}
		if got := said(t, r, calling(0, false, 9001, 501, packet.ACK, "x")); got != "1001/501" {
			t.Errorf("%s: data leaves as %s", name, got)
		}
		if got := given(t, r, calling(0, true, 501, 1002, packet.ACK, "y")); got != "501/9002" {
			t.Errorf("%s: the guest gets %s afterwards", name, got)
		}
		r.Failover()
		var e filter.Edge
		if e.Adopt(r); e.Len() != 1 {
			t.Errorf("%s: it does not outlive a second failover", name)
		}
	}
}

// A guest may begin with the number of a connection that is over.
func TestAConnectionThatIsOverSaysNothingOfTheNextOne(t *testing.T) {
	r := filter.NewRewriter(filter.RewriterConfig{})
	r.Outbound(calling(0, false, 9000, 0, packet.SYN, ""), 0)
	r.Inbound(calling(0, true, 500, 1001, synAck, ""), 0)
	r.Outbound(calling(0, false, 9001, 501, packet.ACK, ""), 0)
	r.Outbound(calling(0, false, 9001, 501, packet.RST|packet.ACK, ""), 0)
	r.Inbound(calling(0, true, 700, 0, packet.SYN, ""), 0)
	r.Outbound(calling(0, false, 9000, 701, synAck, ""), 0)
	if got := given(t, r, calling(0, true, 701, 3001, packet.ACK, "")); got != "701/9001" {
		t.Errorf("the guest gets %s", got)
	}
	if got := said(t, r, calling(0, false, 9001, 701, packet.ACK, "x")); got != "3001/701" {
		t.Errorf("%s leaves", got)
	}
}

// One end may have closed its half for hours, while the other goes on, with signs of life in
// between (RFC 9293 section 3.8.4). The table of connections is full meanwhile: those that
// are over make room, and it does not.
func TestAHalfClosedConnectionIsTranslatedForAsLongAsItLives(t *testing.T) {
	asked := 0
	r := filter.NewRewriter(filter.RewriterConfig{MaxConns: 3, Untranslatable: func() { asked++ }})
	open := func(i int) {
		r.Inbound(calling(i, true, 500, 0, packet.SYN, ""), 0)
		r.Outbound(calling(i, false, 9000, 501, synAck, ""), 0)
		r.Inbound(calling(i, true, 501, 1001, packet.ACK, ""), 0)
	}
	is := func(why, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, want %s", why, got, want)
		}
	}
	open(0) // the guest closes its half
	is("its FIN", said(t, r, calling(0, false, 9001, 501, packet.ACK|packet.FIN, "")), "1001/501")
	is("acknowledged", given(t, r, calling(0, true, 501, 1002, packet.ACK, "")), "501/9002")
	open(1) // the client closes its half
	is("the client's FIN", given(t, r, calling(1, true, 501, 1001, packet.ACK|packet.FIN, "")), "501/9001")
	is("acknowledged", said(t, r, calling(1, false, 9001, 502, packet.ACK, "")), "1001/502")
	for i := range 1000 {
		// Connections come and go in the third place, however they end.
		c := 2 + i
		if open(c); i%2 == 0 {
			r.Outbound(calling(c, false, 9001, 501, packet.RST|packet.ACK, ""), 0)
		} else {
			r.Outbound(calling(c, false, 9001, 501, packet.ACK|packet.FIN, ""), 0)
			r.Inbound(calling(c, true, 501, 1002, packet.ACK|packet.FIN, ""), 0)
			r.Outbound(calling(c, false, 9002, 502, packet.ACK, ""), 0)
		}
		n := uint32(i)
		is("the client goes on", given(t, r, calling(0, true, 501+n, 1002, packet.ACK, "x")), fmt.Sprintf("%d/%d", 501+n, 9002))
		is("the guest goes on", said(t, r, calling(1, false, 9001+n, 502, packet.ACK, "y")), fmt.Sprintf("%d/%d", 1001+n, 502))
		is("a sign of life of the guest", said(t, r, calling(0, false, 9001, 502+n, packet.ACK, "")), fmt.Sprintf("%d/%d", 1001, 502+n))
		is("a sign of life of the client", given(t, r, calling(1, true, 501, 1002+n, packet.ACK, "\x00")), fmt.Sprintf("%d/%d", 501, 9002+n))
	}
	if asked != 0 || r.Stats().Conns > 3 {
		t.Errorf("%d checkpoints were asked for, %d connections are followed", asked, r.Stats().Conns)
	}
	// A third that lives, and a fourth for which there is no room.
	open(2000)
	open(2001)
	if asked != 1 || r.Stats().Refused != 1 {
		t.Errorf("%d checkpoints were asked for", asked)
	}
	is("one without a place passes", given(t, r, calling(2001, true, 501, 1001, packet.ACK, "")), "501/1001")
	is("the first is as it was", given(t, r, calling(0, true, 2000, 1002, packet.ACK, "z")), "2000/9002")
}
