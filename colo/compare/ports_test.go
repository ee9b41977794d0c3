package compare_test

import (
	"fmt"
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

// A guest chooses temporary addresses of IPv6 at random, in one prefix, beside the ports.
func TestFlowsFromTemporaryAddressesDifferSoon(t *testing.T) {
	from := func(f compare.Frame, prefix, host, port byte) compare.Frame {
		src := packet.EthernetLen + 8
		f.Data[src+7], f.Data[src+15] = prefix, host
		f.Data[packet.EthernetLen+packet.IPv6Len+1] += port
		return f
	}
	syn := func() compare.Frame { return seg{port: 443, seq: 7, flags: packet.SYN, v6: true}.frame() }
	question := func(proto byte, data string) func() compare.Frame {
		return func() compare.Frame {
			h := append([]byte{0x9c, 0, 0, 53, 0, byte(8 + len(data)), 0, 0}, data...)
			return ip(true, proto, 0, h, 0)
		}
	}
	echo := func() compare.Frame { return ip(true, packet.ProtoICMPv6, 0, []byte{128, 0, 0, 0, 0, 1, 0, 1}, 0) }
	reply := func() compare.Frame { return ip(true, packet.ProtoICMPv6, 0, []byte{129, 0, 0, 0, 0, 1, 0, 1}, 0) }
	const once, soon, late = "at once", "soon", "late"
	for _, c := range []struct {
		name string
		make func() compare.Frame
		p, s [3]byte // prefix, host, port
		want string
	}{
		{"a connection", syn, [3]byte{1, 1, 0}, [3]byte{1, 2, 0}, once},
		{"a connection, and another port", syn, [3]byte{1, 1, 0}, [3]byte{1, 2, 9}, once},
		{"a connection from another prefix", syn, [3]byte{1, 1, 0}, [3]byte{2, 2, 0}, late},
		{"a question", question(packet.ProtoUDP, "who?"), [3]byte{1, 1, 0}, [3]byte{1, 2, 9}, once},
		{"a question from another prefix", question(packet.ProtoUDP, "who?"), [3]byte{1, 1, 0}, [3]byte{3, 1, 9}, late},
		{"an association of SCTP", question(packet.ProtoSCTP, "init"), [3]byte{1, 1, 0}, [3]byte{1, 2, 9}, soon},
		{"an echo", echo, [3]byte{1, 1, 0}, [3]byte{1, 2, 0}, soon},
		{"the answer to an echo", reply, [3]byte{1, 1, 0}, [3]byte{1, 2, 0}, late},
	} {
		for _, order := range []string{"PS", "SP"} {
			x := newRig(t, everything())
			x.checkpoint(0)
			x.Tick(x.now)
			var r compare.Result
			for _, who := range order {
				if who == 'P' {
					r = x.Primary(from(c.make(), c.p[0], c.p[1], c.p[2]), x.now)
				} else {
					r = x.Secondary(from(c.make(), c.s[0], c.s[1], c.s[2]), x.now)
				}
			}
			got := late
			if r.Diverged {
				got = once
			}
			if len(r.Release) > 0 {
				t.Errorf("%s, %s: it left", c.name, order)
			}
			x.now = x.now.Add(25 * time.Millisecond)
			if r := x.Tick(x.now); r.Diverged && got == late && r.Reason == compare.ReasonPorts {
				got = soon
			}
			if got != c.want {
				t.Errorf("%s, %s: %s, want %s", c.name, order, got, c.want)
			}
		}
	}
}

// Each guest asks whether anybody has the addresses that it has made, at moments of its own.
func TestGuestsThatAskForOtherAddressesDifferSoon(t *testing.T) {
	free := func(host byte) compare.Frame { // whether the address is free
		f := nd(135, 2, host)
		clear(f.Data[packet.EthernetLen+8:][:16])
		return f
	}

	for _, c := range []struct{ name, script, want string }{
		{"one address, the primary first", "P1 S1 WWWWWW", "1 of 1"},
		{"two in one order", "P1 P2 S1 S2 WWWWWW", "2 of 2"},
		{"two in two orders", "P1 S2 P2 S1 WWWWWW", "2 of 2"},
		{"two in two orders, 15 ms", "P1 S2 WWW P2 S1 WWWWWW", "2 of 2"},
		{"two addresses", "P1 S2 WWWWWW", "!ports 0 of 1"},
		{"two addresses, beside one that both have", "P1 S1 P2 S3 WWWWWW", "!ports 1 of 2"},
		{"the secondary's guest asks for none", "P1 WWWWWW", "0 of 1"},
		{"the primary's guest asks for none", "S1 WWWWWW", "0 of 0"},
		{"it asks for one that the other has asked for before", "P1 S1 WWWWWW P1 S2 WWWWWW", "2 of 2"},
	} {
		x := newRig(t, everything())
		x.checkpoint(0)
		x.Tick(x.now)
		sent, left, got := 0, 0, ""
		take := func(r compare.Result) {
			if left += len(r.Release); r.Diverged {
				got = "!" + r.Reason.String() + " "
			}
		}
		for i := 0; i < len(c.script); i++ {
			switch c.script[i] {
			case 'P':
				sent++
				take(x.Primary(free(c.script[i+1]-'0'), x.now))
			case 'S':
				take(x.Secondary(free(c.script[i+1]-'0'), x.now))
			case 'W':
				x.now = x.now.Add(5 * time.Millisecond)
				take(x.Tick(x.now))
			}
		}
		if got = fmt.Sprintf("%s%d of %d", got, left, sent); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
