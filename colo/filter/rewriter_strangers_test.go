package filter_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// A talk has a rewriter, and sends segments through it. The client's first number is 500,
// that of the primary's guest 1000 and that of the secondary's 9000.
type talk struct {
	*testing.T
	r    *twice
	v6   bool
	opts []byte
}

// in gives the guest a segment, and checks with which numbers it arrives, or that it is held.
func (x talk) in(why, want string, flags uint8, seq, ack uint32, data ...byte) {
	x.Helper()
	f := segment(true, x.v6, seq, ack, flags, x.opts, data)
	got := "held"
	if x.r.Inbound(f, 0) {
		got = numbers(x.T, f)
	}
	if got != want {
		x.Errorf("%s: the guest gets %s, want %s", why, got, want)
	}
}

// out has the guest send a segment, and checks with which numbers it leaves, and with which
// the segment that was held for the guest reaches it now, if there is one.
func (x talk) out(why, want string, flags uint8, seq, ack uint32, data ...byte) {
	x.Helper()
	f := segment(false, x.v6, seq, ack, flags, x.opts, data)
	early := x.r.Outbound(f, 0)
	got := numbers(x.T, f)
	if early != nil {
		got += " " + numbers(x.T, early)
	}
	if got != want {
		x.Errorf("%s: leaves as %s, want %s", why, got, want)
	}
}

const synAck = packet.SYN | packet.ACK

// talking returns a connection that the client, or the guest, has opened.
func talking(t *testing.T, byGuest bool) talk {
	t.Helper()
	x := talk{T: t, r: newTwice(t, filter.RewriterConfig{})}
	if byGuest {
		x.out("SYN", "9000/0", packet.SYN, 9000, 0)
		x.in("SYN|ACK", "500/9001", synAck, 500, 1001)
		x.out("ACK", "1001/501", packet.ACK, 9001, 501)
	} else {
		x.in("SYN", "500/0", packet.SYN, 500, 0)
		x.out("SYN|ACK", "9000/501", synAck, 9000, 501)
		x.in("ACK", "501/9001", packet.ACK, 501, 1001)
	}
	return x
}

// A stranger knows the addresses of a connection and not its numbers.
func TestWhatAStrangerSendsChangesNothing(t *testing.T) {
	for _, byGuest := range []bool{false, true} {
		for _, over := range []bool{false, true} {
			for name, strange := range map[string]func(x talk){
				"a SYN, which the guest answers with what it has acknowledged": func(x talk) {
					x.in("SYN", "777777/0", packet.SYN, 777777, 0)
					x.out("the challenge", "1001/501", packet.ACK, 9001, 501)
				},
				"many SYNs, and acknowledgments as if they had been answered": func(x talk) {
					for i := range uint32(20) {
						x.in("SYN", fmt.Sprintf("%d/0", 700000+i*1000), packet.SYN, 700000+i*1000, 0)
						x.r.Inbound(segment(true, false, 700001+i*1000, 5555, packet.ACK, nil, nil), 0)
					}
				},
				"a SYN|ACK":                      func(x talk) { x.r.Inbound(segment(true, false, 4242, 5555, synAck, nil, nil), 0) },
				"a RST":                          func(x talk) { x.in("RST", "502/0", packet.RST, 502, 0) },
				"a RST with an acknowledgment":   func(x talk) { x.in("RST", "0/13555", packet.RST|packet.ACK, 0, 5555) },
				"an ACK of nothing":              func(x talk) { x.in("ACK", "7/13555", packet.ACK, 7, 5555) },
				"a FIN, and an ACK of the guest": func(x talk) { x.in("FIN", "90000/9001", packet.FIN|packet.ACK, 90000, 1001) },
				"a SYN with everything":          func(x talk) { x.in("", "77/0", packet.SYN|packet.FIN|packet.RST, 77, 0) },
			} {
				t.Run(fmt.Sprintf("%s, byGuest=%t, failover=%t", name, byGuest, over), func(t *testing.T) {
					x := talking(t, byGuest)
					if over {
						x.r.Failover()
					}
					strange(x)
					x.in("the client goes on", "501/9001", packet.ACK, 501, 1001)
					x.out("the guest goes on", "1001/501", packet.ACK, 9001, 501)
				})
			}
		}
	}
}

// In a full table, connections that are over make room, whether they ended by RST or by
// FIN. A RST that the guest does not take ends none, nor does what a stranger sends.
func TestOnlyWhatTheGuestTakesMakesRoomForOthers(t *testing.T) {
	for name, c := range map[string]struct {
		ends bool
		do   func(x talk)
	}{
		"a RST beyond what the guest expects": {false, func(x talk) { x.in("", "502/0", packet.RST, 502, 0) }},
		"a RST before it":                     {false, func(x talk) { x.in("", "500/9001", packet.RST|packet.ACK, 500, 1001) }},
		"the RST that the guest takes":        {true, func(x talk) { x.in("", "501/0", packet.RST, 501, 0) }},
		"a RST of the guest's":                {true, func(x talk) { x.out("", "1001/501", packet.RST|packet.ACK, 9001, 501) }},
		"a RST that refuses somebody's SYN": {false, func(x talk) {
			x.out("", "0/888", packet.RST|packet.ACK, 0, 888)
		}},
		"FINs of a stranger's": {false, func(x talk) {
			x.in("", "90000/9001", packet.FIN|packet.ACK, 90000, 1001)
			x.out("", "1001/501", packet.ACK, 9001, 501)
		}},
		"both ends": {true, func(x talk) {
			x.in("", "501/9001", packet.FIN|packet.ACK, 501, 1001)
			x.out("", "1001/502", packet.FIN|packet.ACK, 9001, 502)
			x.in("", "502/9002", packet.ACK, 502, 1002)
		}},
		"both ends, the guest's first": {true, func(x talk) {
			x.out("", "1001/501", packet.FIN|packet.ACK, 9001, 501)
			x.in("", "501/9002", packet.FIN|packet.ACK, 501, 1002)
			x.out("", "1002/502", packet.ACK, 9002, 502)
		}},
		"one end": {false, func(x talk) {
			x.in("", "501/9001", packet.FIN|packet.ACK, 501, 1001)
			x.out("", "1001/502", packet.ACK, 9001, 502)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			refused := 0
			x := talk{T: t, r: newTwice(t, filter.RewriterConfig{MaxConns: 1, Untranslatable: func() { refused++ }})}
			x.in("SYN", "500/0", packet.SYN, 500, 0)
			x.out("SYN|ACK", "9000/501", synAck, 9000, 501)
			x.in("ACK", "501/9001", packet.ACK, 501, 1001)
			c.do(x)
			// Another client.
			other := func(toGuest bool, seq, ack uint32, flags uint8) []byte {
				f := segment(toGuest, false, seq, ack, flags, nil, nil)
				at := 34 // the client's port
				if !toGuest {
					at = 36
				}
				binary.BigEndian.PutUint16(f[at:], 40001)
				return resealed(f)
			}
			x.r.Inbound(other(true, 600, 0, packet.SYN), 0)
			x.r.Outbound(other(false, 19000, 601, synAck), 0)
			f := other(true, 601, 2001, packet.ACK)
			x.r.Inbound(f, 0)
			if follows := binary.BigEndian.Uint32(f[42:]) == 19001; follows != c.ends {
				t.Errorf("another connection has its place: %t, want %t", follows, c.ends)
			}
			if s := x.r.Stats(); (refused == 0) != c.ends || s.Refused != uint64(refused) {
				t.Errorf("%d connections without a place, %+v", refused, s)
			}
		})
	}
}

func TestAFloodOfSYNsTakesNoPlaceOfAConnection(t *testing.T) {
	const most = 8
	for _, answered := range []bool{false, true} {
		x := talk{T: t, r: newTwice(t, filter.RewriterConfig{MaxConns: most})}
		x.in("SYN", "500/0", packet.SYN, 500, 0)
		x.out("SYN|ACK", "9000/501", synAck, 9000, 501)
		x.in("ACK", "501/9001", packet.ACK, 501, 1001)
		for i := range 1000 {
			f := segment(true, false, 1, 0, packet.SYN, nil, nil)
			binary.BigEndian.PutUint16(f[34:], uint16(i))
			x.r.Inbound(f, 0)
			if answered {
				f := segment(false, false, 2, 2, synAck, nil, nil)
				binary.BigEndian.PutUint16(f[36:], uint16(i))
				x.r.Outbound(f, 0)
			}
			if s := x.r.Stats(); s.Conns > 2*most {
				t.Fatalf("%+v", s)
			}
		}
		x.in("the connection lives", "501/9001", packet.ACK, 501, 1001)
		x.out("the connection lives", "1001/501", packet.ACK, 9001, 501)
		if s := x.r.Stats(); s.Refused != 0 {
			t.Errorf("%+v", s)
		}
	}
}

func TestAnAcknowledgmentOfAnotherConnectionSaysNothing(t *testing.T) {
	for name, late := range map[string]func(x talk){
		"an older one's": func(x talk) { x.in("late", "300/77777", packet.ACK, 300, 77777) },
		"one beyond what the guest takes": func(x talk) {
			x.in("late", "1000000/77777", packet.ACK, 1000000, 77777)
		},
		"a RST": func(x talk) { x.in("late", "501/77777", packet.RST|packet.ACK, 501, 77777) },
		"a SYN|ACK": func(x talk) {
			x.in("late", "501/77777", synAck, 501, 77777)
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := talk{T: t, r: newTwice(t, filter.RewriterConfig{})}
			x.in("SYN", "500/0", packet.SYN, 500, 0)
			x.out("SYN|ACK", "9000/501", synAck, 9000, 501)
			late(x)
			x.in("the ACK of this one", "501/9001", packet.ACK, 501, 1001)
			x.out("the guest", "1001/501", packet.ACK, 9001, 501)
		})
		t.Run(name+", before the guest's answer", func(t *testing.T) {
			x := talk{T: t, r: newTwice(t, filter.RewriterConfig{})}
			x.in("SYN", "500/0", packet.SYN, 500, 0)
			if name != "a RST" { // which would withdraw the SYN
				late(x)
			}
			x.out("SYN|ACK", "9000/501", synAck, 9000, 501)
			x.in("the ACK of this one", "501/9001", packet.ACK, 501, 1001)
		})
	}
}

// A client that only listens has one number from the beginning to the end.
func TestTheSYNOfAConnectionThatComesAgainIsNoOther(t *testing.T) {
	x := talk{T: t, r: newTwice(t, filter.RewriterConfig{})}
	x.in("SYN", "500/0", packet.SYN, 500, 0)
	x.out("SYN|ACK", "9000/501", synAck, 9000, 501)
	x.in("SYN again", "500/0", packet.SYN, 500, 0)
	x.in("ACK", "501/9001", packet.ACK, 501, 1001)
	x.in("SYN again", "500/0", packet.SYN, 500, 0)
	x.in("an acknowledgment of more than this guest has sent", "501/9301", packet.ACK, 501, 1301)
	if s := x.r.Stats(); s.Held != 0 || s.Conns != 1 {
		t.Errorf("%+v", s)
	}
}

func TestDataThatOvertakesTheHandshakeWaits(t *testing.T) {
	x := talk{T: t, r: newTwice(t, filter.RewriterConfig{})}
	x.in("SYN", "500/0", packet.SYN, 500, 0)
	x.out("SYN|ACK", "9000/501", synAck, 9000, 501)
	x.in("its second piece", "held", packet.ACK, 601, 1001, 'b')
	x.in("its first piece", "501/9001", packet.ACK, 501, 1001, 'a')
	x.out("the answer", "1001/502 601/9001", packet.ACK, 9001, 502)
}

func TestANewConnectionTakesThePlaceOfTheOldOneWhenTheGuestHasAnswered(t *testing.T) {
	for _, early := range []bool{false, true} {
		x := talking(t, false)
		x.in("SYN", "800/0", packet.SYN, 800, 0)
		x.in("the old one still has its numbers", "501/9001", packet.ACK, 501, 1001)
		if early {
			x.in("the ACK comes before the guest's answer", "held", packet.ACK, 801, 2001)
			x.out("SYN|ACK", "7000/801 801/7001", synAck, 7000, 801)
		} else {
			x.out("SYN|ACK", "7000/801", synAck, 7000, 801)
			x.in("ACK", "801/7001", packet.ACK, 801, 2001)
		}
		x.out("the guest", "2001/801", packet.ACK, 7001, 801)
		if s := x.r.Stats(); s.Conns != 1 {
			t.Errorf("%+v", s)
		}
	}
}

func TestTheGuestChoosesBetweenSYNACKs(t *testing.T) {
	for _, strangerFirst := range []bool{false, true} {
		x := talk{T: t, r: newTwice(t, filter.RewriterConfig{})}
		x.out("SYN", "9000/0", packet.SYN, 9000, 0)
		stranger := func() { x.in("a stranger's", "4242/9001", synAck, 4242, 5556) }
		server := func() { x.in("the server's", "500/9001", synAck, 500, 1001) }
		if strangerFirst {
			stranger()
			server()
		} else {
			server()
			stranger()
		}
		x.in("nobody knows which one this follows", "held", packet.ACK, 501, 1001)
		x.out("the guest's answer", "1001/501 501/9001", packet.ACK, 9001, 501)
	}
}

func TestASYNThatWaitsAtAFailoverIsStillTranslated(t *testing.T) {
	x := talk{T: t, r: newTwice(t, filter.RewriterConfig{})}
	x.in("SYN, which the primary has answered", "500/0", packet.SYN, 500, 0)
	x.r.Failover()
	x.out("SYN|ACK", "9000/501", synAck, 9000, 501)
	x.in("ACK of the primary's", "501/9001", packet.ACK, 501, 1001)
	x.out("the guest", "1001/501", packet.ACK, 9001, 501)
	x.out("SYN|ACK again, as the guest has not heard", "1000/501", synAck, 9000, 501)
}

func TestASYNWithDataIsAnsweredForItsData(t *testing.T) {
	for _, taken := range []uint32{501, 504} { // with the data, or without
		x := talk{T: t, r: newTwice(t, filter.RewriterConfig{})}
		x.in("SYN", "500/0", packet.SYN, 500, 0, []byte("abc")...)
		x.in("ACK", "held", packet.ACK, taken, 1001)
		x.out("SYN|ACK", fmt.Sprintf("9000/%d %d/9001", taken, taken), synAck, 9000, taken)
		x.out("the guest", fmt.Sprintf("1001/%d", taken), packet.ACK, 9001, taken)
	}
}

// A primary's guest that is ahead has sent times that the secondary's has not.
func TestAGuestIsEchoedNoTimeThatItHasNotSent(t *testing.T) {
	for _, ahead := range []uint32{0, 7} { // the secondary's clock
		r := filter.NewRewriter(filter.RewriterConfig{})
		r.Inbound(segment(true, false, 500, 0, packet.SYN, stamps(t, 70, 0), nil), 0)
		r.Outbound(segment(false, false, 9000-1000*(7-ahead), 501, synAck, stamps(t, 1000+ahead, 70), nil), 0)
		r.Inbound(segment(true, false, 501, 1001, packet.ACK, stamps(t, 71, 1000), nil), 0)
		own := 9001 - 1000*(7-ahead)
		r.Outbound(segment(false, false, own, 501, packet.ACK, stamps(t, 1050+ahead, 71), []byte("x")), 0)
		for echo, want := range map[uint32]uint32{1040: 1040 + ahead, 1050: 1050 + ahead, 1060: 1050 + ahead} {
			f := segment(true, false, 501, 1001, packet.ACK, stamps(t, 72, echo), nil)
			if !r.Inbound(f, 0) || times(f) != fmt.Sprintf("72/%d", want) {
				t.Errorf("%d is echoed as %s, want %d", echo, times(f), want)
			}
			numbers(t, f)
		}
	}
}

// quoting returns an ICMP error to or from the guest about a segment.
func quoting(t *testing.T, about []byte, toGuest, v6 bool, bytes int) []byte {
	t.Helper()
	ip, quoted := packet.EthernetLen, about[packet.EthernetLen:]
	if v6 {
		quoted = quoted[:packet.IPv6Len+bytes]
	} else {
		quoted = quoted[:packet.IPv4Len+bytes]
	}
	f := make([]byte, ip)
	src, dst := byte(254), byte(1)
	if !toGuest {
		src, dst = 1, 2
	}
	var p packet.Packet
	if v6 {
		binary.BigEndian.PutUint16(f[12:], packet.TypeIPv6)
		h := make([]byte, packet.IPv6Len)
		h[0], h[6], h[23], h[39] = 0x60, packet.ProtoICMPv6, src, dst
		binary.BigEndian.PutUint16(h[4:], uint16(packet.ICMPLen+len(quoted)))
		f = append(append(f, h...), 2, 0, 0, 0, 0, 0, 5, 0) // packet too big
	} else {
		binary.BigEndian.PutUint16(f[12:], packet.TypeIPv4)
		h := make([]byte, packet.IPv4Len)
		h[0], h[9], h[15], h[19] = 0x45, packet.ProtoICMP, src, dst
		binary.BigEndian.PutUint16(h[2:], uint16(packet.IPv4Len+packet.ICMPLen+len(quoted)))
		f = append(append(f, h...), 3, 4, 0, 0, 0, 0, 5, 0) // fragmentation needed
	}
	f = append(f, quoted...)
	p.Parse(f)
	binary.BigEndian.PutUint16(f[p.L4+2:], ^icmpSum(&p))
	return f
}

// icmpSum returns the sum over an ICMP message with its pseudo-header, if it has one.
func icmpSum(p *packet.Packet) uint16 {
	if p.Kind == packet.IP6 {
		return packet.Sum(p.PseudoSum(), p.Payload())
	}
	return packet.Sum(0, p.Payload())
}

func TestErrorsThatQuoteASegmentAreTranslated(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, n := range []int{8, 12, 16, 20, 24} {
			for _, toGuest := range []bool{true, false} {
				r := established(v6)
				// The guest has sent 9001, which left as 1001. The client sent 1001 as its
				// acknowledgment, which came as 9001.
				sent := segment(!toGuest, v6, 1001, 501, packet.ACK, nil, []byte("data"))
				want := segment(!toGuest, v6, 9001, 501, packet.ACK, nil, []byte("data"))
				if !toGuest {
					sent = segment(true, v6, 501, 9001, packet.ACK, nil, []byte("data"))
					want = segment(true, v6, 501, 1001, packet.ACK, nil, []byte("data"))
				}
				f := quoting(t, sent, toGuest, v6, n)
				if toGuest {
					if !r.Inbound(f, 0) {
						t.Fatal("held")
					}
				} else {
					r.Outbound(f, 0)
				}
				if w := quoting(t, want, toGuest, v6, n); !bytes.Equal(f, w) {
					t.Errorf("IPv6 %t, to the guest %t, %d bytes quoted:\ngot  %x\nwant %x", v6, toGuest, n, f, w)
				}
			}
		}
	}
}

func TestErrorsAboutOtherThingsStay(t *testing.T) {
	r := established(false)
	mine := segment(false, false, 1001, 501, packet.ACK, nil, []byte("data"))
	for why, change := range map[string]func(f []byte){
		"an echo, which quotes nothing": func(f []byte) { f[34] = 8 },
		"another connection":            func(f []byte) { f[34+8+20+1]++ },
		"a fragment's end":              func(f []byte) { f[34+8+7] = 1 },
		"another protocol":              func(f []byte) { f[34+8+9] = packet.ProtoUDP },
		"a header that is cut":          func(f []byte) { f[34+8] = 0x4f },
		"IPv6 in IPv4":                  func(f []byte) { f[34+8] = 0x65 },
		"what a client has sent":        func(f []byte) { f[34+8+15], f[34+8+19] = 2, 1 },
	} {
		f := quoting(t, mine, true, false, 8)
		change(f)
		before := bytes.Clone(f)
		if !r.Inbound(f, 0) || !bytes.Equal(f, before) {
			t.Errorf("%s: %x became %x", why, before, f)
		}
	}
	f := quoting(t, mine, true, false, 8)
	f[36]++ // a wrong checksum stays one
	r.Inbound(f, 0)
	var p packet.Packet
	p.Parse(f)
	if icmpSum(&p) == 0xffff {
		t.Error("what had a wrong checksum has a right one")
	}
}

func TestSignedConnectionsAreLeftAlone(t *testing.T) {
	for name, opts := range map[string]string{
		"TCP-MD5": "1312 30313233343536373839616263646566 0101",
		"TCP-AO":  "1d10 0102 303132333435363738396162",
	} {
		for _, byGuest := range []bool{false, true} {
			asked := 0
			x := talk{T: t, r: newTwice(t, filter.RewriterConfig{Untranslatable: func() { asked++ }}), opts: unhex(t, opts)}
			if byGuest {
				x.out("SYN", "9000/0", packet.SYN, 9000, 0)
				x.in("SYN|ACK", "500/1001", synAck, 500, 1001)
			} else {
				x.in("SYN", "500/0", packet.SYN, 500, 0)
				x.out("SYN|ACK", "9000/501", synAck, 9000, 501)
			}
			x.in("ACK", "501/1001", packet.ACK, 501, 1001)
			x.out("ACK", "9001/501", packet.ACK, 9001, 501)
			if s := x.r.Stats(); asked != 1 || s.Signed != 1 || s.Rewritten != 0 {
				t.Errorf("%s: a checkpoint was asked for %d times, %+v", name, asked, s)
			}
		}
		// A stranger's signature changes nothing of a connection that has none.
		x := talking(t, false)
		x.opts = unhex(t, opts)
		x.in("signed", "501/1001", packet.ACK, 501, 1001)
		x.opts = nil
		x.in("not signed", "501/9001", packet.ACK, 501, 1001)
	}
}
