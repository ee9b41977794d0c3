package compare_test

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/gocolo/lockstep/internal/packet"
)

// wrappedKinds are what both guests say within other headers, or of what other protocols.
func wrappedKinds() []kind {
	one := func(f ...[]byte) [][]byte { return f }
	tcp := kindsSegment(0, wireACK|wirePSH, "", "abcd")[34:]
	udp := wireDatagram(53, 5000, "datagram")[34:]
	ext := func(first byte, headers string, payload []byte) []byte {
		return sealed(extended([]byte(headers), first, payload))
	}
	options := func(proto byte, opts string, payload []byte) []byte {
		f := wireIPv4(proto, 0, append([]byte(opts), payload...))
		f[14] = 0x45 + byte(len(opts)/4)
		return sealed(f)
	}
	ppp := func(f []byte, tags string) []byte { return kindsVLAN(asPPPoE(f), tags) }
	ppp6 := func(f []byte) []byte { return with(asPPPoE(f), 20, 0, 0x57) }
	hop, dest := "\x3c\x00\x01\x04\x00\x00\x00\x00", "\x06\x00\x01\x04\x00\x00\x00\x00"
	atomic := "\x06\x00\x00\x00\x01\x02\x03\x04"
	quoting := func(first byte, headers string) []byte {
		q := ext(first, headers, tcp)[14:]
		f := v6(packet.ProtoICMPv6, append([]byte{2, 0, 0, 0, 0, 0, 5, 0}, q...))
		return f
	}
	noSum := func(f []byte, at int) []byte { return with(f, at, 0, 0) }
	inner := kindsSegment(0, wireACK, "", "inner")
	gre := append([]byte{0x10, 0, 8, 0, 0, 0, 0, 7}, inner[14:]...)
	vxlan := wireDatagram(40000, 4789, "\x08\x00\x00\x00\x00\x00\x07\x00"+string(inner))
	geneve := wireDatagram(40000, 6081, "\x00\x00\x65\x58\x00\x00\x07\x00"+string(inner))
	sctp := []byte("\x00\x50\x00\x01\x00\x00\x00\x07\x00\x00\x00\x00\x00\x03\x00\x14\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00data")
	esp := []byte("\x00\x00\x01\x00\x00\x00\x00\x01what nobody can read")
	ah := []byte("\x06\x04\x00\x00\x00\x00\x01\x00\x00\x00\x00\x01the mac, 12b" + string(tcp))
	long := wireDatagram(53, 5000, "datagram")
	binary.BigEndian.PutUint16(long[38:], 12)
	short := wireDatagram(53, 5000, "datagram")
	binary.BigEndian.PutUint16(short[38:], 99)
	return []kind{
		{what: "IPv6 hop-by-hop and destination options", say: one(ext(0, hop+dest, tcp))},
		{what: "IPv6 destination options around a datagram", say: one(ext(60, "\x11\x00\x01\x04\x00\x00\x00\x00", udp))},
		{what: "IPv6 routing, at its end", say: one(ext(43, "\x06\x00\x00\x00\x00\x00\x00\x00", tcp))},
		{what: "IPv6 segment routing", say: one(ext(43, "\x06\x02\x04\x00\x00\x00\x00\x00"+strings.Repeat("a", 16), tcp))},
		{what: "IPv6 segment routing, with segments left", say: one(ext(43, "\x06\x02\x04\x01\x00\x00\x00\x00"+strings.Repeat("a", 16), tcp))},
		{what: "IPv6 segment routing of a datagram", say: one(ext(43, "\x11\x04\x04\x01\x01\x00\x00\x00"+strings.Repeat("ab", 16), udp))},
		{what: "IPv6 segment routing twice", say: one(ext(43, strings.Repeat("\x2b\x02\x04\x01\x00\x00\x00\x00"+strings.Repeat("a", 16), 2)+dest, tcp)), waits: 1},
		{what: "IPv6 segment routing without a list", say: one(ext(43, "\x06\x00\x04\x01\x00\x00\x00\x00", tcp)), waits: 1},
		{what: "IPv6 routing to a home address", say: one(ext(43, "\x06\x02\x02\x01\x00\x00\x00\x00"+strings.Repeat("a", 16), tcp)), waits: 1},
		{what: "IPv6 routing of a datagram to a home address", say: one(ext(43, "\x11\x02\x02\x01\x00\x00\x00\x00"+strings.Repeat("a", 16), udp)), waits: 1},
		{what: "IPv6 atomic fragment", say: one(ext(44, atomic, tcp))},
		{what: "IPv6 atomic fragment of a datagram", say: one(ext(44, "\x11"+atomic[1:], udp))},
		{what: "IPv6 atomic fragment behind hop-by-hop options", say: one(ext(0, "\x2c\x00\x01\x04\x00\x00\x00\x00"+atomic, tcp))},
		{what: "IPv6 atomic fragment, and the same without", say: one(ext(44, atomic, tcp), sealed(extended(nil, 6, tcp)))},
		{what: "IPv6 mobility", say: one(v6(135, []byte("\x3b\x00\x05\x00\x00\x00\x00\x00")))},
		{what: "IPv6 ESP", say: one(v6(50, esp))},
		{what: "IPv6 AH around a segment", say: one(ext(51, "\x06\x04\x00\x00\x00\x00\x01\x00\x00\x00\x00\x01the mac, 12b", tcp))},
		{what: "IPv6 half an extension", say: one(v6(60, []byte("\x06\x00\x01\x04"))), waits: 1},
		{what: "IPv6 extensions and nothing", say: one(v6(60, []byte("\x06\x00\x01\x04\x00\x00\x00\x00"))), waits: 1},
		{what: "IPv6 within IPv6", say: one(v6(41, ext(0, hop+dest, tcp)[14:]))},
		{what: "IPv6 padded", say: one(append(v6(17, udp), make([]byte, 9)...))},
		{what: "IPv4 router alert", say: one(options(2, "\x94\x04\x00\x00", []byte("\x16\x00\x09\x04\xe0\x00\x00\x05")))},
		{what: "IPv4 with timestamps", say: one(options(6, "\x44\x0c\x05\x00\x00\x00\x00\x00\x00\x00\x00\x00", tcp))},
		{what: "IPv4 with a loose source route", say: one(options(6, "\x83\x07\x04\x0a\x00\x00\x09\x00", tcp))},
		{what: "IPv4 with options of 40 bytes", say: one(options(17, strings.Repeat("\x01", 40), udp))},
		{what: "IPv4 padded", say: one(append(kindsSegment(0, wireACK, "", "a"), make([]byte, 5)...))},
		{what: "VLAN in VLAN around PPPoE", say: one(ppp(kindsSegment(0, wireACK, "", "abcd"), "\x88\xa8\x00\x05\x81\x00\x00\x06"))},
		{what: "VLAN in VLAN around PPPoE with IPv6", say: one(kindsVLAN(ppp6(ext(0, hop+dest, tcp)), "\x88\xa8\x00\x05\x81\x00\x00\x06"))},
		{what: "VLAN, PPPoE and padding", say: one(append(ppp(wireDatagram(53, 5000, "x"), "\x81\x00\x00\x05"), 0, 0, 0))},
		{what: "PPPoE that asks", say: one(slices.Concat(make([]byte, 12), []byte("\x88\x63\x11\x09\x00\x00\x00\x04\x01\x01\x00\x00"))), waits: 1},
		{what: "PPP that negotiates", say: one(slices.Concat(make([]byte, 12), []byte("\x88\x64\x11\x00\x00\x07\x00\x06\xc0\x21\x09\x01\x00\x04"))), waits: 1},
		{what: "UDP without a checksum", say: one(noSum(wireDatagram(53, 5000, "x"), 40))},
		{what: "UDP shorter than its packet", say: one(long)},
		{what: "UDP longer than its packet", say: one(short), waits: 1},
		{what: "UDP of no data", say: one(wireDatagram(53, 5000, ""))},
		{what: "GRE with a key", say: one(wireIPv4(47, 0, gre))},
		{what: "VXLAN", say: one(vxlan)},
		{what: "Geneve", say: one(geneve)},
		{what: "SCTP", say: one(wireIPv4(132, 0, sctp))},
		{what: "ESP", say: one(wireIPv4(50, 0, esp))},
		{what: "AH around a segment", say: one(wireIPv4(51, 0, ah))},
		{what: "fragments that overlap in part of a header", say: one(wireIPv4(6, 0x2000, tcp[:16]), wireIPv4(6, 1, tcp[8:]))},
		{what: "an error of IPv6 that quotes extensions", say: one(quoting(0, hop+dest))},
		{what: "an error of IPv6 that quotes an atomic fragment", say: one(quoting(44, atomic))},
		{what: "accurate ECN", say: one(with(kindsSegment(0, wireACK|0xc0, "\xac\x0b\x00\x00\x01\x00\x00\x01\x00\x00\x01\x01", "abcd"), 46, 0x81))},
		{what: "an acknowledgment behind the window", say: one(kindsSegment(1<<20, wireACK, "", ""))},
		{what: "an acknowledgment before the window", say: one(kindsSegment(1<<32-1<<20, wireACK, "", ""))},
		{what: "urgent without data", say: one(with(kindsSegment(0, wireACK|0x20, "", ""), 52, 0, 1))},
		{what: "urgent, repeated further on", say: one(with(kindsSegment(0, wireACK|0x20, "", "ab"), 52, 0, 4), with(kindsSegment(2, wireACK|0x20, "", "cd"), 52, 0, 2))},
		{what: "FIN, and an acknowledgment of the half that is open", say: one(kindsSegment(0, wireFIN|wireACK, "", "ab"), kindsSegment(3, wireACK, "", ""))},
	}
}
