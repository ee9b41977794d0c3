package proxy_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/internal/packet"
)

// kindsISN is the initial number of the connection of these tests: its numbers wrap in its
// first bytes.
const kindsISN = 1<<32 - 3

// A kind is what a guest says, or is told. Its frames have a virtio-net header, if one is in
// use, of zero, or one that begins with head.
type kind struct {
	what string
	say  [][]byte
	head []byte
}

// kinds returns frames of all kinds, right and wrong.
func kinds() (list []kind) {
	add := func(what string, say ...[]byte) { list = append(list, kind{what: what, say: say}) }
	ip4 := func(proto byte, fragment uint16, body string) []byte {
		f := datagram("")[:packet.EthernetLen+packet.IPv4Len]
		f[23] = proto
		binary.BigEndian.PutUint16(f[16:], uint16(packet.IPv4Len+len(body)))
		binary.BigEndian.PutUint16(f[20:], fragment)
		return append(f, body...)
	}
	ip6 := func(next byte, body string) []byte {
		f := append(make([]byte, 12, 64), 0x86, 0xdd, 0x60, 0, 0, 0, byte(len(body)>>8), byte(len(body)), next, 64)
		return append(append(f, "the source, and the destination."...), body...)
	}
	put := func(f []byte, at int, b ...byte) []byte {
		f = bytes.Clone(f)
		copy(f[at:], b)
		return f
	}
	summed := func(f []byte) []byte {
		var p packet.Packet
		p.Parse(f)
		p.TCP().SetChecksum(p.TCPChecksum())
		return f
	}
	tags := func(t string, f []byte) []byte { return slices.Concat(f[:12], []byte(t), f[12:]) }
	seg := func(at uint32, flags byte, data string) []byte {
		return segment(false, kindsISN+1+at, 501, flags, data)
	}
	withOptions := func(at uint32, opts, data string) []byte {
		f := segment(false, kindsISN+1+at, 501, push, opts+data)
		f[46] = byte(5+len(opts)/4) << 4
		return summed(f)
	}
	times := func(value uint32) string {
		return string(binary.BigEndian.AppendUint32([]byte("\x01\x01\x08\x0a"), value)) + "\x00\x00\x00\x07"
	}

	for what, flags := range map[string]byte{"data": push, "FIN": push | packet.FIN, "RST|ACK": packet.RST | packet.ACK,
		"urgent": push | packet.URG, "ECE and CWR": push | 0xc0, "no flags": 0, "all flags": 0xff} {
		add(what, seg(0, flags, "abcdefgh"))
		if flags != 0 { // else it says nothing, and leaves at once
			add(what+" without data", seg(0, flags, ""))
		}
		add(what+" behind data", seg(0, push, "abcd"), seg(4, flags, "ef"))
	}
	add("RST at the place", seg(0, packet.RST, ""))
	add("RST in the window", seg(900, packet.RST, ""))
	add("RST before", seg(1<<31, packet.RST, ""))
	add("keepalive", seg(0, push, "ab"), seg(1, packet.ACK, ""))
	add("keepalive with a byte", seg(0, push, "ab"), seg(1, packet.ACK, "\x00"))
	add("zero window", summed(put(seg(0, packet.ACK, ""), 48, 0, 0)))
	add("SACK", withOptions(0, "\x01\x01\x05\x0a\xff\xff\xff\xf0\x00\x00\x00\x20", ""))
	add("SACK that is malformed", withOptions(0, "\x05\x0b\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "ab"))
	add("timestamps that wrap", withOptions(0, times(1<<32-1), "ab"), withOptions(2, times(0), "cd"), withOptions(4, times(1), "ef"))
	add("TCP-MD5", withOptions(0, "\x13\x12a signature of it\x01\x01", "ab"))
	add("TCP-AO", withOptions(0, "\x1d\x10a signature...", "ab"))
	add("options without an end", withOptions(0, "\x08\x00\x00\x00", "ab"))
	add("a header of TCP of 16 bytes", put(seg(0, push, "ab"), 46, 0x40))
	add("a header of TCP beyond the packet", put(seg(0, push, "ab"), 46, 0xf0))
	add("a wrong checksum", put(seg(0, push, "ab"), 50, 1, 2))
	add("IPv4 with a record route", func() []byte {
		f := slices.Insert(seg(0, push, "ab"), 34, 7, 7, 4, 0, 0, 0, 0, 0)
		f[14], f[17] = 0x47, f[17]+8
		return f
	}())
	add("a header of IPv4 of 16 bytes", put(datagram("x"), 14, 0x44))
	add("total length of 0", put(datagram("x"), 16, 0, 0))
	add("total length beyond the frame", put(datagram("x"), 16, 9, 9))
	add("version 5", put(datagram("x"), 14, 0x55))

	whole := string(datagram(strings.Repeat("fragment", 5))[34:])
	first, middle, last := ip4(17, 0x2000, whole[:16]), ip4(17, 0x2002, whole[16:32]), ip4(17, 4, whole[32:])
	for i, order := range [][3][]byte{{first, middle, last}, {first, last, middle}, {middle, first, last}, {middle, last, first}, {last, first, middle}, {last, middle, first}} {
		add(fmt.Sprintf("fragments, order %d", i), order[:]...)
	}
	add("a fragment that ends behind 64 KiB", ip4(17, 0x1fff, strings.Repeat("x", 100)))
	add("a fragment of nothing", ip4(6, 0x2000, ""))
	add("a header of TCP in fragments", ip4(6, 0x2000, string(seg(0, push, "ab")[34:42])), ip4(6, 1, string(seg(0, push, "ab")[42:])))
	tcp := string(seg(0, push, "ab")[34:])
	add("IPv6", ip6(6, tcp))
	add("IPv6 hop-by-hop", ip6(0, "\x06\x00\x01\x04\x00\x00\x00\x00"+tcp))
	add("IPv6 twenty extensions", ip6(60, strings.Repeat("\x3c\x00\x01\x04\x00\x00\x00\x00", 19)+"\x06\x00\x01\x04\x00\x00\x00\x00"+tcp))
	add("IPv6 extension beyond the packet", ip6(60, "\x06\xff\x01\x04\x00\x00\x00\x00"))
	add("IPv6 authentication", ip6(51, "\x06\x02\x00\x00\x00\x00\x00\x07\x00\x00\x00\x01icv."+tcp))
	add("IPv6 fragments", ip6(44, "\x11\x00\x00\x01\x00\x00\x00\x01"+whole[:16]), ip6(44, "\x11\x00\x00\x10\x00\x00\x00\x01"+whole[16:]))
	add("IPv6 jumbo", ip6(0, "\x06\x00\xc2\x04\x00\x01\x00\x00"))
	add("IPv6 no next header", ip6(59, "abcd"))
	add("IPv6 segment routing", ip6(43, "\x06\x02\x04\x00\x00\x00\x00\x00"+strings.Repeat("a", 16)+tcp))
	add("IPv6 atomic fragment between options", ip6(0, "\x2c\x00\x01\x04\x00\x00\x00\x00\x3c\x00\x00\x00\x00\x00\x00\x07\x06\x00\x01\x04\x00\x00\x00\x00"+tcp))
	add("an error of IPv6 that quotes extensions", ip6(58, "\x02\x00\x00\x00\x00\x00\x05\x00"+string(ip6(0, "\x06\x00\x01\x04\x00\x00\x00\x00"+tcp)[14:])))
	add("fragments that overlap", ip4(17, 0x2000, whole[:24]), ip4(17, 2, whole[16:]))
	add("neighbour advertisement", ip6(58, "\x88\x00\x00\x00\x60\x00\x00\x00the address asked\x02\x01\x02\x00\x00\x00\x00\x01"))
	add("neighbour solicitation", ip6(58, "\x87\x00\x00\x00\x00\x00\x00\x00the address asked"))
	add("multicast listener report", ip6(58, "\x8f\x00\x00\x00\x00\x00\x00\x00"))
	quoted := string(seg(0, push, "quoted")[14:])
	for _, n := range []int{0, 10, 21, 28, 46} {
		add(fmt.Sprintf("an error that quotes %d bytes", n), ip4(1, 0, "\x03\x04\x00\x00\x00\x00\x05\x00"+quoted[:n]))
	}
	for what, proto := range map[string]byte{"IGMP": 2, "IP in IP": 4, "DCCP": 33, "GRE": 47, "ESP": 50, "SCTP": 132, "UDP-Lite": 136, "experimental": 253} {
		add(what, ip4(proto, 0, "what another protocol has"))
		add(what+", nothing of it", ip4(proto, 0, ""))
	}
	for what, t := range map[string]string{"VLAN": "\x81\x00\x00\x05", "VLAN in VLAN": "\x88\xa8\x00\x05\x81\x00\x00\x06", "VLAN in VLAN in VLAN": "\x88\xa8\x00\x05\x81\x00\x00\x06\x81\x00\x00\x07"} {
		add(what, tags(t, seg(0, push, "ab")))
		add(what+", a datagram", tags(t, datagram("x")))
		add(what+", and nothing", append(make([]byte, 12), t...))
	}
	add("PPPoE", slices.Concat(make([]byte, 12), []byte("\x88\x64\x11\x00\x00\x09\x00\x1f\x00\x21"), datagram("x")[14:]))
	add("PPPoE, another length", slices.Concat(make([]byte, 12), []byte("\x88\x64\x11\x00\x00\x09\x01\x00\x00\x21"), datagram("x")[14:]))
	dialled := slices.Concat(make([]byte, 12), []byte("\x88\x64\x11\x00\x00\x09\x00\x1f\x00\x21"), datagram("x")[14:])
	add("PPPoE in a VLAN", tags("\x81\x00\x00\x05", dialled))
	add("PPPoE in three VLANs", tags("\x88\xa8\x00\x05\x81\x00\x00\x06\x81\x00\x00\x07", dialled))
	add("PPPoE of IPv6", slices.Concat(make([]byte, 12), []byte("\x88\x64\x11\x00\x00\x09\x00\x40\x00\x57"), ip6(6, tcp)[14:]))
	add("LCP in PPPoE", slices.Concat(make([]byte, 12), []byte("\x88\x64\x11\x00\x00\x09\x00\x06\xc0\x21\x09\x01\x00\x04")))
	add("four VLANs", tags("\x81\x00\x00\x05\x81\x00\x00\x06\x81\x00\x00\x07\x81\x00\x00\x08", seg(0, push, "ab")))
	add("two VLANs and VLAN 0 between", tags("\x88\xa8\x00\x05\x81\x00\xe0\x00\x81\x00\x00\x06", seg(0, push, "ab")))
	add("MPLS", tags("\x88\x47\x00\x01\x01\x40", seg(0, push, "ab")))
	add("MPLS multicast, two labels", tags("\x88\x48\x00\x01\x00\x40\x00\x02\x01\x40", datagram("x")))
	add("LLC and SNAP", slices.Concat(make([]byte, 12), []byte("\x00\x25\xaa\xaa\x03\x00\x00\x00\x08\x00"), datagram("x")[14:]))
	add("LLC in a VLAN", slices.Concat(make([]byte, 12), []byte("\x81\x00\x00\x05\x00\x04\x42\x42\x03\x00")))
	add("VXLAN", func() []byte {
		f := datagram("\x08\x00\x00\x00\x00\x00\x09\x00" + string(seg(0, push, "ab")))
		f[36], f[37] = 4789>>8, 4789&0xff
		return f
	}())
	add("IPv6 in IPv4 in a VLAN", tags("\x81\x00\x00\x05", ip4(41, 0, string(ip6(6, tcp)[14:]))))
	add("IPv4 in IPv6", ip6(4, string(seg(0, push, "ab")[14:])))
	add("a short segment, padded", append(seg(0, packet.ACK, ""), 0, 0, 0, 0, 0, 0))
	add("a short segment, padded with what it is not", append(seg(0, push, "a"), "no data"...))
	for what, opts := range map[string]string{"a loose source route": "\x83\x07\x04\x0a\x00\x00\x09\x00", "a strict source route": "\x89\x07\x04\x0a\x00\x00\x09\x00",
		"a source route that is run": "\x83\x07\x08\x0a\x00\x00\x09\x00", "a source route that is none": "\x83\x03\x05\x00", "two source routes": "\x83\x07\x04\x0a\x00\x00\x09\x89\x07\x04\x0a\x00\x00\x08\x00\x00"} {
		f := slices.Concat(seg(0, push, "ab")[:34], []byte(opts), seg(0, push, "ab")[34:])
		f[14], f[17] = byte(0x45+len(opts)/4), f[17]+byte(len(opts))
		add(what, summed(f))
	}
	add("LLDP", put(datagram("x"), 0, []byte("\x01\x80\xc2\x00\x00\x0e\x02\x00\x00\x00\x00\x01\x88\xcc")...))
	add("802.3", put(datagram("x"), 12, 0, 29))
	add("ARP", append(make([]byte, 12, 64), "\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01\x02\x00\x00\x00\x00\x01\x0a\x00\x00\x01\x00\x00\x00\x00\x00\x00\x0a\x00\x00\x02"...))
	add("half of ARP", append(make([]byte, 12, 64), "\x08\x06\x00\x01\x08\x00"...))
	add("multicast", put(put(datagram("x"), 0, 1, 0, 0x5e, 0, 0, 0xfb), 30, 224, 0, 0, 251))
	add("broadcast", put(put(datagram("x"), 0, 255, 255, 255, 255, 255, 255), 30, 255, 255, 255, 255))
	add("jumbo", datagram(strings.Repeat("large one", 1000)))
	add("as long as there are", datagram(strings.Repeat("x", 65000)))
	add("padded", append(datagram("x"), strings.Repeat("\xff", 17)...))
	for n := 1; n <= 60; n++ {
		add(fmt.Sprintf("%d bytes", n), bytes.Clone(seg(0, push, "what is cut off")[:n]))
	}
	add("all of it", seg(0, push, "ab"), datagram("x"), seg(2, push, "cd"), first, put(datagram("x"), 12, 0x88, 0xcc), last, seg(4, packet.RST, ""))

	super := segment(false, kindsISN+1, 501, push, strings.Repeat("a super frame", 400))
	var p packet.Packet
	p.Parse(super)
	p.TCP().SetChecksum(p.PseudoSum())
	list = append(list,
		kind{"TSO", [][]byte{super}, []byte("\x01\x01\x36\x00\xa8\x05\x22\x00\x10\x00")},
		kind{"TSO of another protocol", [][]byte{super}, []byte("\x01\x04\x36\x00\xa8\x05\x22\x00\x10\x00")},
		kind{"TSO of segments of 0", [][]byte{super}, []byte("\x01\x01\x36\x00\x00\x00\x22\x00\x10\x00")},
		kind{"a checksum beyond the frame", [][]byte{super}, []byte("\x01\x00\x00\x00\x00\x00\xff\xff\x10\x00")},
		kind{"an unknown way to cut", [][]byte{super}, []byte("\x00\x77\x00\x00\xff\x00\x00\x00\x00\x00")},
		kind{"TSO with marks of congestion", [][]byte{super}, []byte("\x01\x81\x36\x00\xa8\x05\x22\x00\x10\x00")},
		kind{"TSO in a VLAN", [][]byte{tags("\x81\x00\x00\x05", super)}, []byte("\x01\x01\x3a\x00\xa8\x05\x26\x00\x10\x00")},
		kind{"TSO in a VLAN in a VLAN", [][]byte{tags("\x88\xa8\x00\x05\x81\x00\x00\x06", super)}, []byte("\x01\x01\x3e\x00\xa8\x05\x2a\x00\x10\x00")},
		kind{"TSO in a tunnel", [][]byte{datagram(string(super))}, []byte("\x01\x21\x60\x00\xa8\x05\x4c\x00\x10\x00")},
		kind{"a checksum in a tunnel", [][]byte{datagram(string(super))}, []byte("\x01\x00\x00\x00\x00\x00\x4c\x00\x10\x00")},
		kind{"fragments that a device makes", [][]byte{datagram(strings.Repeat("some of it", 900))}, []byte("\x01\x03\x2a\x00\xc8\x05\x22\x00\x06\x00")},
		kind{"USO in a VLAN", [][]byte{tags("\x81\x00\x00\x05", datagram(strings.Repeat("some of it", 900)))}, []byte("\x01\x05\x2e\x00\x64\x00\x26\x00\x06\x00")},
		kind{"USO of datagrams of 0", [][]byte{datagram(strings.Repeat("some of it", 900))}, []byte("\x01\x05\x2a\x00\x00\x00\x22\x00\x06\x00")},
		kind{"a fragment with a checksum to finish", [][]byte{first, middle, last}, []byte("\x01\x00\x2a\x00\x00\x00\x22\x00\x06\x00")},
		kind{"TSO of an IPv4 with options", [][]byte{func() []byte {
			f := slices.Insert(slices.Clone(super), 34, 7, 7, 4, 0, 0, 0, 0, 0)
			f[14], f[17] = 0x47, f[17]+8
			return f
		}()}, []byte("\x01\x01\x3e\x00\xa8\x05\x2a\x00\x10\x00")},
		kind{"USO", [][]byte{datagram(strings.Repeat("some of it", 900))}, []byte("\x01\x05\x2a\x00\x64\x00\x22\x00\x06\x00")})
	return list
}

// A kindsWorld is a pair whose guests and networks keep frames whole.
type kindsWorld struct {
	*world
	pguest, sguest *recorder
	pnet, snet     recordedWire
}

func newKindsWorld(t *testing.T, vnet int, continuous bool) *kindsWorld {
	x := &kindsWorld{pguest: new(recorder), sguest: new(recorder)}
	x.world = newWorld(t, func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) {
		p.Deliver, s.Deliver = x.pguest.take, x.sguest.take
		p.VNetHdr, s.VNetHdr = vnet, vnet
		p.Continuous, s.Continuous = continuous, continuous
	})
	// The world's own networks, which know datagrams with words only, make room for these.
	x.cancel()
	x.pw.Close()
	x.sw.Close()
	x.group.Wait()
	x.pnet, x.snet = recordedWire{newWire(), new(recorder)}, recordedWire{newWire(), new(recorder)}
	ctx, cancel := context.WithCancel(t.Context())
	x.ctx, x.cancel = ctx, func() { cancel(); x.pnet.Close(); x.snet.Close() }
	x.group.Go(func() { x.p.Run(x.ctx, x.pnet) })
	x.group.Go(func() { x.s.Run(x.ctx, x.snet) })
	x.connect()
	x.checkpoint()
	return x
}

func (x *kindsWorld) primary(say [][]byte) {
	for _, f := range say {
		x.must(x.p.WritePacket(bytes.Clone(f)))
	}
}

func (x *kindsWorld) secondary(say [][]byte) {
	for _, f := range say {
		x.must(x.s.WritePacket(bytes.Clone(f)))
	}
}

// fails has the secondary take over.
func (x *kindsWorld) fails() {
	x.pnet.Close()
	x.pconn.Close()
	x.must(x.s.Pause(x.ctx))
	x.must(x.s.Failover())
	x.must(x.s.Resume(x.ctx))
	synctest.Wait()
}

// empty checks that neither side keeps anything.
func (x *kindsWorld) empty(what string) {
	x.t.Helper()
	synctest.Wait()
	if s := x.p.Stats(); s.Held != 0 || s.HeldBytes != 0 || s.Queued != 0 || s.Buffer.Held != 0 {
		x.t.Errorf("%s: the primary keeps %d packets, and %d may leave", what, s.Held+s.Buffer.Held, s.Queued)
	}
	if s := x.s.Stats(); s.Keep.Held != 0 || s.Keep.Queued != 0 || s.Unsent != 0 {
		x.t.Errorf("%s: the secondary keeps %d packets, and %d may leave", what, s.Keep.Held, s.Keep.Queued)
	}
}

// Frames of every kind through a pair. What the primary's guest alone has said leaves with the
// next checkpoint, in order, and not before; what both have said leaves once; and whoever
// survives, what its guest remembers to have said leaves.
func TestFramesOfEveryKindLeaveOnceAndCovered(t *testing.T) {
	tell := map[string]func(x *kindsWorld, what string, say [][]byte){
		"the primary's guest says it": func(x *kindsWorld, what string, say [][]byte) {
			x.primary(say)
			time.Sleep(time.Second)
			x.pnet.want(x.t, what+": before the checkpoint")
			x.checkpoint()
			x.pnet.want(x.t, what, say...)
			x.empty(what)
		},
		"the host of the primary dies with the checkpoint": func(x *kindsWorld, what string, say [][]byte) {
			x.primary(say)
			time.Sleep(time.Second)
			m := x.mark()
			x.pnet.Close() // before it knows of the commit, by which they may leave
			x.pconn.Close()
			synctest.Wait()
			x.commit(m)
			x.fails()
			x.pnet.want(x.t, what+": by the primary")
			x.snet.want(x.t, what+": by the secondary", say...)
			if s := x.s.Stats(); s.Keep.Held != 0 || s.Keep.Queued != 0 || s.Keep.Inherited != 0 {
				x.t.Errorf("%s: it keeps %+v", what, s.Keep)
			}
		},
		"the secondary rolls a checkpoint back, and takes over": func(x *kindsWorld, what string, say [][]byte) {
			x.secondary(say)
			m := x.mark()
			x.must(x.sreg.LoadDevices(m.network, nil))
			x.sreg.Rollback()
			x.fails()
			x.pnet.want(x.t, what+": by the primary")
			x.snet.want(x.t, what+": by the secondary", say...)
		},
		"the host of the secondary dies": func(x *kindsWorld, what string, say [][]byte) {
			x.primary(say)
			x.sconn.Close()
			x.must(x.p.Pause(x.ctx))
			x.must(x.p.Failover())
			x.must(x.p.Resume(x.ctx))
			x.pnet.want(x.t, what, say...)
			x.empty(what)
		},
	}
	both := func(x *kindsWorld, what string, say [][]byte) {
		x.primary(say)
		synctest.Wait()
		x.secondary(say)
		time.Sleep(time.Second)
		x.checkpoint()
		synctest.Wait()
		x.pnet.recorder.mu.Lock()
		left := slices.SortedFunc(slices.Values(x.pnet.got), bytes.Compare)
		x.pnet.recorder.mu.Unlock()
		if !slices.EqualFunc(left, slices.SortedFunc(slices.Values(say), bytes.Compare), bytes.Equal) {
			x.t.Errorf("%s: %.400x leave, and %.400x was said", what, left, say)
		}
		x.empty(what)
	}
	arrives := func(x *kindsWorld, what string, say [][]byte) {
		for _, f := range say {
			x.pnet.in <- f
			synctest.Wait()
		}
		x.pguest.want(x.t, what+": to the primary's guest", say...)
		if x.p.Stats().Mirrored > 0 {
			x.sguest.want(x.t, what+": to the secondary's guest", say...)
		}
		x.checkpoint()
		x.empty(what)
	}
	tell["both guests say it"], tell["it arrives"] = both, arrives

	headers := []int{0, 10, 12, 20, 24}
	if testing.Short() {
		headers = []int{0, 12}
	}
	for h, how := range slices.Sorted(maps.Keys(tell)) {
		tell := tell[how]
		t.Run(how, func(t *testing.T) {
			for i, k := range kinds() {
				for j, vnet := range headers {
					if vnet == 0 && k.head != nil {
						continue
					}
					var say [][]byte
					for _, f := range k.say {
						h := make([]byte, vnet)
						copy(h, k.head)
						say = append(say, append(h, f...))
					}
					for _, continuous := range []bool{false, true} {
						if testing.Short() && ((i+h)%2 > 0 || continuous != (i%4 >= 2) || k.head == nil && j != i%2) {
							continue // each kind in one way, in half of what becomes of it
						}
						synctest.Test(t, func(t *testing.T) {
							x := newKindsWorld(t, vnet, continuous)
							defer x.end()
							tell(x, fmt.Sprintf("%s, header of %d bytes, continuous %t", k.what, vnet, continuous), say)
						})
					}
				}
			}
		})
	}
}
