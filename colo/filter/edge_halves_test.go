package filter_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// A step of a handshake: a segment to or from the guest, and the numbers with which it is
// delivered or leaves; "held" if it is not delivered.
type handshakeStep struct {
	why      string
	in       bool
	flags    uint8
	seq, ack uint32
	data     string
	want     string
}

func (s handshakeStep) frame() []byte { return calling(0, s.in, s.seq, s.ack, s.flags, s.data) }

func (s handshakeStep) check(t *testing.T, e *filter.Edge) {
	t.Helper()
	f, got := s.frame(), ""
	if s.in && !e.Inbound(f, 0) {
		got = "held"
	} else {
		if !s.in {
			e.Outbound(f, 0)
		}
		got = numbers(t, f)
	}
	if got != s.want {
		t.Errorf("%s: %s, want %s", s.why, got, s.want)
	}
}

// The host that has taken over is protected again within a round trip. Its guest has 9000,
// the client knows 1000 of the primary's guest, or nothing yet.
func TestAHandshakeThatIsNotCompleteOutlivesAProtectionAnew(t *testing.T) {
	const ack = packet.ACK
	accepts := []handshakeStep{
		{"SYN", true, packet.SYN, 500, 0, "", "500/0"},
		{"SYN|ACK", false, synAck, 9000, 501, "", "9000/501"},
	}
	calls := []handshakeStep{{"the guest's SYN", false, packet.SYN, 9000, 0, "", "9000/0"}}
	for name, c := range map[string]struct {
		before, after []handshakeStep
		left          int // connections that are translated at the end
	}{
		"the client's answer": {accepts, []handshakeStep{
			{"ACK", true, ack, 501, 1001, "", "501/9001"},
			{"data", false, ack, 9001, 501, "x", "1001/501"},
		}, 1},
		"its answer is lost, and data comes": {accepts, []handshakeStep{
			{"the second", true, ack, 503, 1001, "cd", "held"},
			{"the first", true, ack, 501, 1001, "ab", "501/9001"},
			{"the second again", true, ack, 503, 1001, "cd", "503/9001"},
			{"data", false, ack, 9001, 505, "x", "1001/505"},
		}, 1},
		"the guest repeats its SYN|ACK, and the client has the other": {accepts, []handshakeStep{
			{"SYN|ACK", false, synAck, 9000, 501, "", "9000/501"},
			{"the client's challenge", true, ack, 501, 1001, "", "501/9001"},
			{"data", false, ack, 9001, 501, "x", "1001/501"},
		}, 1},
		"the guest repeats its SYN|ACK, and the client has had none": {accepts, []handshakeStep{
			{"SYN|ACK", false, synAck, 9000, 501, "", "9000/501"},
			{"ACK", true, ack, 501, 9001, "", "501/9001"},
			{"data", false, ack, 9001, 501, "x", "9001/501"},
		}, 0},
		"a SYN|ACK is repeated when the client has answered": {accepts, []handshakeStep{
			{"ACK, which the guest does not get", true, ack, 501, 1001, "", "501/9001"},
			{"SYN|ACK", false, synAck, 9000, 501, "", "1000/501"},
			{"ACK", true, ack, 501, 1001, "", "501/9001"},
			{"data", false, ack, 9001, 501, "x", "1001/501"},
		}, 1},
		"a SYN|ACK is repeated when the client had answered before": {append(accepts[:2:2], handshakeStep{"ACK, which the guest does not get", true, ack, 501, 1001, "", "501/9001"}), []handshakeStep{
			{"SYN|ACK", false, synAck, 9000, 501, "", "1000/501"},
			{"ACK", true, ack, 501, 1001, "", "501/9001"},
			{"data", false, ack, 9001, 501, "x", "1001/501"},
		}, 1},
		"late segments of an older connection": {accepts, []handshakeStep{
			{"ACK of an older one", true, ack, 300, 77777, "", "300/77777"},
			{"ACK", true, ack, 501, 1001, "", "501/9001"},
		}, 1},
		"the client begins anew": {accepts, []handshakeStep{
			{"SYN", true, packet.SYN, 700, 0, "", "700/0"},
			{"SYN|ACK", false, synAck, 7000, 701, "", "7000/701"},
			{"ACK", true, ack, 701, 7001, "", "701/7001"},
		}, 0},
		"the client gives up": {accepts, []handshakeStep{
			{"RST", true, packet.RST, 501, 0, "", "501/0"},
		}, 0},
		"the guest calls": {calls, []handshakeStep{
			{"SYN|ACK", true, synAck, 500, 1001, "", "500/9001"},
			{"ACK", false, ack, 9001, 501, "", "1001/501"},
			{"data", true, ack, 501, 1001, "x", "501/9001"},
		}, 1},
		"the guest calls, and has the answer": {append(calls[:1:1], handshakeStep{"SYN|ACK", true, synAck, 500, 1001, "", "500/9001"}), []handshakeStep{
			{"ACK", false, ack, 9001, 501, "", "1001/501"},
			{"data", true, ack, 501, 1001, "x", "501/9001"},
		}, 1},
		"the guest calls once more, with the same number": {calls, []handshakeStep{
			{"SYN|ACK", true, synAck, 500, 1001, "", "500/9001"},
			{"ACK", false, ack, 9001, 501, "", "1001/501"},
			{"SYN", false, packet.SYN, 9000, 0, "", "9000/0"},
			{"SYN|ACK", true, synAck, 800, 9001, "", "800/9001"},
			{"ACK", false, ack, 9001, 801, "", "9001/801"},
		}, 0},
		"the guest has been called with the number with which it called": {calls, []handshakeStep{
			{"SYN|ACK", true, synAck, 500, 1001, "", "500/9001"},
			{"SYN of another connection", true, packet.SYN, 700, 0, "", "700/0"},
			{"SYN|ACK", false, synAck, 9000, 701, "", "9000/701"},
			{"ACK", true, ack, 701, 9001, "", "701/9001"},
			{"data", false, ack, 9001, 701, "x", "9001/701"},
		}, 0},
		"both call, and what the guest answers is repeated": {calls, []handshakeStep{
			{"SYN", true, packet.SYN, 500, 0, "", "500/0"},
			{"SYN|ACK", false, synAck, 9000, 501, "", "9000/501"},
			{"ACK, which the guest does not get", true, ack, 501, 1001, "", "501/9001"},
			{"SYN|ACK", false, synAck, 9000, 501, "", "1000/501"},
			{"data", false, ack, 9001, 501, "x", "1001/501"},
		}, 1},
		"both call": {calls, []handshakeStep{
			{"SYN", true, packet.SYN, 500, 0, "", "500/0"},
			{"SYN|ACK", false, synAck, 9000, 501, "", "9000/501"},
			{"ACK", true, ack, 501, 1001, "", "501/9001"},
			{"data", false, ack, 9001, 501, "x", "1001/501"},
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := filter.NewRewriter(filter.RewriterConfig{})
			for _, s := range c.before {
				f, got := s.frame(), ""
				if s.in {
					got = given(t, r, f)
				} else {
					got = said(t, r, f)
				}
				if got != s.want {
					t.Fatalf("%s: %s, want %s", s.why, got, s.want)
				}
			}
			r.Failover()
			e := new(filter.Edge)
			if left := e.Adopt(r); left != 0 || e.Len() != 1 {
				t.Fatalf("%d connections of 1 are taken over, %d have no room", e.Len(), left)
			}
			for _, s := range c.after {
				s.check(t, e)
			}
			// The next checkpoint carries it.
			next := new(filter.Edge)
			if err := loadEdge(t, next, save(t, e)); err != nil {
				t.Fatal(err)
			}
			if e.Len() != c.left || next.Len() != c.left {
				t.Errorf("%d connections are translated, and by the next host %d, want %d", e.Len(), next.Len(), c.left)
			}
		})
	}
}

// A checkpoint has brought the handshake, and the guest has come to the number 0 since. Its RST has that
// number, as one has that refuses a segment without ACK.
func TestARSTWithTheNumberZeroIsOfTheConnectionThatItAcknowledges(t *testing.T) {
	const rst = packet.RST | packet.ACK
	for _, c := range []struct {
		why  string
		ack  uint32
		want string
	}{
		{"it ends the connection", 505, "1009/505"},
		{"it refuses a stranger's SYN", 1<<31 + 501, "0/2147484149"},
	} {
		r := filter.NewRewriter(filter.RewriterConfig{})
		r.Outbound(calling(0, false, 1<<32-9, 0, packet.SYN, ""), 0)
		r.Failover()
		first, second := new(filter.Edge), new(filter.Edge)
		first.Adopt(r)
		first.Mark(0)
		if first.Inbound(calling(0, true, 500, 1001, synAck, ""), 0) {
			t.Fatal("the answer is delivered before a checkpoint has it")
		}
		if err := loadEdge(t, second, save(t, first)); err != nil {
			t.Fatal(err)
		}
		second.Failover()
		f := calling(0, false, 0, c.ack, rst, "")
		if second.Outbound(f, 0); numbers(t, f) != c.want {
			t.Errorf("%s: %s, want %s", c.why, numbers(t, f), c.want)
		}
	}
}

// What is not delivered to the guest comes again, and so a network behind an Edge passes
// over it.
func TestANetworkBehindAnEdgePassesOverWhatComesTooEarly(t *testing.T) {
	r := filter.NewRewriter(filter.RewriterConfig{})
	r.Inbound(calling(0, true, 500, 0, packet.SYN, ""), 0)
	r.Outbound(calling(0, false, 9000, 501, synAck, ""), 0)
	r.Failover()
	var e filter.Edge
	e.Adopt(r)
	n := e.Network(&lines{in: [][]byte{
		calling(0, true, 503, 1001, packet.ACK, "cd"),
		calling(0, true, 501, 1001, packet.ACK, "ab"),
		calling(0, true, 503, 1001, packet.ACK, "cd"),
	}}, 0)
	for _, want := range []string{"501/9001", "503/9001"} {
		p, err := n.ReadPacket()
		if err != nil {
			t.Fatal(err)
		}
		if got := numbers(t, p); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if _, err := n.ReadPacket(); err == nil {
		t.Error("there is a third")
	}
}

// Late packets of a connection that is over are translated for some minutes, and then a
// checkpoint carries it no more. So it is with a client that never answers.
func TestAnEdgeForgetsWhatHasBeenOverForMinutes(t *testing.T) {
	const ack = packet.ACK
	for name, c := range map[string]struct {
		steps []handshakeStep
		over  bool
	}{
		"both have said that they are done": {[]handshakeStep{
			{in: false, flags: ack | packet.FIN, seq: 9001, ack: 501},
			{in: true, flags: ack | packet.FIN, seq: 501, ack: 1002},
			{in: false, flags: ack, seq: 9002, ack: 502},
		}, true},
		"the client's RST": {[]handshakeStep{{in: true, flags: packet.RST, seq: 501}}, true},
		"one half is open": {[]handshakeStep{{in: false, flags: ack | packet.FIN, seq: 9001, ack: 501}}, false},
		"a stranger's RST": {[]handshakeStep{{in: true, flags: packet.RST, seq: 502}}, false},
		"nothing is said":  {nil, false},
	} {
		for _, before := range []bool{false, true} { // before the Edge has it
			t.Run(fmt.Sprintf("%s, before=%t", name, before), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := filter.NewRewriter(filter.RewriterConfig{})
					for i := range 2 { // the second client never answers
						r.Inbound(calling(i, true, 500, 0, packet.SYN, ""), 0)
						r.Outbound(calling(i, false, 9000, 501, synAck, ""), 0)
					}
					r.Inbound(calling(0, true, 501, 1001, ack, ""), 0)
					e := new(filter.Edge)
					if !before {
						e.Adopt(r)
					}
					for _, s := range c.steps {
						switch f := s.frame(); {
						case before && s.in:
							r.Inbound(f, 0)
						case before:
							r.Outbound(f, 0)
						case s.in:
							e.Inbound(f, 0)
						default:
							e.Outbound(f, 0)
						}
					}
					if before {
						e.Adopt(r)
					}
					time.Sleep(3 * time.Minute)
					save(t, e)
					if e.Len() != 2 {
						t.Errorf("after 3 minutes %d connections are translated, want 2", e.Len())
					}
					time.Sleep(2 * time.Minute)
					save(t, e)
					if (e.Len() == 0) != c.over || e.Len() > 1 {
						t.Errorf("after 5 minutes %d connections are translated, and the first is over: %t", e.Len(), c.over)
					}
				})
			})
		}
	}
}

// A FIN that comes behind data beyond a window without its shift is in the window.
func TestAnEdgeThatACheckpointMadeNoticesTheEndBehindAWideWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ack, much = packet.ACK, 100_000
		r := filter.NewRewriter(filter.RewriterConfig{})
		r.Inbound(segment(true, false, 500, 0, packet.SYN, []byte{3, 3, 7, 0}, nil), 0)
		r.Outbound(segment(false, false, 9000, 501, synAck, []byte{3, 3, 7, 0}, nil), 0)
		r.Inbound(segment(true, false, 501, 1001, ack, nil, nil), 0)
		before, e := new(filter.Edge), new(filter.Edge)
		before.Adopt(r)
		if err := loadEdge(t, e, save(t, before)); err != nil {
			t.Fatal(err)
		}
		out := func(seq, a uint32, flags uint8) { e.Outbound(segment(false, false, seq, a, flags, nil, nil), 0) }
		in := func(seq, a uint32, flags uint8) { e.Inbound(segment(true, false, seq, a, flags, nil, nil), 0) }
		out(9001, 501, ack)
		in(501+much, 1001, ack|packet.FIN)
		out(9001, 502+much, ack|packet.FIN)
		in(502+much, 1002, ack)
		time.Sleep(5 * time.Minute)
		if save(t, e); e.Len() != 0 {
			t.Error("it is carried for good")
		}
	})
}
