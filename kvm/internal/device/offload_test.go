package device

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/vmstate"
)

const allFeatures = 1<<32 - 1

// newOffloadRig has a card whose uplink takes headers of 12 bytes, and a driver that takes
// what it is offered of features.
func newOffloadRig(t testing.TB, features uint32) *netRig {
	b := newBoard(t)
	up := &uplink{room: make(chan struct{}, 1), sent: make(chan struct{}, 1)}
	nic := NewNet(up, 12, [6]byte{2, 3, 4, 5, 6, 7}, b.memory(), b.line, nil)
	r := &netRig{b, nic, up, newRing(b, nic, netReceive, 0x10000), newRing(b, nic, netTransmit, 0x20000)}
	r.rx.out(regFeatures, 4, features)
	return r
}

// vnet returns a header.
func vnet(flags, gso uint8, hdrLen, gsoSize, start, offset uint16) []byte {
	h := []byte{flags, gso}
	for _, v := range []uint16{hdrLen, gsoSize, start, offset} {
		h = binary.LittleEndian.AppendUint16(h, v)
	}
	return h
}

// tcpFrame returns a segment of n bytes of data, with a partial checksum, behind tags.
func tcpFrame(ip6 bool, tags, n int) (f []byte, l4 int) {
	f = append(f, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2)
	for range tags {
		f = append(f, 0x81, 0, 0, 7)
	}
	l3 := len(f) + 2
	if ip6 {
		f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, packet.ProtoTCP, 64)
		binary.BigEndian.PutUint16(f[l3+4:], uint16(20+12+n))
		f = append(f, bytes.Repeat([]byte{0xfd, 1}, 16)...)
	} else {
		f = append(f, 8, 0, 0x45, 0, 0, 0, 0xff, 0xfe, 0x40, 0, 64, packet.ProtoTCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2)
		binary.BigEndian.PutUint16(f[l3+2:], uint16(20+20+12+n))
		binary.BigEndian.PutUint16(f[l3+10:], packet.Checksum(f[l3:l3+20]))
	}
	l4 = len(f)
	f = append(f, 0x12, 0x34, 0, 80, 0xff, 0xff, 0xf0, 0, 0, 0, 0, 9, 8<<4, 0x10|tcpFIN|tcpPSH|tcpCWR, 1, 0, 0, 0, 0, 0,
		1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2)
	for i := range n {
		f = append(f, byte(i*i>>3))
	}
	var p packet.Packet
	p.Parse(f)
	p.TCP().SetChecksum(p.PseudoSum())
	return f, l4
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestOffloadsAreOfferedWhereTheUplinkTakesAHeader(t *testing.T) {
	if got := newNetRig(t).rx.in(regOffered, 4); got != netMAC|netStatus {
		t.Errorf("without a header %#x is offered", got)
	}
	r := newOffloadRig(t, allFeatures)
	if got := r.rx.in(regOffered, 4); got != netMAC|netStatus|netOffloads {
		t.Errorf("with a header %#x is offered", got)
	}
	if got := r.rx.in(regFeatures, 4); got != netMAC|netStatus|netOffloads {
		t.Errorf("%#x is taken", got)
	}
}

// transmit has the driver send a frame behind a header, and returns what left, nil if
// nothing did.
func (r *netRig) transmit(header, frame []byte) []byte {
	r.t.Helper()
	n := copy(r.mem[testData:], join(header, frame))
	r.tx.offer(0, part{testData, 3, false}, part{testData + 3, uint32(n - 3), false})
	before := len(r.up.frames)
	drain(r.nic.step)
	r.tx.want("sent", usedEntry{0, 0})
	switch len(r.up.frames) - before {
	case 0:
		return nil
	case 1:
		return r.up.frames[before]
	}
	r.t.Fatal(len(r.up.frames)-before, "frames left")
	return nil
}

func TestWhatADriverLeavesToOthersIsSaidToTheUplink(t *testing.T) {
	big, l4 := tcpFrame(false, 0, 20000)
	big6, l46 := tcpFrame(true, 1, 20000)
	l4s, l46s := uint16(l4), uint16(l46)
	partial := packet.VNetNeedsCsum | uint8(0)
	for _, c := range []struct {
		why      string
		features uint32
		header   []byte
		frame    []byte
		want     []byte // nil: it is dropped
	}{
		{"nothing", allFeatures, vnet(0, 0, 0, 0, 0, 0), big, vnet(0, 0, 0, 0, 0, 0)},
		{"what says nothing", allFeatures, vnet(packet.VNetDataValid|4|0x80, 0, 9, 9, 9, 9), big, vnet(0, 0, 0, 0, 0, 0)},
		{"a partial checksum", allFeatures, vnet(partial, 0, 77, 88, l4s, 16), big, vnet(partial, 0, 0, 0, l4s, 16)},
		{"in the last two bytes", allFeatures, vnet(partial, 0, 0, 0, 14, uint16(len(big)-16)), big, vnet(partial, 0, 0, 0, 14, uint16(len(big)-16))},
		{"beyond the end", allFeatures, vnet(partial, 0, 0, 0, 14, uint16(len(big)-15)), big, nil},
		{"far beyond the end", allFeatures, vnet(partial, 0, 0, 0, 0xffff, 0xffff), big, nil},
		{"in the addresses", allFeatures, vnet(partial, 0, 0, 0, 13, 16), big, nil},
		{"a checksum that is not negotiated", netGuestCsum | netHostTSO4, vnet(partial, 1, 54, 1448, l4s, 16), big, vnet(0, 0, 0, 0, 0, 0)},
		{"segments", allFeatures, vnet(partial, packet.GSOTCPv4, 0, 1448, l4s, 16), big, vnet(partial, packet.GSOTCPv4, l4s+32, 1448, l4s, 16)},
		{"segments over IPv6, tagged", allFeatures, vnet(partial, packet.GSOTCPv6, 1000, 8, l46s, 16), big6, vnet(partial, packet.GSOTCPv6, l46s+32, 8, l46s, 16)},
		{"of the other IP", allFeatures, vnet(partial, packet.GSOTCPv6, 54, 1448, l4s, 16), big, nil},
		{"of less than any", allFeatures, vnet(partial, packet.GSOTCPv4, 54, 7, l4s, 16), big, nil},
		{"without a checksum", allFeatures, vnet(0, packet.GSOTCPv4, 54, 1448, l4s, 16), big, nil},
		{"with another checksum", allFeatures, vnet(partial, packet.GSOTCPv4, 54, 1448, l4s, 6), big, nil},
		{"with marks", allFeatures, vnet(partial, packet.GSOTCPv4|packet.GSOECN, 54, 1448, l4s, 16), big, nil},
		{"datagrams", allFeatures, vnet(partial, packet.GSOUDPL4, 54, 1448, l4s, 16), big, nil},
		{"segments that are padded", allFeatures, vnet(partial, packet.GSOTCPv4, 54, 1448, l4s, 16), join(big, []byte{0}), nil},
		{"segments that are cut off", allFeatures, vnet(partial, packet.GSOTCPv4, 54, 1448, l4s, 16), big[:l4+25], nil},
		{"not negotiated", netCsum | netMerge | netHostTSO6, vnet(partial, packet.GSOTCPv4, 54, 1448, l4s, 16), big, nil},
		{"over IPv6 not negotiated", netCsum | netHostTSO4, vnet(partial, packet.GSOTCPv6, 54, 1448, l46s, 16), big6, nil},
		{"a checksum alone", netCsum, vnet(partial, 0, 0, 0, l46s, 16), big6, vnet(partial, 0, 0, 0, l46s, 16)},
	} {
		r := newOffloadRig(t, c.features)
		header := c.header
		if c.features&netMerge != 0 {
			header = join(header, []byte{0xaa, 0xbb}) // num_buffers means nothing to a device
		}
		got := r.transmit(header, c.frame)
		var want []byte
		if c.want != nil {
			want = join(c.want, []byte{0, 0}, c.frame)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: left % x, want % x", c.why, got[:min(12, len(got))], want[:min(12, len(want))])
		}
		if n := r.nic.Dropped(); (n == 1) != (want == nil) {
			t.Errorf("%s: %d dropped", c.why, n)
		}
	}
}

// A driver that takes less than the one before gets no frame that it does not take.
func TestAFrameForADriverThatHasGoneIsDropped(t *testing.T) {
	f, l4 := tcpFrame(false, 0, 3000)
	r := newOffloadRig(t, allFeatures)
	must(t, r.nic.Receive(r.gate, join(vnet(packet.VNetNeedsCsum, packet.GSOTCPv4, 0, 1448, uint16(l4), 16), []byte{0, 0}, f)))
	must(t, r.nic.Receive(r.gate, join(make([]byte, 12), frame(3, 60))))
	r.rx.out(regStatus, 1, 0)
	r.rx = newRing(r.board, r.nic, netReceive, 0x30000)
	r.buffers(0, 2, 8000)
	r.rx.kick()
	r.rx.want("the other frame", usedEntry{0, 70})
	if r.nic.Dropped() != 1 {
		t.Error(r.nic.Dropped(), "dropped")
	}
}

// testdata/net-v1.section is the section of a card of version 1, with a driver that has
// taken MAC, a frame delivered, and frames of 61 and 62 bytes that wait.
func TestACardOfVersion1IsLoadedAndGoesOnAsItWas(t *testing.T) {
	section, err := os.ReadFile("testdata/net-v1.section")
	must(t, err)
	for _, r := range []*netRig{newNetRig(t), newOffloadRig(t, allFeatures)} {
		must(t, load(r.nic, section))
		if got := r.rx.in(regOffered, 4); got != netMAC|netStatus {
			t.Errorf("%#x is offered now", got)
		}
		r.rx.out(regFeatures, 4, allFeatures)
		if got := r.rx.in(regFeatures, 4); got != netMAC|netStatus {
			t.Errorf("%#x can be taken now", got)
		}
		r.rx.avail, r.rx.seen = 1, 1
		r.room(2, 1514)
		r.room(4, 1514)
		r.watch(r.nic.Kick)
		r.rx.want("what waited", usedEntry{2, netHeader + 61}, usedEntry{4, netHeader + 62})
		for i, head := range []uint16{2, 4} {
			if got := r.received(head, netHeader+61+uint32(i)); !bytes.Equal(got, frame(1+i, 61+i)) {
				t.Errorf("frame %d is %x", i, got)
			}
		}
		// From here on it is one of version 2.
		twin := newOffloadRig(t, 0)
		must(t, load(twin.nic, stream(t, r.nic)))
		if got := twin.rx.in(regOffered, 4); got != netMAC|netStatus {
			t.Errorf("the twin offers %#x", got)
		}
	}
	other := newOffloadRig(t, 0)
	for i := range section { // none of it is taken for something else
		cut := bytes.Clone(section[:i])
		if load(other.nic, cut) == nil {
			t.Errorf("%d bytes of it are taken", i)
		}
	}
	short := bytes.Clone(section)
	binary.BigEndian.PutUint16(short[0x3e:], 62) // the first frame's length
	if err := load(newNetRig(t).nic, short); !errors.Is(err, vmstate.ErrValue) {
		t.Error("frames that do not add up:", err)
	}
}

func TestOffloadsOfAGuestAreTakenByAHostThatHasThem(t *testing.T) {
	f, l4 := tcpFrame(false, 0, 3000)
	r := newOffloadRig(t, allFeatures)
	must(t, r.nic.Receive(r.gate, join(vnet(packet.VNetNeedsCsum, packet.GSOTCPv4, 0, 1448, uint16(l4), 16), []byte{0, 0}, f)))
	saved := stream(t, r.nic)
	twin := newOffloadRig(t, 0)
	must(t, load(twin.nic, saved))
	if got := twin.rx.in(regFeatures, 4); got != netMAC|netStatus|netOffloads {
		t.Errorf("the twin's driver has taken %#x", got)
	}
	if !bytes.Equal(stream(t, twin.nic), saved) {
		t.Error("the twin's state is another")
	}
	if err := load(newNetRig(t).nic, saved); !errors.Is(err, vmstate.ErrValue) {
		t.Error("a host without headers takes it:", err)
	}
	// A header in the stream is as good as one from the network.
	at := bytes.Index(saved, f) - vnetLen
	for i, b := range map[int]byte{1: packet.GSOUDPL4, 5: 0xff, 7: 0xff, 0: 0xff, 9: 0xff} {
		bad := bytes.Clone(saved)
		bad[at+i] = b
		if i == 5 {
			bad[at+4], bad[at+5] = 7, 0
		}
		if err := load(newOffloadRig(t, 0).nic, bad); !errors.Is(err, vmstate.ErrValue) {
			t.Errorf("byte %d of a header is %#x: %v", i, b, err)
		}
	}
}

func TestOffloadsAllocateNothing(t *testing.T) {
	f, l4 := tcpFrame(false, 0, 20000)
	header := vnet(packet.VNetNeedsCsum, packet.GSOTCPv4, 0, 1448, uint16(l4), 16)
	given := join(header, []byte{0, 0}, f)
	for name, features := range map[string]uint32{"whole": allFeatures, "in segments": 0} {
		r := newOffloadRig(t, features)
		r.nic.mem.mark = func(uint64, uint64) {}
		r.nic.sending.init(quietUplink{}, 12)
		if n := testing.AllocsPerRun(100, func() {
			for range 16 {
				r.rx.desc(0, part{testData, 8000, true}, 0, 0)
				r.rx.push(0)
			}
			if err := r.nic.Receive(r.gate, given); err != nil || r.nic.waiting.first() != nil {
				t.Fatal(err)
			}
			r.nic.queues[netReceive].last = r.rx.avail
		}); n > 0 {
			t.Errorf("receive %s: %v allocations", name, n)
		}
		copy(r.mem[testData:], given)
		if n := testing.AllocsPerRun(100, func() {
			r.tx.desc(0, part{testData, uint32(len(given)), false}, 0, 0)
			r.tx.push(0)
			for r.nic.step() {
			}
		}); n > 0 {
			t.Errorf("send %s: %v allocations", name, n)
		}
	}
}

// Whatever a guest and a network say of a frame, what leaves is what it says, and what
// arrives is what the driver takes.
func FuzzOffload(f *testing.F) {
	for _, ip6 := range []bool{false, true} {
		big, l4 := tcpFrame(ip6, 1, 500)
		kind := uint8(packet.GSOTCPv4)
		if ip6 {
			kind = packet.GSOTCPv6
		}
		h := vnet(packet.VNetNeedsCsum, kind, 0, 100, uint16(l4), 16)
		f.Add(uint32(allFeatures), join(h, []byte{0, 0}, big), uint8(200))
		f.Add(uint32(0), join(h, big), uint8(7))
		f.Add(uint32(netCsum|netGuestCsum), join(vnet(packet.VNetNeedsCsum, 0, 0, 0, 14, 0), big), uint8(64))
	}
	f.Fuzz(func(t *testing.T, features uint32, b []byte, buffer uint8) {
		if len(b) > 16<<10 {
			return
		}
		r := newOffloadRig(t, features)
		features = r.nic.features
		k := r.nic.headerLen()
		copy(r.mem[testData:], b)
		r.tx.offer(0, part{testData, uint32(len(b)), false})
		drain(r.nic.step)
		r.tx.want("sent", usedEntry{0, 0})
		r.compose()
		written := len(r.up.frames)
		r.tx.offer(0, part{testData, uint32(len(b)), false})
		drain(r.nic.step)
		r.tx.want("composed", usedEntry{0, 0})
		if len(r.up.frames) != 2*written || written > 0 && !bytes.Equal(r.up.frames[0], r.up.frames[1]) {
			t.Fatalf("written % x, composed % x", r.up.frames[:written], r.up.frames[written:])
		}
		for _, up := range r.up.frames {
			h, frame := packet.VNet(up[:12]), up[12:]
			was := [12]byte(h)
			if !honest(h, frame) || [12]byte(h) != was {
				t.Fatalf("% x left with a frame of %d bytes", was, len(frame))
			}
			if !bytes.Equal(frame, b[k:]) {
				t.Fatal("another frame left")
			}
			if h.Flags() != 0 && features&netCsum == 0 || h.GSOType() == packet.GSOTCPv4 && features&netHostTSO4 == 0 || h.GSOType() == packet.GSOTCPv6 && features&netHostTSO6 == 0 {
				t.Fatalf("% x left with features %#x", was, features)
			}
		}
		const at = 0x40000
		size := uint64(buffer) + 1
		for i := range uint64(QueueSize) {
			r.rx.offer(uint16(i), part{at + i*size, uint32(size), true})
		}
		r.watch(func() {
			if err := r.nic.Receive(r.gate, b); err != nil && !errors.Is(err, ErrFrame) {
				t.Fatal(err)
			}
		})
		used := r.rx.used()
		for len(used) > 0 {
			var got []byte
			n := 1
			for i := 0; i < n; i++ {
				if i == len(used) {
					t.Fatal("a frame without its end")
				}
				got = append(got, r.mem[at+uint64(used[i].head)*size:][:used[i].n]...)
				if i == 0 && k == netMergeHeader && len(got) >= k {
					n = int(binary.LittleEndian.Uint16(got[10:]))
				} else if i == 0 && k == netMergeHeader {
					n = len(used) // its header is in several: there is one frame then, or more of no interest
				}
			}
			if used = used[n:]; size < 12 {
				return
			}
			h, frame := packet.VNet(got[:k]), got[k:]
			was := [10]byte(h)
			if !honest(h[:10], frame) || [10]byte(h) != was || !takesWhole(features, h) || h.Flags() != 0 && features&netGuestCsum == 0 {
				t.Fatalf("% x arrived with features %#x", was, features)
			}
		}
	})
}
