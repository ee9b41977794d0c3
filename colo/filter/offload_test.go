package filter_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// offloaded turns a segment into the frame of a guest that leaves the cutting and
// the checksum to its device, behind a virtio-net header of n bytes.
func offloaded(frame []byte, n int) []byte {
	var p packet.Packet
	p.Parse(frame)
	h := make([]byte, n)
	h[0], h[1] = packet.VNetNeedsCsum, packet.GSOTCPv4
	if p.Kind == packet.IP6 {
		h[1] = packet.GSOTCPv6
	}
	binary.LittleEndian.PutUint16(h[2:], uint16(p.L4+p.TCP().HeaderLen()))
	binary.LittleEndian.PutUint16(h[4:], 1448)
	binary.LittleEndian.PutUint16(h[6:], uint16(p.L4))
	binary.LittleEndian.PutUint16(h[8:], packet.TCPChecksumAt)
	p.TCP().SetChecksum(p.PseudoSum())
	return append(h, frame...)
}

// complete fills in the checksum that was left to the device.
func complete(t *testing.T, frame []byte, n int) []byte {
	t.Helper()
	h := packet.VNetOf(frame, n)
	f := frame[n:]
	covered := f[h.CsumStart():]
	binary.BigEndian.PutUint16(covered[h.CsumOffset():], packet.Checksum(covered))
	return f
}

func TestPartialChecksumsAreRightOnceTheyAreCompleted(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, vnet := range []int{10, 12, 20, 24} {
			for _, size := range []int{0, 1, 1448, 60000} {
				r := established(v6)
				data := make([]byte, size)
				for i := range data {
					data[i] = byte(i * 7)
				}
				in := offloaded(segment(true, v6, 501, 1001, packet.ACK, unhex(t, "0101050a 000007d0 00000bb8"), data), vnet)
				head := bytes.Clone(in[:vnet])
				if !r.Inbound(in, vnet) || !bytes.Equal(in[:vnet], head) {
					t.Fatal("held, or its header was changed")
				}
				if got := numbers(t, complete(t, in, vnet)); got != "501/9001" {
					t.Errorf("in: %s", got)
				}
				out := offloaded(segment(false, v6, 9001, 501, packet.ACK, nil, data), vnet)
				r.Outbound(out, vnet)
				if got := numbers(t, complete(t, out, vnet)); got != "1001/501" {
					t.Errorf("out: %s", got)
				}
			}
		}
	}
}

func TestAChecksumThatIsCompleteStaysRightWhateverTheHeaderSaysOfOthers(t *testing.T) {
	r := established(false)
	f := offloaded(segment(false, false, 9001, 501, packet.ACK, nil, []byte("abc")), 12)
	withSum(f[12:])
	binary.LittleEndian.PutUint16(f[6:], 50) // the partial one is somewhere else, in what a tunnel carries, say
	r.Outbound(f, 12)
	if got := numbers(t, f[12:]); got != "1001/501" {
		t.Errorf("%s", got)
	}
	f = append(make([]byte, 12), segment(false, false, 9001, 501, packet.ACK, nil, []byte("abc"))...)
	f[0] = packet.VNetDataValid
	r.Outbound(f, 12)
	if got := numbers(t, f[12:]); got != "1001/501" {
		t.Errorf("%s", got)
	}
}

func TestFramesOfEveryHeaderLengthAreCarriedUncut(t *testing.T) {
	for _, n := range []int{0, 10, 12, 20, 24} {
		f := segment(false, false, 1, 1, packet.ACK, nil, make([]byte, 65000))
		if n > 0 {
			f = offloaded(f, n)
		}
		var wire bytes.Buffer
		c := filter.NewConn(&wire, filter.ConnConfig{VNetHdr: true, VNetHdrLen: n})
		if err := c.WritePacket(f); err != nil {
			t.Fatal(err)
		}
		got, err := c.ReadPacket()
		if err != nil || !bytes.Equal(got, f) || c.VNetHdrLen() != n {
			t.Errorf("header of %d bytes: %v, one of %d", n, err, c.VNetHdrLen())
		}
	}
}

func TestAPacketThatIsHeldKeepsItsHeader(t *testing.T) {
	r := filter.NewRewriter(filter.RewriterConfig{})
	r.Inbound(append(make([]byte, 12), segment(true, false, 500, 0, packet.SYN, nil, nil)...), 12)
	f := offloaded(segment(true, false, 501, 1001, packet.ACK, nil, []byte("abc")), 12)
	if r.Inbound(f, 12) {
		t.Fatal("delivered")
	}
	early := r.Outbound(append(make([]byte, 12), segment(false, false, 9000, 501, synAck, nil, nil)...), 12)
	if len(early) != len(f) || !bytes.Equal(early[:12], f[:12]) {
		t.Fatalf("%x", early)
	}
	if got := numbers(t, complete(t, early, 12)); got != "501/9001" {
		t.Errorf("%s", got)
	}
}
