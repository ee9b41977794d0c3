package packet

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	macs   = "52a400127867 52a400127866"
	udpIP4 = "4500 0020 0001 0000 40 11 66ca 0a000001 0a000002"
	udp    = "0035 1388 000c 5594 41414141"
	tcpIP4 = "4500 0030 0001 0000 40 06 66c5 0a000001 0a000002"
	tcp    = "0050 9c40 00000064 00001388 50 18 03e8 55c8 0000 6162636465666768"
	ip6    = "60000000 %s %s 40 20010db8000000000000000000000001 20010db8000000000000000000000002"
)

func ip6hdr(payload, next string) string {
	return strings.Replace(strings.Replace(ip6, "%s", payload, 1), "%s", next, 1)
}

func TestParseFindsTheParts(t *testing.T) {
	type want struct {
		kind                  Kind
		tags, l3, l4, end     int
		proto                 uint8
		fragment, first, l4ok bool
		ports                 uint32
	}
	for _, c := range []struct {
		why, frame string
		want       want
	}{
		{"UDP over IPv4", macs + "0800" + udpIP4 + udp,
			want{IP4, 0, 14, 34, 46, 17, false, true, true, 0x00351388}},
		{"padding is not part of the packet", macs + "0800" + tcpIP4 + tcp + "000000",
			want{IP4, 0, 14, 34, 62, 6, false, true, true, 0x00509c40}},
		{"IPv4 options", macs + "0800" + "4600 0024 0001 0000 40 11 0000 0a000001 0a000002 01010101" + udp,
			want{IP4, 0, 14, 38, 50, 17, false, true, true, 0x00351388}},
		{"a first fragment has no ports, like the others", macs + "0800" + "4500 0020 0001 2000 40 11 0000 0a000001 0a000002" + udp,
			want{IP4, 0, 14, 34, 46, 17, true, true, true, 0}},
		{"a later fragment has no header either", macs + "0800" + "4500 0020 0001 0001 40 11 0000 0a000001 0a000002" + udp,
			want{IP4, 0, 14, 34, 46, 17, true, false, false, 0}},
		{"a tag", macs + "8100 0005 0800" + udpIP4 + udp,
			want{IP4, 1, 18, 38, 50, 17, false, true, true, 0x00351388}},
		{"two tags", macs + "88a8 0007 8100 0005 0800" + udpIP4 + udp,
			want{IP4, 2, 22, 42, 54, 17, false, true, true, 0x00351388}},
		{"TCP with a header beyond its end", macs + "0800" + tcpIP4 + strings.Replace(tcp, "50 18", "f0 18", 1),
			want{IP4, 0, 14, 34, 62, 6, false, true, false, 0x00509c40}},
		{"UDP over IPv6", macs + "86dd" + ip6hdr("000c", "11") + udp,
			want{IP6, 0, 14, 54, 66, 17, false, true, true, 0x00351388}},
		{"IPv6 extension headers", macs + "86dd" + ip6hdr("0024", "00") + "3c00 010400000000" + "1101 0000 00000000 0000000000000000" + udp,
			want{IP6, 0, 14, 78, 90, 17, false, true, true, 0x00351388}},
		{"an IPv6 fragment", macs + "86dd" + ip6hdr("0014", "2c") + "1100 0001 00000007" + udp,
			want{IP6, 0, 14, 62, 74, 17, true, true, true, 0}},
		{"a later IPv6 fragment", macs + "86dd" + ip6hdr("0014", "2c") + "1100 0009 00000007" + udp,
			want{IP6, 0, 14, 62, 74, 17, true, false, false, 0}},
		{"an atomic fragment is a whole packet", macs + "86dd" + ip6hdr("0014", "2c") + "1100 0000 00000007" + udp,
			want{IP6, 0, 14, 62, 74, 17, false, true, true, 0x00351388}},
		{"no next header", macs + "86dd" + ip6hdr("0000", "3b"),
			want{IP6, 0, 14, 54, 54, 59, false, true, false, 0}},
		{"ARP", macs + "0806 0001080006040001", want{kind: ARP, l3: 14}},
		{"LLDP", macs + "88cc 0207", want{kind: Other, l3: 14}},
		{"nothing", "", want{}},
		{"half a tag", macs + "8100 00", want{l3: 14}},
		{"IPv4 that is cut", macs + "0800" + udpIP4 + "0035", want{l3: 14}},
		{"IPv4 of another version", macs + "0800" + "6" + udpIP4[1:] + udp, want{l3: 14}},
		{"IPv4 with a header longer than the packet", macs + "0800" + "4f" + udpIP4[2:] + udp, want{l3: 14}},
		{"IPv6 that is cut", macs + "86dd" + ip6hdr("000d", "11") + udp, want{l3: 14}},
		{"an extension header beyond the end", macs + "86dd" + ip6hdr("0008", "00") + "1101 000000000000", want{l3: 14, first: true}},
	} {
		var p Packet
		p.Parse(unhex(t, c.frame))
		got := want{p.Kind, p.Tags, p.L3, p.L4, p.End, p.Proto, p.Fragment, p.First, p.L4OK, 0}
		if p.Kind == IP4 || p.Kind == IP6 {
			var k Key
			p.Key(&k)
			got.ports = k.Ports
			if k.Reverse().Reverse() != k || k.Reverse() == k {
				t.Errorf("%s: key %v reversed %v", c.why, k, k.Reverse())
			}
		}
		if got != c.want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", c.why, got, c.want)
		}
	}
}

func TestViewsReadTheFields(t *testing.T) {
	var p Packet
	p.Parse(unhex(t, macs+"0800"+tcpIP4+tcp+"0000"))
	ip, h := p.IPv4(), p.TCP()
	if ip.TotalLen() != 48 || ip.ID() != 1 || ip.Proto() != 6 || !bytes.Equal(ip.Dst(), []byte{10, 0, 0, 2}) || Checksum(ip[:20]) != 0 {
		t.Errorf("IPv4 %x", ip)
	}
	if h.SrcPort() != 80 || h.DstPort() != 40000 || h.Seq() != 100 || h.Ack() != 5000 || h.Flags() != PSH|ACK || string(h.Payload()) != "abcdefgh" {
		t.Errorf("TCP %x", h)
	}
	if h.Checksum() != p.TCPChecksum() {
		t.Errorf("checksum %#x, ought to be %#x", h.Checksum(), p.TCPChecksum())
	}
	sum := Update(h.Checksum(), h.Seq(), 0xdeadbeef)
	h.SetSeq(0xdeadbeef)
	if sum != p.TCPChecksum() {
		t.Errorf("updated to %#x, ought to be %#x", sum, p.TCPChecksum())
	}
	if e := Ethernet(p.Frame); e.Type() != TypeIPv4 || e.Src()[5] != 0x66 {
		t.Errorf("Ethernet %x", e[:14])
	}
	p.Parse(unhex(t, macs+"86dd"+ip6hdr("000c", "11")+udp))
	if h, u := p.IPv6(), p.UDP(); h.PayloadLen() != 12 || h.NextHeader() != ProtoUDP || h.Src()[15] != 1 || h.Dst()[15] != 2 ||
		u.SrcPort() != 53 || u.DstPort() != 5000 || u.Len() != 12 || u.Checksum() != 0x5594 {
		t.Errorf("IPv6 %x", h)
	}
}

func TestOptionsAreWalkedToTheirEnd(t *testing.T) {
	for _, c := range []struct {
		why, opts string
		kinds     []uint8
	}{
		{"what Linux sends with a SYN", "020405b4 0402 080a 00000001 00000000 01 030307", []uint8{OptMSS, OptSACKPermit, OptTimestamps, OptWScale}},
		{"nothing behind the end", "030307 00 0402", []uint8{OptWScale}},
		{"a length of zero", "0300 0402", nil},
		{"a length beyond the end", "0402 0305", []uint8{OptSACKPermit}},
		{"a kind alone", "0402 03", []uint8{OptSACKPermit}},
		{"padding", "010101", nil},
	} {
		var got []uint8
		for opts := unhex(t, c.opts); ; {
			k, _, rest, ok := NextOption(opts)
			if !ok {
				break
			}
			got, opts = append(got, k), rest
		}
		if !bytes.Equal(got, c.kinds) {
			t.Errorf("%s: %v, want %v", c.why, got, c.kinds)
		}
	}
}

// naive is RFC 1071 as it is written.
func naive(sum uint16, b []byte) uint16 {
	s := uint32(sum)
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		s += w
		for s > 0xffff {
			s = s>>16 + s&0xffff
		}
	}
	return uint16(s)
}

func TestSumIsTheSumOfTheWords(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, 3000)
	for i := range 3000 {
		n := rnd.IntN(i + 1)
		for j := range b[:n] {
			b[j] = byte(rnd.Uint32())
			if i%3 == 0 {
				b[j] |= 0xfe // carries
			}
		}
		start := uint16(rnd.Uint32())
		if got, want := Sum(start, b[:n]), naive(start, b[:n]); got != want {
			t.Fatalf("%d bytes: %#x, want %#x", n, got, want)
		}
		if n < 12 {
			continue
		}
		b[0] |= 1 // not all zero, where ones' complement has two zeros
		sum, at := Checksum(b[:n]), 4*rnd.IntN(n/4-1)+4
		if at+4 > n {
			continue
		}
		old, neu := binary.BigEndian.Uint32(b[at:]), rnd.Uint32()
		binary.BigEndian.PutUint32(b[at:], neu)
		if got, want := Update(sum, old, neu), Checksum(b[:n]); got != want {
			t.Fatalf("%#x updated from %#x to %#x: %#x, want %#x", sum, old, neu, got, want)
		}
	}
}

func TestNothingAllocates(t *testing.T) {
	frame := unhex(t, macs+"0800"+tcpIP4+tcp)
	var p Packet
	var k Key
	n := testing.AllocsPerRun(100, func() {
		p.Parse(frame)
		p.Key(&k)
		_ = p.TCPChecksum()
		_ = k.Reverse()
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzPacket(f *testing.F) {
	for _, s := range []string{
		macs + "0800" + udpIP4 + udp, macs + "8100 0005 0800" + tcpIP4 + tcp,
		macs + "86dd" + ip6hdr("0024", "00") + "3c00 010400000000" + "1101 0000 00000000 0000000000000000" + udp,
		macs + "86dd" + ip6hdr("0014", "2c") + "1100 0001 00000007" + udp,
	} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		var p Packet
		var k Key
		switch p.Parse(frame) {
		case IP4:
			_ = p.IPv4().Dst()
		case IP6:
			_ = p.IPv6().Dst()
		default:
			return
		}
		if p.L3 > p.L4 || p.L4 > p.End || p.End > len(frame) {
			t.Fatalf("parts at %d, %d, %d of %d", p.L3, p.L4, p.End, len(frame))
		}
		p.Key(&k)
		if p.IsTCP() {
			h := p.TCP()
			_ = h.Payload()
			for opts := h.Options(); ; {
				_, _, rest, ok := NextOption(opts)
				if !ok {
					break
				}
				opts = rest
			}
			h.SetChecksum(p.TCPChecksum())
			if sum := Sum(p.PseudoSum(), h); sum != 0xffff {
				t.Fatalf("the sum with its checksum is %#x", sum)
			}
		}
		if p.Proto == ProtoUDP && p.L4OK {
			_ = p.UDP().Checksum()
		}
	})
}

func BenchmarkParse(b *testing.B) {
	frame := unhex(b, macs+"0800"+tcpIP4+tcp)
	var p Packet
	var k Key
	b.ReportAllocs()
	for b.Loop() {
		p.Parse(frame)
		p.Key(&k)
	}
}

func BenchmarkChecksum(b *testing.B) {
	p := make([]byte, 1460)
	b.SetBytes(1460)
	for b.Loop() {
		Checksum(p)
	}
}
