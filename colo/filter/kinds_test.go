package filter_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// A view is a guest's initial number and timestamp on the connection of these tests.
type view struct{ seq, time uint32 }

// A frameKind is a frame to or from the guest, with the numbers of one of the guests. wrap
// is applied to it, and to the frames that open its connection.
type frameKind struct {
	what string
	wrap func(f []byte) []byte
	open func(f []byte) []byte // wrap of the segments that open the connection
	say  func(toGuest, v6 bool, v view) []byte
}

// spoken returns a function that builds the segment with these flags, options and data, as
// many bytes into either stream as at says.
func spoken(at uint32, flags uint8, opts func(v view) []byte, data string, more ...func(f []byte)) func(toGuest, v6 bool, v view) []byte {
	return func(toGuest, v6 bool, v view) []byte {
		var o []byte
		if opts != nil {
			o = opts(v)
		}
		seq, ack := v.seq+1+at, 501+at
		if toGuest {
			seq, ack = ack, seq
		}
		if flags&packet.ACK == 0 && toGuest {
			ack = 77 // it means nothing
		}
		f := segment(toGuest, v6, seq, ack, flags, o, []byte(data))
		for _, do := range more {
			do(f)
		}
		return f
	}
}

func tcpOf(f []byte) packet.TCP {
	var p packet.Packet
	p.Parse(f)
	return p.TCP()
}

func bare(f []byte) []byte { return f }

// behind puts something between the addresses and the type of a frame.
func behind(tags string) func(f []byte) []byte {
	return func(f []byte) []byte { return slices.Concat(f[:12], []byte(tags), f[12:]) }
}

// inPPPoE puts a frame into a session of PPP over Ethernet.
func inPPPoE(f []byte) []byte {
	proto := byte(0x21)
	if f[12] == 0x86 {
		proto = 0x57
	}
	n := len(f) - 14 + 2
	return slices.Concat(f[:12], []byte{0x88, 0x64, 0x11, 0, 0, 9, byte(n >> 8), byte(n), 0, proto}, f[14:])
}

// withExtension puts an IPv4 option, or a header of IPv6, before the segment.
func withExtension(first byte, ext string) func(f []byte) []byte {
	return func(f []byte) []byte {
		if f[12] == 0x86 {
			f = slices.Insert(f, 54, []byte(ext)...)
			f[20] = first
			binary.BigEndian.PutUint16(f[18:], uint16(len(f)-54))
			return f
		}
		f = slices.Insert(f, 34, 7, 7, 4, 0, 0, 0, 0, 0)
		f[14] = 0x47
		binary.BigEndian.PutUint16(f[16:], uint16(len(f)-14))
		return f
	}
}

// throughAnother sends a packet to its destination by way of another (RFC 791 section 3.1, RFC
// 8754).
func throughAnother(f []byte) []byte {
	if f[12] != 0x86 {
		end := string(f[30:34])
		f = withExtension(0, "")(f)
		copy(f[34:], "\x83\x07\x04"+end+"\x00")
		copy(f[30:34], "\x0a\x07\x07\x07")
		return f
	}
	f = withExtension(43, "\x06\x02\x04\x01\x00\x00\x00\x00"+string(f[38:54]))(f)
	copy(f[38:54], "\xfd\x00a segment...")
	return f
}

// firstFragment makes a packet the first of several.
func firstFragment(f []byte) []byte {
	if f[12] == 0x86 {
		return withExtension(44, "\x06\x00\x00\x01\x00\x00\x00\x07")(f)
	}
	f[20] |= 0x20
	return f
}

// frameKinds returns kinds of frames that are translated.
func frameKinds() (list []frameKind) {
	add := func(what string, say func(toGuest, v6 bool, v view) []byte) {
		list = append(list, frameKind{what, bare, bare, say})
	}
	fixed := func(s string) func(view) []byte { return func(view) []byte { return []byte(s) } }
	const ack = packet.ACK
	for what, flags := range map[string]uint8{
		"ACK": ack, "PSH": ack | packet.PSH, "FIN": ack | packet.FIN, "RST|ACK": ack | packet.RST,
		"URG": ack | packet.URG, "ECE and CWR": ack | 0xc0, "no flags": 0, "RST": packet.RST, "FIN alone": packet.FIN,
	} {
		add(what, spoken(0, flags, nil, ""))
		add(what+" with data", spoken(0, flags, nil, "data, odd"))
	}
	add("keepalive", spoken(1<<32-1, ack, nil, ""))
	add("keepalive with a byte", spoken(1<<32-1, ack, nil, "\x00"))
	add("far ahead", spoken(1<<31-1, ack, nil, "x"))
	add("far behind", spoken(1<<31, ack, nil, "x"))
	add("zero window", spoken(0, ack, nil, "", func(f []byte) { f[len(f)-6], f[len(f)-5] = 0, 0; resealed(f) }))
	add("large", spoken(0, ack, nil, strings.Repeat("a jumbo. ", 1000)))
	add("as large as there are", spoken(0, ack, nil, strings.Repeat("x", 65000)))
	for what, opts := range map[string]string{
		"option of length 0": "\x08\x00\x00\x00", "option of length 1": "\x08\x01\x00\x00", "option beyond the header": "\x01\x01\x08\x0a",
		"timestamps of a wrong length": "\x08\x09\x00\x00\x00\x00\x00\x00\x00\x01\x01\x01", "an end before timestamps": "\x00\x00\x08\x0a\x00\x00\x00\x01\x00\x00\x00\x01",
		"option of another kind": "\x1e\x0cmultipath.", "SACK of nothing": "\x05\x02\x01\x01",
	} {
		add(what, spoken(0, ack, fixed(opts), "data"))
	}
	// A client echoes, and a guest sends, the guest's own time.
	stamped := func(lead, tail string) func(v view) []byte {
		return func(v view) []byte {
			b := append([]byte(lead), 8, 10)
			b = binary.BigEndian.AppendUint32(b, v.time+5)
			b = binary.BigEndian.AppendUint32(b, v.time+5)
			return append(b, tail...)
		}
	}
	for _, where := range [][2]string{{"\x01\x01", ""}, {"", "\x01\x01"}, {"\x01", "\x01"}, {"\x04\x02", ""}, {"\x01\x01", "\x1e\x04ab"}} {
		opts := stamped(where[0], where[1])
		add(fmt.Sprintf("timestamps between %x and %x", where[0], where[1]), func(toGuest, v6 bool, v view) []byte {
			o := opts(v)
			if at := len(where[0]) + 2; toGuest {
				copy(o[at:], "the value"[:4]) // the client's own
			} else {
				copy(o[at+4:], "the echo"[:4])
			}
			return spoken(0, ack, func(view) []byte { return o }, "data")(toGuest, v6, v)
		})
	}
	for _, blocks := range [][]uint32{{10, 20}, {10, 20, 1 << 31, 1<<31 + 9}, {30, 40, 10, 20, 5, 6, 7, 8}} {
		add(fmt.Sprintf("SACK of %d blocks", len(blocks)/2), func(toGuest, v6 bool, v view) []byte {
			return spoken(0, ack, func(v view) []byte {
				o := []byte{1, 1, 5, byte(2 + 4*len(blocks))}
				for _, n := range blocks {
					if toGuest {
						n += v.seq
					}
					o = binary.BigEndian.AppendUint32(o, n)
				}
				return o
			}, "")(toGuest, v6, v)
		})
	}
	data := spoken(0, ack|packet.PSH, nil, "some data")
	for what, wrap := range map[string]func(f []byte) []byte{
		"VLAN": behind("\x81\x00\xe0\x05"), "a priority": behind("\x81\x00\xe0\x00"), "VLAN in VLAN": behind("\x88\xa8\x00\x05\x81\x00\x00\x06"),
		"VLAN in VLAN in VLAN": behind("\x88\xa8\x00\x05\x81\x00\x00\x06\x81\x00\x00\x07"), "PPPoE": inPPPoE,
		"PPPoE in a VLAN in a VLAN": func(f []byte) []byte {
			return behind("\x88\xa8\x00\x05\x81\x00\x00\x06")(inPPPoE(f))
		},
		"segment routing, at its end":         withExtension(43, "\x06\x02\x04\x00\x00\x00\x00\x00"+strings.Repeat("a", 16)),
		"a route, or segments, that are left": throughAnother,
		"an atomic fragment between options":  withExtension(0, "\x2c\x00\x01\x04\x00\x00\x00\x00\x3c\x00\x00\x00\x00\x00\x00\x07\x06\x00\x01\x04\x00\x00\x00\x00"),
		"PPPoE in a VLAN":                     func(f []byte) []byte { return behind("\x81\x00\x00\x05")(inPPPoE(f)) },
		"a record route, or hop-by-hop":       withExtension(0, "\x06\x00\x01\x04\x00\x00\x00\x00"),
		"destination options":                 withExtension(60, "\x06\x00\x01\x04\x00\x00\x00\x00"),
		"an atomic fragment":                  withExtension(44, "\x06\x00\x00\x00\x00\x00\x00\x07"),
		"twenty extensions":                   withExtension(60, strings.Repeat("\x3c\x00\x01\x04\x00\x00\x00\x00", 19)+"\x06\x00\x01\x04\x00\x00\x00\x00"),
		"padding":                             func(f []byte) []byte { return append(f, "\xff is behind the packet"...) },
		"the same addresses, cast":            func(f []byte) []byte { copy(f, "\x01\x00\x5e\x00\x00\x01"); return f },
	} {
		list = append(list, frameKind{what, wrap, wrap, data})
	}
	// A tag that has a priority, and no VLAN, may come and go, as may padding and a check sequence,
	// and each end chooses the priorities and links of what it sends.
	padding := func(f []byte) []byte { return append(f, "\xff is behind the packet"...) }
	for what, wraps := range map[string][2]func(f []byte) []byte{
		"another priority in a VLAN":                       {behind("\x81\x00\xe0\x05"), behind("\x81\x00\x00\x05")},
		"one that may be dropped, in a VLAN":               {behind("\x81\x00\x00\x05"), behind("\x81\x00\x10\x05")},
		"other priorities in two VLANs":                    {behind("\x88\xa8\xe0\x05\x81\x00\x00\x06"), behind("\x88\xa8\x10\x05\x81\x00\xa0\x06")},
		"the priority of a provider around a VLAN":         {behind("\x81\x00\x00\x05"), behind("\x88\xa8\xe0\x00\x81\x00\x00\x05")},
		"padding, where the opening has none":              {bare, padding},
		"padding in a VLAN, where the opening is bare":     {behind("\x81\x00\x00\x05"), func(f []byte) []byte { return padding(behind("\x81\x00\x00\x05")(f)) }},
		"padding behind a session, in the opening alone":   {func(f []byte) []byte { return padding(inPPPoE(f)) }, inPPPoE},
		"another link of a bond":                           {bare, func(f []byte) []byte { copy(f, "\x02\x00\x00\x00\x00\x07\x02\x00\x00\x00\x00\x08"); return f }},
		"a priority, where the opening has none":           {behind("\x81\x00\xe0\x00"), bare},
		"none, where the opening has a priority":           {bare, behind("\x81\x00\xe0\x00")},
		"a priority in a VLAN, where the opening has none": {behind("\x88\xa8\x00\x05\x81\x00\xe0\x00"), behind("\x88\xa8\x00\x05")},
		"a first fragment":                                 {firstFragment, bare},
	} {
		list = append(list, frameKind{what, wraps[0], wraps[1], data})
	}
	return list
}

// untouchedKinds returns frames that stay as they are in both directions, though they have
// the addresses of the connection.
func untouchedKinds() map[string]func(toGuest, v6 bool) []byte {
	change := func(do func(f []byte, l4 int) []byte) func(toGuest, v6 bool) []byte {
		return func(toGuest, v6 bool) []byte {
			l4 := 34
			if v6 {
				l4 = 54
			}
			seq, ack := uint32(9001), uint32(501)
			if toGuest {
				seq, ack = 501, 1001
			}
			return do(segment(toGuest, v6, seq, ack, packet.ACK, nil, []byte("data")), l4)
		}
	}
	list := map[string]func(toGuest, v6 bool) []byte{
		"another port":                change(func(f []byte, l4 int) []byte { f[l4] ^= 1; return resealed(f) }),
		"another VLAN":                change(func(f []byte, _ int) []byte { return behind("\x81\x00\x00\x05")(f) }),
		"another session":             change(func(f []byte, _ int) []byte { return inPPPoE(f) }),
		"LLDP":                        change(func(f []byte, _ int) []byte { f[12], f[13] = 0x88, 0xcc; return f }),
		"ARP":                         change(func(f []byte, _ int) []byte { f[12], f[13] = 0x08, 0x06; return f }),
		"802.3":                       change(func(f []byte, _ int) []byte { f[12], f[13] = 0, 40; return f }),
		"a header of TCP of 16 bytes": change(func(f []byte, l4 int) []byte { f[l4+12] = 0x40; return f }),
		"a header of TCP beyond the packet": change(func(f []byte, l4 int) []byte {
			f[l4+12] = 0xf0
			return f
		}),
		"a wrong version":           change(func(f []byte, _ int) []byte { f[14] = f[14]&15 | 0x50; return f }),
		"the length of IP is 0":     change(func(f []byte, _ int) []byte { f[16], f[17], f[18], f[19] = 0, 0, 0, 0; return f }),
		"the length of IP is large": change(func(f []byte, _ int) []byte { f[16], f[18] = 0x7f, 0x7f; return f }),
		"half a tag":                change(func(f []byte, _ int) []byte { return append(f[:12], 0x81, 0, 0) }),
		"tags to the end":           change(func(f []byte, _ int) []byte { return append(f[:12], strings.Repeat("\x81\x00\x00\x05", 20)...) }),
		"signed by TCP-MD5": func(toGuest, v6 bool) []byte {
			return segment(toGuest, v6, 501, 1001, packet.ACK, []byte("\x13\x12a signature of it\x01\x01"), nil)
		},
		"signed by TCP-AO": func(toGuest, v6 bool) []byte {
			return segment(toGuest, v6, 501, 1001, packet.ACK, []byte("\x1d\x10a signature..."), nil)
		},
		"first fragment with half a header": change(func(f []byte, l4 int) []byte {
			if f = f[:l4+16]; l4 == 54 {
				return withExtension(44, "\x06\x00\x00\x01\x00\x00\x00\x07")(f)
			}
			f[17], f[20] = byte(len(f)-14), 0x20
			return f
		}),
		"first fragment of a SYN": func(toGuest, v6 bool) []byte {
			return firstFragment(segment(toGuest, v6, 501, 1001, packet.SYN, nil, []byte("data")))
		},
		"later fragment": change(func(f []byte, l4 int) []byte {
			if l4 == 54 {
				return withExtension(44, "\x06\x00\x00\x08\x00\x00\x00\x07")(f)
			}
			f[21] = 1
			return f
		}),
	}
	for what, proto := range map[string]byte{"ICMP": 1, "IGMP": 2, "IP in IP": 4, "UDP": 17, "IPv6 in IP": 41, "GRE": 47, "ESP": 50,
		"ICMPv6": 58, "no next header": 59, "SCTP": 132, "UDP-Lite": 136, "experimental": 253} {
		list[what] = change(func(f []byte, l4 int) []byte {
			if l4 == 54 {
				f[20] = proto
			} else {
				f[23] = proto
			}
			return f
		})
	}
	for n := range 61 {
		list[fmt.Sprintf("the first %d bytes", n)] = change(func(f []byte, l4 int) []byte { return f[:min(n, len(f)-1)] })
		list[fmt.Sprintf("%d bytes of zero", n)] = func(bool, bool) []byte { return make([]byte, n) }
	}
	return list
}

// A translator is a Rewriter or an Edge that has a connection.
type translator struct {
	who     string
	in, out func(f []byte, vnet int)
}

// translators returns those that have a connection whose guest has the numbers of own, and
// whose client has those of peer. The segments that opened it are wrapped.
func translators(t *testing.T, v6 bool, own, peer view, wrap func(f []byte) []byte) []translator {
	open := func() *twice {
		r := newTwice(t, filter.RewriterConfig{})
		r.Inbound(wrap(segment(true, v6, 500, 0, packet.SYN, wireTimes(7, 0), nil)), 0)
		r.Outbound(wrap(segment(false, v6, own.seq, 501, synAck, wireTimes(own.time, 7), nil)), 0)
		if !r.Inbound(wrap(segment(true, v6, 501, peer.seq+1, packet.ACK, wireTimes(8, peer.time), nil)), 0) {
			t.Fatal("the client's answer is held")
		}
		return r
	}
	r, edge, loaded := open(), new(filter.Edge), new(filter.Edge)
	edge.Adopt(open().Rewriter)
	if err := loadEdge(t, loaded, save(t, edge)); err != nil || loaded.Len() != 1 {
		t.Fatalf("%d connections in the Edge, %v", loaded.Len(), err)
	}
	list := []translator{{"a Rewriter", func(f []byte, vnet int) { r.Inbound(f, vnet) }, func(f []byte, vnet int) { r.Outbound(f, vnet) }}}
	for i, e := range []*filter.Edge{edge, loaded} {
		list = append(list, translator{[]string{"an Edge", "an Edge that was loaded"}[i],
			func(f []byte, vnet int) { e.Inbound(f, vnet) }, e.Outbound})
	}
	return list
}

// Each kind of frame becomes, byte for byte, what it is with the other guest's numbers, with a
// right checksum if it had one, or none.
func TestFramesOfEveryKindChangeInTheirNumbersAlone(t *testing.T) {
	own := view{9000, 100_077}
	peers := []view{{1<<32 - 3, 1<<32 - 2}, {1000, 100_000}} // the first wrap
	if testing.Short() {
		peers = peers[:1]
	}
	for _, peer := range peers {
		for _, k := range frameKinds() {
			for _, v6 := range []bool{false, true} {
				for _, toGuest := range []bool{true, false} {
					from, to := own, peer
					if toGuest {
						from, to = peer, own
					}
					for how, sum := range map[string]func(f []byte, done bool) ([]byte, int){
						"right": func(f []byte, _ bool) ([]byte, int) { return k.wrap(f), 0 },
						"zero": func(f []byte, done bool) ([]byte, int) {
							if !done {
								tcpOf(f).SetChecksum(0)
							}
							return k.wrap(f), 0
						},
						"wrong": func(f []byte, _ bool) ([]byte, int) {
							h := tcpOf(f)
							h.SetChecksum(packet.Update(h.Checksum(), 1, 0x1235))
							return k.wrap(f), 0
						},
						"partial": func(f []byte, _ bool) ([]byte, int) {
							var p packet.Packet
							p.Parse(k.wrap(slices.Clone(f)))
							h := make([]byte, 12)
							h[0] = packet.VNetNeedsCsum
							binary.LittleEndian.PutUint16(h[6:], uint16(p.L4))
							binary.LittleEndian.PutUint16(h[8:], packet.TCPChecksumAt)
							tcpOf(f).SetChecksum(p.PseudoSum())
							return append(h, k.wrap(f)...), 12
						},
					} {
						for _, x := range translators(t, v6, own, peer, k.open) {
							if how == "zero" && (k.what == "a first fragment" || bytes.Equal(k.say(toGuest, v6, from), k.say(toGuest, v6, to))) {
								continue // it need not get a checksum, since nothing is translated, or cannot
							}
							f, vnet := sum(k.say(toGuest, v6, from), false)
							want, _ := sum(k.say(toGuest, v6, to), true)
							if f = slices.Clip(f); toGuest {
								x.in(f, vnet)
							} else {
								x.out(f, vnet)
							}
							if !bytes.Equal(f, want) {
								t.Errorf("%s: %s, IPv6 %t, to the guest %t, checksum %s:\ngot  %.200x\nwant %.200x", x.who, k.what, v6, toGuest, how, f, want)
							}
						}
					}
				}
			}
		}
	}
}

func TestFramesThatAreNotOfTheConnectionStayAsTheyAre(t *testing.T) {
	headers := []int{0, 12, 10, 20, 24}
	if testing.Short() {
		headers = headers[:2]
	}
	for what, say := range untouchedKinds() {
		for _, v6 := range []bool{false, true} {
			for _, vnet := range headers {
				for _, x := range translators(t, v6, view{9000, 100_077}, view{1000, 100_000}, bare) {
					for _, toGuest := range []bool{true, false} {
						f := append(make([]byte, vnet), say(toGuest, v6)...)
						was := slices.Clone(f)
						if toGuest {
							x.in(f, vnet)
						} else {
							x.out(f, vnet)
						}
						if !bytes.Equal(f, was) {
							t.Errorf("%s: %s, IPv6 %t, to the guest %t, header of %d bytes:\ngot  %x\nwas  %x", x.who, what, v6, toGuest, vnet, f, was)
						}
					}
				}
			}
		}
	}
}
