package filter_test

import (
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// carriedHalf returns the Edge of a host that is protected, whose guest has 9000 in a handshake
// where the client knows 1000, or nothing yet, and that of the other host, by a checkpoint.
func carriedHalf(t *testing.T, byGuest bool) (e, next *filter.Edge) {
	t.Helper()
	r := filter.NewRewriter(filter.RewriterConfig{})
	if byGuest {
		r.Outbound(calling(0, false, 9000, 0, packet.SYN, ""), 0)
	} else {
		r.Inbound(calling(0, true, 500, 0, packet.SYN, ""), 0)
		r.Outbound(calling(0, false, 9000, 501, synAck, ""), 0)
	}
	r.Failover()
	e, next = new(filter.Edge), new(filter.Edge)
	e.Adopt(r)
	carry(t, e, next, 0)
	return e, next
}

// carry makes a checkpoint.
func carry(t *testing.T, from, to *filter.Edge, epoch uint64) {
	t.Helper()
	from.Mark(epoch)
	if err := loadEdge(t, to, save(t, from)); err != nil {
		t.Fatal(err)
	}
	from.Received(epoch)
}

func TestWhatAnAnswerTellsIsCarriedBeforeTheAnswerIsDelivered(t *testing.T) {
	const ack = packet.ACK
	e, next := carriedHalf(t, false)
	steps := []handshakeStep{
		{"the answer", true, ack, 501, 1001, "", "held"},
		{"data", true, ack, 501, 1001, "x", "held"},
		{"the client's SYN", true, packet.SYN, 500, 0, "", "500/0"},
		{"the guest's SYN|ACK again", false, synAck, 9000, 501, "", "1000/501"},
	}
	for _, s := range steps {
		s.check(t, e)
	}
	carry(t, e, next, 1)
	for _, x := range []*filter.Edge{e, next} {
		handshakeStep{"data, once it is carried", true, ack, 501, 1001, "x", "501/9001"}.check(t, x)
		handshakeStep{"the guest's data", false, ack, 9001, 502, "y", "1001/502"}.check(t, x)
	}
}

// A checkpoint may be old when its host takes over: the connection has gone on since.
func TestACarriedCallGoesOnFarBehindItsAnswer(t *testing.T) {
	const ack, much = packet.ACK, 1 << 20
	for _, why := range []string{"data comes", "the guest says something", "the guest ends it"} {
		e, next := carriedHalf(t, true)
		handshakeStep{"SYN|ACK", true, synAck, 500, 1001, "", "held"}.check(t, e)
		carry(t, e, next, 1)
		steps := map[string]handshakeStep{
			"data comes":               {why, true, ack, 501 + much, 1001, "x", "501/9001"},
			"the guest says something": {why, false, ack, 9001, 501 + much, "x", "1001/501"},
			"the guest ends it":        {why, false, ack | packet.RST, 9001, 501, "", "1001/501"},
		}
		s := steps[why]
		if s.want == "501/9001" {
			s.want = "1049077/9001"
		} else if s.ack != 501 {
			s.want = "1001/1049077"
		}
		s.check(t, next)
	}
}

// The client has had no answer from either guest. Its SYN comes again, and both guests repeat their
// SYN|ACK, that of the host that follows when the client's answer has come already.
func TestAHostThatFollowsKeepsAHandshakeThatItsGuestRepeats(t *testing.T) {
	for _, byGuest := range []bool{false, true} {
		_, next := carriedHalf(t, byGuest)
		r := filter.NewRewriter(filter.RewriterConfig{Edge: next})
		if byGuest {
			r.Outbound(calling(0, false, 9000, 0, packet.SYN, ""), 0)
		} else {
			r.Inbound(calling(0, true, 500, 0, packet.SYN, ""), 0)
			answer := calling(0, true, 501, 9001, packet.ACK, "x")
			if r.Inbound(answer, 0) {
				t.Error("an answer is delivered before the guest has asked for it")
			}
			early := r.Outbound(calling(0, false, 9000, 501, synAck, ""), 0)
			if early == nil || numbers(t, early) != "501/9001" {
				t.Errorf("the answer is %x", early)
			}
		}
		if next.Len() != 1 || r.Stats().Conns != 0 {
			t.Errorf("by the guest=%t: %d handshakes are kept, and %d connections are followed", byGuest, next.Len(), r.Stats().Conns)
		}
		r.Outbound(calling(0, false, 7000, 801, synAck, ""), 0)
		if next.Len() != 0 {
			t.Errorf("by the guest=%t: it is kept when the guest has opened another", byGuest)
		}
	}
}
