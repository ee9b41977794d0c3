package compare_test

import (
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// A said is a datagram of one of the guests, to one port of one peer.
type said struct {
	who  byte // 'P' or 'S'; 'W': nobody, and 5 ms pass
	from uint16
	data string
}

// sequence reads "P1:a S2:b W": the primary's guest says "a" from its port 1, the
// secondary's "b" from its port 2, and 5 ms pass. Behind a "*" the data follows a DNS
// header whose identifier is the port.
func sequence(t *testing.T, script string) (all []said) {
	t.Helper()
	for _, w := range strings.Fields(script) {
		if w == "W" {
			all = append(all, said{who: 'W'})
			continue
		}
		data := w[3:]
		if q, ok := strings.CutPrefix(data, "*"); ok {
			data = string([]byte{0, w[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}) + q
		}
		all = append(all, said{w[0], uint16(40000 + int(w[1])), data})
	}
	return all
}

// TestFlowsFromSeveralPortsOfTheGuests says what guests are taken for that send to one
// port of a peer from several ports of their own.
func TestFlowsFromSeveralPortsOfTheGuests(t *testing.T) {
	const (
		same   = "the same"            // all has left, and no checkpoint is asked for
		once   = "different, at once"  // with the last datagram
		later  = "different, by Cross" // after it, and before the timeout
		silent = "silent"              // after the timeout only
	)
	for _, c := range []struct{ name, script, want string }{
		{"out of phase by one", "P1:a S2:b P2:b S1:a", same},
		{"out of phase by one, the secondary first", "S2:b P1:a S1:a P2:b", same},
		{"out of phase by one, 15 ms", "P1:a S2:b W W W P2:b S1:a", same},
		{"out of phase by one, one side 15 ms behind", "P1:a S2:b P2:b W W W S1:a", same},
		{"out of phase by two", "P1:a P2:b S3:c S1:a P3:c S2:b", same},
		{"out of phase by two, one by one", "P1:a S3:c P2:b S1:a P3:c S2:b", same},
		{"two datagrams in a row", "P1:a P1:b S2:c S2:d P2:c P2:d S1:a S1:b", same},
		{"three ports in rotation", "P1:a S3:c P2:b S1:a P3:c S2:b P1:d S3:f P2:e S1:d P3:f S2:e", same},
		{"always out of phase, from ever new ports", "P1:a S2:b W W P2:b S1:a P3:c S4:d W W P4:d S3:c P5:e S6:f W W P6:f S5:e", same},
		{"never in step, and each flow soon begun", "P1:a S2:b W W P3:c S1:a W W S4:d P2:b W W P5:e S3:c W W P4:d S5:e", same},
		{"the same words from ports that both know", "P1:x S1:x P2:x S2:x P2:x S1:x S2:x P1:x", same},
		{"queries that differ in the port", "P1:query S2:query", once},
		{"queries that differ in the port, the secondary first", "S1:query P2:query", once},
		{"two queries, the primary ahead", "P1:q P2:r S3:q", once},
		{"queries behind what agrees", "P1:a S1:a P2:q S3:q", once},
		{"DNS: another identifier", "P1:*lockstep S2:*lockstep", once},
		{"DNS: another case", "P1:*lockstep S2:*LockStep", once},
		{"DNS: other names, other ports", "P1:*name-a S2:*name-b", later},
		{"DNS: other names, the same ports", "P1:*name-a S2:*name-b P2:*name-b S1:*name-a", same},
		{"random words from random ports", "P1:a S2:b", later},
		{"random words, and others that agree", "P1:a S2:b P3:c S3:c", later},
		{"a known flow between random ones", "P1:a P2:b S2:b S3:c", later},
		{"the newest are begun, the first ones never", "P1:a S2:b P3:c S4:d S3:c P4:d", later},
		{"with loss: the secondary's guest has lost its input", "P1:a S2:b P2:b", silent},
		{"with loss: the primary's guest has lost its input", "P1:a S2:b S1:a", silent},
		{"one side silent", "P1:a P2:b P3:c", silent},
		{"the other side silent", "S1:a S2:b S3:c", silent},
		{"one side silent on many", "P1:a P2:a P3:a P4:a P5:a P6:a P7:a P8:a P9:a P0:a", silent},
		{"nine on both sides", "P1:a P2:b P3:c P4:d P5:e P6:f P7:g P8:h SA:A SB:B SC:C SD:D SE:E SF:F SG:G SH:H SI:I", once},
		{"eight on both sides", "P1:a P2:b P3:c P4:d P5:e P6:f P7:g P8:h SA:A SB:B SC:C SD:D SE:E SF:F SG:G SH:H", later},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newBoth(t, everything())
			e.Mark(0)
			e.SecondaryMark(0)
			now := time.Unix(1000, 0)
			e.Tick(now)
			sent, left := 0, 0
			all := sequence(t, c.script)
			ask := func(r compare.Result) bool {
				left += len(r.Release)
				if r.Diverged && r.Reason != compare.ReasonPorts && r.Reason != compare.ReasonTimeout {
					t.Errorf("reason %v", r.Reason)
				}
				return r.Diverged
			}
			got := ""
			for i, d := range all {
				f := compare.Frame{Data: wireDatagram(d.from, 53, d.data)}
				asked := false
				switch d.who {
				case 'P':
					sent++
					asked = ask(e.Primary(f, now))
				case 'S':
					asked = ask(e.Secondary(f, now))
				default:
					now = now.Add(5 * time.Millisecond)
					asked = ask(e.Tick(now))
				}
				if asked && got == "" {
					if got = once; i < len(all)-1 {
						t.Errorf("a checkpoint is asked for with datagram %d of %d", i+1, len(all))
					}
				}
			}
			last := now
			for got == "" && now.Sub(last) < 10*time.Second && !e.e.Deadline().IsZero() {
				if now = e.e.Deadline(); !ask(e.Tick(now)) {
					continue
				}
				if got = silent; now.Sub(last) <= 20*time.Millisecond {
					got = later
				}
			}
			if got == "" && left == sent {
				got = same
			}
			if got != c.want {
				t.Errorf("%s, want %s; %d of %d have left", got, c.want, left, sent)
			}
		})
	}
}

// A guest chooses a port at random for whatever has ports.
func TestFlowsOfEachProtocolWithPortsDifferSoon(t *testing.T) {
	from := func(proto, port byte) compare.Frame {
		return compare.Frame{Data: wireIPv4(proto, 0, []byte{0x9c, port, 0, 7, 0, 0, 0, 0, 1, 0, 0, 20})}
	}
	for proto, soon := range map[byte]bool{
		packet.ProtoUDPLite: true, packet.ProtoSCTP: true, packet.ProtoDCCP: true,
		packet.ProtoESP: false, 253: false, // they have none
	} {
		x := newRig(t, everything())
		x.checkpoint(0)
		x.want("", x.Primary(from(proto, 1), x.now), "")
		if r := x.Secondary(from(proto, 2), x.now); r.Diverged && soon {
			t.Errorf("protocol %d: it is not known yet that the other guest will not begin the flow too", proto)
		}
		x.now = x.now.Add(25 * time.Millisecond)
		if r := x.Tick(x.now); soon && r.Reason != compare.ReasonPorts || !soon && r.Diverged {
			t.Errorf("protocol %d: a checkpoint is asked for: %t, %v", proto, r.Diverged, r.Reason)
		}
	}
}

// Flows that a mark finds alone are the checkpoint's, and say nothing of the next epoch.
func TestAMarkEndsWhatTheGuestsHaveBegunAlone(t *testing.T) {
	x := newRig(t, everything())
	x.checkpoint(0)
	x.want("", x.Primary(compare.Frame{Data: wireDatagram(1, 53, "a")}, x.now), "")
	x.want("", x.Secondary(compare.Frame{Data: wireDatagram(2, 53, "b")}, x.now), "")
	x.mark(1)
	x.received(1)
	if _, err := x.SecondaryMark(1); err != nil {
		t.Fatal(err)
	}
	x.now = x.now.Add(25 * time.Millisecond)
	x.want("", x.Tick(x.now), "")
	x.want("", x.Primary(compare.Frame{Data: wireDatagram(3, 53, "a")}, x.now), "")
	x.now = x.now.Add(25 * time.Millisecond)
	x.want("", x.Tick(x.now), "")
	x.want("", x.Secondary(compare.Frame{Data: wireDatagram(3, 53, "a")}, x.now), "a")
}

// The engine that does as QEMU does knows no flows but each by itself.
func TestStrictComparesNoPorts(t *testing.T) {
	e := compare.NewEngine(compare.Config{Strict: true})
	now := time.Unix(1000, 0)
	for i, r := range []compare.Result{
		e.Primary(compare.Frame{Data: wireDatagram(1, 53, "query")}, now),
		e.Secondary(compare.Frame{Data: wireDatagram(2, 53, "query")}, now),
		e.Tick(now.Add(25 * time.Millisecond)),
	} {
		if r.Diverged || len(r.Release) != 0 {
			t.Errorf("step %d: %+v", i, r)
		}
	}
}
