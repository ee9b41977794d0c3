package device

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/gocolo/lockstep/internal/packet"
)

// buffers offers count buffers of n bytes, at heads from 0 on and addresses apart.
func (r *netRig) buffers(from, count int, n uint32) {
	for i := from; i < from+count; i++ {
		r.rx.offer(uint16(i), part{testData + uint64(i)*uint64(n), n, true})
	}
}

func TestAFrameTakesAsManyBuffersAsItNeeds(t *testing.T) {
	big, l4 := tcpFrame(false, 0, 10000)
	header := vnet(packet.VNetNeedsCsum, packet.GSOTCPv4, 0, 1448, uint16(l4), 16)
	r := newOffloadRig(t, allFeatures)
	r.buffers(0, 4, 2048)
	must(t, r.nic.Receive(r.gate, join(header, []byte{0, 0}, big)))
	r.rx.want("with too few buffers")
	if level, _ := r.raised(); level {
		t.Error("an interrupt, too few buffers")
	}
	r.buffers(4, 2, 2048)
	// The driver never sees a part of a frame: the index moves once.
	var seen []uint16
	mark := r.nic.mem.mark
	r.nic.mem.mark = func(gpa, n uint64) {
		mark(gpa, n)
		if i := binary.LittleEndian.Uint16(r.mem[0x10000+usedAt+2:]); len(seen) == 0 || seen[len(seen)-1] != i {
			seen = append(seen, i)
		}
	}
	r.watch(func() { r.rx.kick() })
	rest := uint32(12 + len(big) - 4*2048)
	r.rx.want("then", usedEntry{0, 2048}, usedEntry{1, 2048}, usedEntry{2, 2048}, usedEntry{3, 2048}, usedEntry{4, rest})
	if len(seen) != 2 || seen[0] != 0 || seen[1] != 5 {
		t.Error("the driver saw", seen)
	}
	got := r.mem[testData:][:12+len(big)]
	binary.LittleEndian.PutUint16(header[2:], uint16(l4+32))
	if !bytes.Equal(got, join(header, []byte{5, 0}, big)) {
		t.Errorf("% x", got[:12])
	}
	// The next frame begins in the first buffer that this one has not used, and takes one.
	must(t, r.nic.Receive(r.gate, join(make([]byte, 12), frame(1, 60))))
	r.rx.want("the next", usedEntry{5, 72})
	if got := r.mem[testData+5*2048:][:72]; !bytes.Equal(got, join(make([]byte, 10), []byte{1, 0}, frame(1, 60))) {
		t.Errorf("% x", got)
	}
}

func TestAFrameThatNoRingHasRoomForIsDropped(t *testing.T) {
	r := newOffloadRig(t, netMerge|netGuestCsum)
	r.buffers(0, QueueSize, 32)
	must(t, r.nic.Receive(r.gate, join(make([]byte, 12), frame(1, 32*QueueSize-11))))
	if r.rx.want("too long"); r.nic.Dropped() != 1 {
		t.Error(r.nic.Dropped(), "dropped")
	}
	must(t, r.nic.Receive(r.gate, join(make([]byte, 12), frame(1, 32*QueueSize-12))))
	if got := r.rx.used(); len(got) != QueueSize {
		t.Error("the longest takes", len(got), "buffers")
	}
	// Where the driver merges no buffers, a frame must fit into one.
	r = newOffloadRig(t, netGuestCsum)
	r.buffers(0, 2, 100)
	must(t, r.nic.Receive(r.gate, join(make([]byte, 12), frame(1, 91))))
	must(t, r.nic.Receive(r.gate, join(make([]byte, 12), frame(2, 90))))
	if r.rx.want("the one that fits", usedEntry{0, 100}); r.nic.Dropped() != 1 {
		t.Error(r.nic.Dropped(), "dropped")
	}
}

func TestBuffersThatShareDescriptorsBreakTheRing(t *testing.T) {
	r := newOffloadRig(t, netMerge)
	for i := range 200 { // a chain of 200, from each of its descriptors
		r.rx.desc(uint16(i), part{testData, 1, true}, descNext, uint16(i+1))
	}
	r.rx.desc(200, part{testData, 1, true}, 0, 0)
	for i := range 200 {
		r.rx.push(uint16(i))
	}
	r.untouched("shared", func() {
		must(t, r.nic.Receive(r.gate, join(make([]byte, 12), frame(1, 2000))))
	})
	if !r.nic.queues[netReceive].broken {
		t.Error("the queue is not broken")
	}
}

// What the driver does not take is done by the card.
func TestAGuestGetsAsMuchWorkAsItTakes(t *testing.T) {
	for _, c := range []struct {
		why      string
		features uint32
		ip6      bool
		tags     int
		whole    bool
		partial  bool
	}{
		{"everything", allFeatures, false, 0, true, true},
		{"IPv6, tagged", allFeatures, true, 2, true, true},
		{"no segmentation", netGuestCsum, false, 0, false, false},
		{"the other IP's", netGuestCsum | netGuestTSO6, false, 1, false, false},
		{"the other IP's", netGuestCsum | netGuestTSO4, true, 0, false, false},
		{"no checksum", netGuestTSO4 | netMerge, false, 0, false, false},
		{"nothing", 0, true, 0, false, false},
		{"only its own sending", netCsum | netHostTSO4 | netHostTSO6, false, 0, false, false},
	} {
		const size, data = 1000, 8500
		big, l4 := tcpFrame(c.ip6, c.tags, data)
		kind := uint8(packet.GSOTCPv4)
		if c.ip6 {
			kind = packet.GSOTCPv6
		}
		r := newOffloadRig(t, c.features)
		k := r.nic.headerLen()
		r.buffers(0, 40, 10000)
		header := vnet(packet.VNetNeedsCsum, kind, uint16(l4+32), size, uint16(l4), 16)
		given := join(header, []byte{0, 0}, big)
		copied := bytes.Clone(given)
		r.watch(func() { must(t, r.nic.Receive(r.gate, given)) })
		if !bytes.Equal(given, copied) {
			t.Error(c.why, "- the caller's frame was changed")
		}
		got := r.rx.used()
		if c.whole {
			if len(got) != 1 || !bytes.Equal(r.mem[testData:][:got[0].n], join(header, []byte{1, 0}[:k-10], big)) {
				t.Errorf("%s: %v", c.why, got)
			}
			continue
		}
		if len(got) != (data+size-1)/size {
			t.Errorf("%s: %d segments", c.why, len(got))
			continue
		}
		var stream []byte
		for i, u := range got {
			b := r.mem[testData+int(u.head)*10000:][:u.n]
			want := make([]byte, k)
			if k > 10 {
				want[10] = 1
			}
			if !bytes.Equal(b[:k], want) {
				t.Errorf("%s: segment %d has the header % x", c.why, i, b[:k])
			}
			var p packet.Packet
			p.Parse(b[k:])
			if !p.IsTCP() || p.End != len(b)-k || p.L4 != l4 || p.Tags != c.tags {
				t.Fatalf("%s: segment %d is no segment: %+v", c.why, i, p)
			}
			h := p.TCP()
			flags := uint8(0x10)
			if i == 0 {
				flags |= tcpCWR
			}
			if i == len(got)-1 {
				flags |= tcpFIN | tcpPSH
			}
			if h.Checksum() != p.TCPChecksum() || h.Flags() != flags || h.Seq() != 0xfffff000+uint32(i*size) || h.HeaderLen() != 32 {
				t.Errorf("%s: segment %d: checksum %#x, want %#x, flags %#x, sequence %#x", c.why, i, h.Checksum(), p.TCPChecksum(), h.Flags(), h.Seq())
			}
			if !c.ip6 {
				ip := p.Frame[p.L3:p.L4]
				if packet.Checksum(ip) != 0 || binary.BigEndian.Uint16(ip[4:]) != 0xfffe+uint16(i) {
					t.Errorf("%s: segment %d: IP header % x", c.why, i, ip)
				}
			}
			stream = append(stream, h.Payload()...)
		}
		if !bytes.Equal(stream, big[l4+32:]) {
			t.Error(c.why, "- other data arrived")
		}
	}
}

func TestAPartialChecksumIsCompletedForAGuestThatDoesNotTakeIt(t *testing.T) {
	f, l4 := tcpFrame(true, 0, 333)
	for _, features := range []uint32{0, netGuestCsum} {
		r := newOffloadRig(t, features)
		r.buffers(0, 2, 2000)
		header := vnet(packet.VNetNeedsCsum, 0, 0, 0, uint16(l4), 16)
		must(t, r.nic.Receive(r.gate, join(header, []byte{0, 0}, f)))
		valid := vnet(packet.VNetDataValid, 0, 0, 0, 0, 0)
		must(t, r.nic.Receive(r.gate, join(valid, []byte{0, 0}, f)))
		got := r.mem[testData:][:10+len(f)]
		want := join(header, f)
		wantValid := valid
		if features == 0 {
			want = join(make([]byte, 10), f)
			wantValid = make([]byte, 10)
			var p packet.Packet
			p.Parse(want[10:])
			p.TCP().SetChecksum(p.TCPChecksum())
		}
		if !bytes.Equal(got, want) {
			t.Errorf("features %#x: % x", features, got[:80])
		}
		if got := r.mem[testData+2000:][:10]; !bytes.Equal(got, wantValid) {
			t.Errorf("features %#x, verified: % x", features, got)
		}
	}
}

func TestAFrameWhoseHeaderDoesNotFitItIsRefused(t *testing.T) {
	f, l4 := tcpFrame(false, 0, 3000)
	r := newOffloadRig(t, allFeatures)
	r.buffers(0, 4, 4000)
	for why, header := range map[string][]byte{
		"a checksum beyond the end": vnet(packet.VNetNeedsCsum, 0, 0, 0, 0xffff, 16),
		"datagrams":                 vnet(packet.VNetNeedsCsum, packet.GSOUDPL4, 0, 1000, uint16(l4), 16),
		"segments of nothing":       vnet(packet.VNetNeedsCsum, packet.GSOTCPv4, 0, 0, uint16(l4), 16),
		"an unknown kind":           vnet(0, 0x7f, 0, 0, 0, 0),
	} {
		before := r.nic.Dropped()
		if err := r.nic.Receive(r.gate, join(header, []byte{0, 0}, f)); !errors.Is(err, ErrFrame) || r.nic.Dropped() != before+1 {
			t.Errorf("%s: %v, %d dropped", why, err, r.nic.Dropped()-before)
		}
	}
	for _, n := range []int{0, 11, 12 + MinFrame - 1, 12 + MaxBigFrame + 1} {
		if err := r.nic.Receive(r.gate, make([]byte, n)); !errors.Is(err, ErrFrame) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	r.rx.want("none of them")
	// Marks of congestion are not offered: the first segment has the sender's answer.
	must(t, r.nic.Receive(r.gate, join(vnet(packet.VNetNeedsCsum, packet.GSOTCPv4|packet.GSOECN, 0, 1500, uint16(l4), 16), []byte{0, 0}, f)))
	r.rx.want("in segments", usedEntry{0, uint32(12 + l4 + 32 + 1500)}, usedEntry{1, uint32(12 + l4 + 32 + 1500)})
}

func TestSegmentsAreKeptTogetherOrDropped(t *testing.T) {
	f, l4 := tcpFrame(false, 0, 60000)
	header := join(vnet(packet.VNetNeedsCsum, packet.GSOTCPv4, 0, leastGSO, uint16(l4), 16), []byte{0, 0})
	r := newOffloadRig(t, 0)
	n := 0
	for ; r.nic.Receive(r.gate, join(header, f)) == nil; n++ {
	}
	each := 60000/leastGSO*(frameOver+l4+32) + 60000
	if want := netQueued / each; n != want || r.nic.Dropped() != 1 {
		t.Errorf("%d frames wait in segments, want %d; %d dropped", n, want, r.nic.Dropped())
	}
	if used := int(r.nic.waiting.end); used != n*each {
		t.Errorf("%d bytes wait, want %d", used, n*each)
	}
}

// There is room for the segments of a frame to the byte, or for none of them.
func TestSegmentsHaveRoomToTheByte(t *testing.T) {
	f, l4 := tcpFrame(false, 0, 100)
	const size, segments = 10, 10
	h := vnet(packet.VNetNeedsCsum, packet.GSOTCPv4, 0, size, uint16(l4), 16)
	need := segments*(frameOver+l4+32) + 100
	for _, room := range []int{0, need - segments*frameOver, need - 1, need, need + 1} {
		q := newFrames(room)
		if got, want := q.cut(h, f), room >= need; got != want {
			t.Errorf("%d bytes for segments of %d: taken %v", room, need, got)
		} else if want && int(q.end) != need || !want && q.first() != nil {
			t.Errorf("%d bytes for segments of %d: %d are used", room, need, q.end)
		}
	}
}

// A header that says of a checksum both that it was verified and that it is partial says the latter
// to the guest, which is not to believe it.
func TestAPartialChecksumIsNoVerifiedOne(t *testing.T) {
	f, l4 := tcpFrame(false, 0, 100)
	r := newOffloadRig(t, netGuestCsum)
	r.buffers(0, 1, 2000)
	must(t, r.nic.Receive(r.gate, join(vnet(packet.VNetNeedsCsum|packet.VNetDataValid, 0, 0, 0, uint16(l4), 16), []byte{0, 0}, f)))
	if flags := r.mem[testData]; flags != packet.VNetNeedsCsum {
		t.Errorf("the flags are %#x, want %#x", flags, packet.VNetNeedsCsum)
	}
}
