package packet

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func TestAVNetHeaderSaysWhatTheDeviceIsToDo(t *testing.T) {
	frame := unhex(t, macs+"0800"+tcpIP4+tcp)
	for _, n := range []int{VNetLen, VNetMergeLen, VNetHashLen, VNetTunnelLen} {
		f := append(make([]byte, n), frame...)
		copy(f, unhex(t, "01 81 3600 a805 2200 1000"))
		h := VNetOf(f, n)
		if h.Flags() != VNetNeedsCsum || h.GSOType() != GSOTCPv4|GSOECN || h.HdrLen() != 54 || h.GSOSize() != 1448 || h.CsumStart() != 34 || h.CsumOffset() != 16 {
			t.Errorf("%x", h)
		}
		var p Packet
		if p.ParseVNet(f, n) != IP4 || !h.PartialChecksum(&p, TCPChecksumAt) || h.PartialChecksum(&p, UDPChecksumAt) {
			t.Errorf("a header of %d bytes: the checksum is not where it is", n)
		}
		f[6] = 35
		if h.PartialChecksum(&p, TCPChecksumAt) {
			t.Error("another place's checksum is not this one")
		}
		copy(f[6:], []byte{0, 0, 0, 0})
		if !h.PartialChecksum(&p, TCPChecksumAt) {
			t.Error("a header that says no place means the only one")
		}
		f[0] = VNetDataValid
		if h.PartialChecksum(&p, TCPChecksumAt) {
			t.Error("a checksum that was verified is complete")
		}
	}
	for _, n := range []int{-1, 0, 9, 200} {
		if h := VNetOf(frame[:14], n); h != nil || h.PartialChecksum(new(Packet), 16) {
			t.Errorf("%d bytes are a header", n)
		}
		var p Packet
		if k := p.ParseVNet(frame[:14], n); n != 0 && n != 9 && k != Malformed {
			t.Errorf("behind %d bytes there is a frame", n)
		}
	}
}

func TestDatagramsOfOneFrameAreCounted(t *testing.T) {
	h := VNet(make([]byte, VNetLen))
	for _, c := range []struct {
		gso             uint8
		size, data      int
		n, len1         int
		why             string
		withoutAnHeader bool
	}{
		{GSOUDPL4, 1000, 2500, 3, 1000, "the last one is shorter", false},
		{GSOUDPL4, 1000, 2000, 2, 1000, "none is shorter", false},
		{GSOUDPL4, 1000, 1000, 1, 1000, "one", false},
		{GSOUDPL4, 0, 1000, 1, 1000, "a size of zero says nothing", false},
		{GSOUDP, 1000, 2500, 1, 2500, "fragments are one datagram", false},
		{GSONone, 0, 2500, 1, 2500, "", false},
		{GSOUDPL4, 1000, 2500, 1, 2500, "no header", true},
		{GSOUDPL4, 1000, 0, 1, 0, "no data", false},
	} {
		h[1] = c.gso
		binary.LittleEndian.PutUint16(h[4:], uint16(c.size))
		hdr := h
		if c.withoutAnHeader {
			hdr = nil
		}
		if n, size := hdr.Datagrams(make([]byte, c.data)); n != c.n || size != c.len1 {
			t.Errorf("%s: %d of %d bytes, want %d of %d", c.why, n, size, c.n, c.len1)
		}
	}
}

func TestBodiesAreThoseOfSegmentsAndDatagrams(t *testing.T) {
	for hex, want := range map[string]string{
		macs + "0800" + tcpIP4 + tcp:          "abcdefgh",
		macs + "0800" + udpIP4 + udp:          "AAAA",
		macs + "0800" + udpIP4 + udp + "0000": "AAAA",
		macs + "0806":                         "-",
		macs + "86dd" + ip6hdr("0014", "2c") + "1100 0001 00000007" + udp: "-",
	} {
		var p Packet
		p.Parse(unhex(t, hex))
		got := "-"
		if d, ok := p.Body(); ok {
			got = string(d)
		}
		if got != want {
			t.Errorf("%q of %s, want %q", got, hex, want)
		}
	}
}

func TestPiecesOfAStreamAreComparedWhereTheyOverlap(t *testing.T) {
	long := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	for _, c := range []struct {
		why      string
		aSeq     uint32
		a        []byte
		bSeq     uint32
		b        []byte
		from     uint32
		n, equal int
	}{
		{"the same", 100, []byte("abc"), 100, []byte("abc"), 100, 3, 3},
		{"one is longer", 100, []byte("abcd"), 100, []byte("abc"), 100, 3, 3},
		{"one begins later", 100, []byte("abcd"), 102, []byte("cdef"), 102, 2, 2},
		{"they differ", 100, []byte("abcd"), 102, []byte("cXef"), 102, 2, 1},
		{"they differ at once", 100, []byte("abcd"), 102, []byte("X"), 102, 1, 0},
		{"across the end of the numbers", 0xfffffffe, []byte("abcd"), 1, []byte("de"), 1, 1, 1},
		{"one behind the other", 100, []byte("abc"), 103, []byte("def"), 103, 0, 0},
		{"far from each other", 100, []byte("abc"), 1 << 30, []byte("def"), 1 << 30, 0, 0},
		{"nothing", 100, nil, 100, []byte("def"), 100, 0, 0},
		{"one of 64 KiB and one of its segments", 7, long, 7 + 1448*10, long[1448*10:][:1448], 7 + 1448*10, 1448, 1448},
	} {
		from, n, equal := Overlap(c.aSeq, c.a, c.bSeq, c.b)
		if from != c.from || n != c.n || equal != c.equal {
			t.Errorf("%s: %d bytes at %d, %d agree", c.why, n, from, equal)
		}
		if f, m, e := Overlap(c.bSeq, c.b, c.aSeq, c.a); f != from && n > 0 || m != n || e != equal {
			t.Errorf("%s: the other way round: %d bytes at %d, %d agree", c.why, m, f, e)
		}
	}
}

func FuzzOverlap(f *testing.F) {
	f.Add(uint32(5), []byte("abcdef"), uint32(7), []byte("cdXf"))
	f.Fuzz(func(t *testing.T, aSeq uint32, a []byte, bSeq uint32, b []byte) {
		from, n, equal := Overlap(aSeq, a, bSeq, b)
		if n < 0 || equal < 0 || equal > n {
			t.Fatal(n, equal)
		}
		for i := range n {
			x, y := a[from+uint32(i)-aSeq], b[from+uint32(i)-bSeq]
			if i < equal && x != y || i == equal && x == y {
				t.Fatalf("at %d of %d, %d agree", i, n, equal)
			}
		}
	})
}

func BenchmarkOverlap(b *testing.B) {
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	b.SetBytes(int64(len(x)))
	b.ReportAllocs()
	for b.Loop() {
		if _, n, equal := Overlap(1, x, 1, y); n != equal {
			b.Fatal()
		}
	}
}

func TestAPartialChecksumIsCompleted(t *testing.T) {
	for _, c := range []struct {
		hex         string
		start, at   int
		proto, want string
	}{
		{macs + "0800" + tcpIP4 + tcp, 34, 16, "TCP", "55c8"},
		{macs + "0800" + udpIP4 + udp, 34, 6, "UDP", "5594"},
	} {
		frame := unhex(t, c.hex)
		var p Packet
		p.Parse(frame)
		binary.BigEndian.PutUint16(frame[c.start+c.at:], p.PseudoSum())
		h := VNet(make([]byte, VNetLen))
		if !h.Complete(frame) || binary.BigEndian.Uint16(frame[c.start+c.at:]) != p.PseudoSum() {
			t.Errorf("%s: a checksum that is complete was changed", c.proto)
		}
		h[0], h[6], h[8] = VNetNeedsCsum, byte(c.start), byte(c.at)
		if !h.Complete(frame) || !bytes.Equal(frame, unhex(t, c.hex)) {
			t.Errorf("%s: %x, want %s", c.proto, frame, c.want)
		}
		if h.Complete(frame[:c.start+c.at+1]) {
			t.Errorf("%s: completed beyond the frame", c.proto)
		}
		h[7] = 0xff
		if h.Complete(frame) {
			t.Errorf("%s: completed beyond the frame", c.proto)
		}
	}
	// A sum of which nothing is left over is written as the other zero.
	h := VNet{VNetNeedsCsum, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if f := []byte{0xff, 0xff, 0, 0}; !h.Complete(f) || f[0] != 0xff || f[1] != 0xff {
		t.Errorf("%x", f)
	}
}
