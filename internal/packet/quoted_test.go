package packet

import (
	"bytes"
	"strings"
	"testing"
)

const (
	quotedTCP4 = "4500 05dc 0001 4000 40 06 0000 0a000001 0a000002 0050 9c40 00000064"
	icmpIP4    = "4500 0038 0001 0000 40 01 0000 0a0000fe 0a000001"
)

func TestAnErrorQuotesASegment(t *testing.T) {
	ip6q := ip6hdr("0500", "06") + "0050 9c40 00000064"
	ip6ext := ip6hdr("0500", "00") + "3c00 010400000000" + "2c00 010400000000" + "0600 0001 00000007" + "0050 9c40 00000064"
	// Where to and for whom, an option of its own, and the one that quotes.
	redirected := strings.Repeat("00", 32) + "0201 020000000001" + "0407 000000000000"
	for why, c := range map[string]struct {
		frame string
		l4    int
	}{
		"IPv4":                 {macs + "0800" + icmpIP4 + "0304 0000 0000 0500" + quotedTCP4, 14 + 20 + 8 + 20},
		"IPv4 in a VLAN":       {macs + "8100 0005 0800" + icmpIP4 + "0b00 0000 0000 0000" + quotedTCP4, 18 + 20 + 8 + 20},
		"IPv6":                 {macs + "86dd" + ip6hdr("0038", "3a") + "0200 0000 0000 0500" + ip6q, 14 + 40 + 8 + 40},
		"a redirect of IPv6":   {macs + "86dd" + ip6hdr("0068", "3a") + "8900 0000 00000000" + redirected + ip6q, 14 + 40 + 40 + 16 + 40},
		"IPv6 with extensions": {macs + "86dd" + ip6hdr("0050", "3a") + "0200 0000 0000 0500" + ip6ext, 14 + 40 + 8 + 40 + 24},
	} {
		var p Packet
		var q Quoted
		p.Parse(unhex(t, c.frame))
		if !p.Quoted(&q) || q.L4 != c.l4 || q.End != len(p.Frame) || q.Key.Ports != 0x00509c40 || q.Key.Proto != ProtoTCP {
			t.Errorf("%s: %+v", why, q)
		}
		if (p.Tags > 0) != (q.Key.VLAN == 5) {
			t.Errorf("%s: VLAN %d", why, q.Key.VLAN)
		}
		for n := range p.Frame { // however it is cut, nothing is read beyond the end
			var p Packet
			p.Parse(unhex(t, c.frame)[:n])
			p.Quoted(&q)
		}
	}
	// What goes by way of others has the address of its end in the list of segments.
	for why, c := range map[string]struct{ routing, end string }{
		"segments left":          {"0602 0401 00000000" + strings.Repeat("aa", 16), strings.Repeat("\xaa", 16)},
		"none left":              {"0602 0400 00000000" + strings.Repeat("aa", 16), ""},
		"to a home address":      {"0602 0201 00000000" + strings.Repeat("aa", 16), ""},
		"two lists":              {"2b02 0401 00000000" + strings.Repeat("aa", 16) + "0602 0401 00000000" + strings.Repeat("bb", 16), ""},
		"segments, and no list":  {"0600 0401 00000000", ""},
		"a list behind an empty": {"2b00 0400 00000000" + "0602 0401 00000000" + strings.Repeat("aa", 16), strings.Repeat("\xaa", 16)},
	} {
		segment := "0050 9c40 00000064 00000000 5010 0000 0000 0000"
		var p, in Packet
		var k Key
		var q Quoted
		whole := unhex(t, macs+"86dd"+ip6hdr("0000", "2b")+c.routing+segment)
		whole[19] = byte(len(whole) - 54)
		p.Parse(whole)
		p.Key(&k)
		error := unhex(t, macs+"86dd"+ip6hdr("0000", "3a")+"0200 0000 0000 0500")
		error = append(error, whole[14:]...)
		error[19] = byte(len(error) - 54)
		in.Parse(error)
		end := c.end
		if end == "" {
			end = string(p.IPv6().Dst())
		}
		if !p.IsTCP() || string(k.Dst[:]) != end || !in.Quoted(&q) || q.Key != k {
			t.Errorf("%s: %+v, quoted as %+v", why, k, q.Key)
		}
		p.TCP().SetChecksum(p.TCPChecksum())
		if sum := Sum(Sum(Sum(0, p.IPv6().Src()), k.Dst[:]), p.TCP()); add(add(sum, ProtoTCP), uint16(len(p.TCP()))) != 0xffff {
			t.Errorf("%s: the checksum is not that of its end", why)
		}
	}
	// And so it is with an option of IPv4.
	for why, c := range map[string]struct {
		options, end string
		unclear      bool
	}{
		"a loose route":             {"83 0b 04 0b0b0b0b aaaaaaaa 00", "aaaaaaaa", false},
		"a strict route":            {"01 89 07 04 aaaaaaaa", "aaaaaaaa", false},
		"a route that is half run":  {"83 0b 08 0b0b0b0b aaaaaaaa 01", "aaaaaaaa", false},
		"a route that is run":       {"83 0b 0c 0b0b0b0b aaaaaaaa 01", "", false},
		"an empty route":            {"83 03 04 00", "", false},
		"a route behind another":    {"83 07 08 0b0b0b0b 83 07 04 aaaaaaaa 0000", "aaaaaaaa", false},
		"two routes":                {"83 07 04 0b0b0b0b 89 07 04 aaaaaaaa 0000", "", true},
		"a route of half a place":   {"83 07 05 aaaaaaaa 00", "", true},
		"a route that goes on":      {"83 0a 04 0b0b0b0b aaaaaa 0000", "", true},
		"a route that begins early": {"83 07 00 aaaaaaaa 00", "", true},
		"a route without a place":   {"83 02 01 01", "", true},
		"a record of the route":     {"07 07 04 aaaaaaaa 00", "", false},
		"a route behind the end":    {"00 83 07 04 aaaaaaaa 00000000", "", false},
		"options of no length":      {"83 07 04 aaaaaaaa 07 00 000000", "aaaaaaaa", false},
	} {
		var p, in Packet
		var k Key
		var q Quoted
		options := unhex(t, c.options)
		head := unhex(t, "4500 0000 0001 0000 40 06 0000 0a000001 0a000002")
		head[0] += byte(len(options) / 4)
		whole := append(append(append(unhex(t, macs+"0800"), head...), options...), unhex(t, "0050 9c40 00000064 00000000 5010 0000 0000 0000")...)
		whole[17] = byte(len(whole) - 14)
		p.Parse(whole)
		p.Key(&k)
		error := append(unhex(t, macs+"0800"+"4500 0000 0001 0000 40 01 0000 0a0000fe 0a000001"+"0304 0000 0000 0500"), whole[14:]...)
		error[17] = byte(len(error) - 14)
		in.Parse(error)
		end := unhex(t, c.end)
		if c.end == "" {
			end = p.IPv4().Dst()
		}
		if !p.IsTCP() || p.Routed != c.unclear || !bytes.Equal(k.Dst[:4], end) || !in.Quoted(&q) || q.Key != k {
			t.Errorf("%s: %+v, unclear=%t, quoted as %+v", why, k, p.Routed, q.Key)
		}
		p.TCP().SetChecksum(p.TCPChecksum())
		if sum := Sum(Sum(Sum(0, p.IPv4().Src()), k.Dst[:]), p.TCP()); add(add(sum, ProtoTCP), uint16(len(p.TCP()))) != 0xffff {
			t.Errorf("%s: the checksum is not that of its end", why)
		}
	}
	for why, frame := range map[string]string{
		"an echo":               macs + "0800" + icmpIP4 + "0800 0000 0000 0500" + quotedTCP4,
		"a datagram":            macs + "0800" + udpIP4 + udp,
		"an ICMPv6 information": macs + "86dd" + ip6hdr("0038", "3a") + "8000 0000 0000 0500" + ip6q,
		"ICMPv6 in IPv4":        macs + "0800" + "4500 0038 0001 0000 40 3a 0000 0a0000fe 0a000001" + "0304 0000 0000 0500" + quotedTCP4,
	} {
		var p Packet
		var q Quoted
		p.Parse(unhex(t, frame))
		if p.Quoted(&q) {
			t.Errorf("%s quotes %+v", why, q)
		}
	}
}

func TestSignaturesAreSeen(t *testing.T) {
	for opts, want := range map[string]bool{
		"": false,
		"1312 00000000000000000000000000000000 0101":                       true,
		"0101 080a 0000000000000000 1312 00000000000000000000000000000000": true,
		"1d10 0102 000000000000000000000000":                               true,
		"0101 080a 1312131213121312":                                       false,
		"0204 05b4 0402 080a 0000000000000000 0103 0307":                   false,
		"0013 1200":                       false,
		"1d04 0000":                       true,
		"0101 050a 1313131313131313 0101": false,
	} {
		o := unhex(t, opts)
		for len(o)%4 != 0 {
			o = append(o, 0)
		}
		h := append(make(TCP, TCPLen), o...)
		h[12] = byte(len(h)/4) << 4
		if h.Signed() != want {
			t.Errorf("%s: %t", opts, !want)
		}
	}
}

func FuzzQuoted(f *testing.F) {
	f.Add(unhex(f, macs+"0800"+icmpIP4+"0304 0000 0000 0500"+quotedTCP4))
	f.Add(unhex(f, macs+"86dd"+ip6hdr("0038", "3a")+"0200 0000 0000 0500"+ip6hdr("0500", "06")+"0050 9c40 00000064"))
	f.Fuzz(func(t *testing.T, frame []byte) {
		var p Packet
		var q Quoted
		if p.Parse(frame); p.Quoted(&q) && (q.L4 < p.L4+ICMPLen+IPv4Len || q.L4+8 > q.End || q.End > len(frame)) {
			t.Fatalf("%+v", q)
		}
	})
}
