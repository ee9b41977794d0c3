package filter_test

import (
	"bytes"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// A guest that has answered a SYN before a checkpoint may repeat its SYN|ACK behind it, when what answers that is
// in its ring already. The number is the one that the client knows.
func TestAnAnswerThatIsRepeatedBehindACheckpointNeedsNoTranslation(t *testing.T) {
	for name, goesOn := range map[string]func(x talk){
		"the client has said something": func(x talk) {
			x.out("the guest has it", "9001/503", packet.ACK, 9001, 503)
			x.in("the client's next", "503/9001", packet.ACK, 503, 9001, 'n')
			x.in("and the one before again", "501/9001", packet.ACK, 501, 9001, 'a', 'b')
		},
		"the guest speaks first": func(x talk) {
			x.out("its greeting", "9001/501", packet.ACK, 9001, 501, 'h', 'e', 'l', 'l', 'o')
			x.in("the client has got it", "501/9006", packet.ACK, 501, 9006)
			x.out("and goes on", "9006/501", packet.ACK, 9006, 501, '!')
		},
		"nobody has": func(x talk) {
			x.in("the client's first", "501/9001", packet.ACK, 501, 9001, 'a')
			x.out("the guest has it", "9001/502", packet.ACK, 9001, 502)
		},
	} {
		for _, over := range []bool{false, true} {
			x := talk{T: t, r: newTwice(t, filter.RewriterConfig{})}
			x.r.Commit(0)
			x.in(name+": the answer to the SYN|ACK of before", "501/9001", packet.ACK, 501, 9001, 'a', 'b')
			x.out("the SYN|ACK again", "9000/501", synAck, 9000, 501)
			if over {
				x.r.Failover()
			}
			goesOn(x)
			x.in("the client", "900/9001", packet.ACK, 900, 9001)
		}
	}
}

// A client may have got any of the SYN|ACKs that a guest has sent, each with a time of its own. None of its times
// goes back after that.
func TestAClientThatKnowsTheGuestsNumberKnowsItsTimesToo(t *testing.T) {
	for _, echo := range []uint32{70000, 70020, 70030, 40000} { // the last one was sent before a checkpoint
		r := newTwice(t, filter.RewriterConfig{})
		r.Inbound(segment(true, false, 500, 0, packet.SYN, clocked(5, 0), nil), 0)
		for _, at := range []uint32{70000, 70020, 70030} {
			r.Outbound(segment(false, false, 9000, 501, synAck, clocked(at, 5), nil), 0)
		}
		r.Failover()
		ack := segment(true, false, 501, 9001, packet.ACK, clocked(6, echo), nil)
		was := bytes.Clone(ack)
		if !r.Inbound(ack, 0) || !bytes.Equal(ack, was) {
			t.Errorf("the client echoes %d: the guest is given %x", echo, ack)
		}
		f := segment(false, false, 9001, 501, packet.ACK, clocked(70040, 6), nil)
		was = bytes.Clone(f)
		if r.Outbound(f, 0); !bytes.Equal(f, was) {
			t.Errorf("the client echoes %d: %x leaves as %x", echo, was, f)
		}
	}
}

// A guest that has opened a connection before a checkpoint may repeat its SYN behind it, when the answer is in its
// ring already. Nobody else's answer counts for the connection then.
func TestASYNThatIsRepeatedBehindACheckpointNeedsNoTranslation(t *testing.T) {
	for _, over := range []bool{false, true} {
		x := talk{T: t, r: newTwice(t, filter.RewriterConfig{})}
		x.r.Commit(0)
		x.in("the answer to the SYN of before", "500/9001", synAck, 500, 9001)
		x.out("the SYN again", "9000/0", packet.SYN, 9000, 0)
		x.out("the guest has got the answer", "9001/501", packet.ACK, 9001, 501)
		if over {
			x.r.Failover()
		}
		x.r.Inbound(segment(true, false, 400, 4242, synAck, nil, nil), 0) // a stranger's
		x.in("the client", "501/9001", packet.ACK, 501, 9001, 'a')
		x.out("the guest", "9001/502", packet.ACK, 9001, 502, 'b')
		x.in("the client goes on", "502/9002", packet.ACK, 502, 9002)
	}
}

// A client sends no more than a window before its SYN|ACK is answered, so that one from afar is a stranger's.
func TestAnAnswerThatIsFarFromTheClientsNumbersIsNotTheClients(t *testing.T) {
	x := talk{T: t, r: newTwice(t, filter.RewriterConfig{})}
	x.r.Commit(0)
	x.in("the answer to the SYN of before", "5000001/9001", synAck, 5000001, 9001)
	x.out("the SYN again", "9000/0", packet.SYN, 9000, 0)
	x.r.Inbound(segment(true, false, 500, 4242, synAck, nil, nil), 0) // a stranger's
	x.in("the client", "5000002/9001", packet.ACK, 5000002, 9001, 'a')
	x.out("the guest", "9001/5000003", packet.ACK, 9001, 5000003, 'b')
	x.in("the client goes on", "5000003/9002", packet.ACK, 5000003, 9002)
}
