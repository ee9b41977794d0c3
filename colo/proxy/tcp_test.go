package proxy_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/internal/packet"
)

const push = packet.ACK | packet.PSH

// segment builds a TCP segment from the client or to it.
func segment(toGuest bool, seq, ack uint32, flags uint8, data string) []byte {
	client, server := []byte{10, 0, 0, 2}, []byte{10, 0, 0, 1}
	ports := uint32(80<<16 | 40000)
	src, dst := server, client
	if toGuest {
		src, dst, ports = client, server, 40000<<16|80
	}
	b := make([]byte, packet.EthernetLen+packet.IPv4Len+packet.TCPLen, 128)
	binary.BigEndian.PutUint16(b[12:], packet.TypeIPv4)
	ip := b[packet.EthernetLen:]
	ip[0], ip[8], ip[9] = 0x45, 64, packet.ProtoTCP
	binary.BigEndian.PutUint16(ip[2:], uint16(packet.IPv4Len+packet.TCPLen+len(data)))
	copy(ip[12:], src)
	copy(ip[16:], dst)
	h := ip[packet.IPv4Len:]
	binary.BigEndian.PutUint32(h, ports)
	binary.BigEndian.PutUint32(h[4:], seq)
	binary.BigEndian.PutUint32(h[8:], ack)
	h[12], h[13] = 5<<4, flags
	b = append(b, data...)
	var p packet.Packet
	p.Parse(b)
	p.TCP().SetChecksum(p.TCPChecksum())
	return b
}

// A recorder is a network, or a guest's NIC, that keeps packets whole.
type recorder struct {
	mu  sync.Mutex
	got [][]byte
}

func (r *recorder) take(p []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, bytes.Clone(p))
	return nil
}

// want compares what came since the last time.
func (r *recorder) want(t *testing.T, why string, want ...[]byte) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.EqualFunc(r.got, want, bytes.Equal) {
		t.Errorf("%s: got\n%x\nwant\n%x", why, r.got, want)
	}
	r.got = nil
}

type recordedWire struct {
	*wire
	*recorder
}

func (w recordedWire) WritePacket(p []byte) error { return w.take(p) }

// A connection is opened between two checkpoints, so that the guests have
// different numbers for it. The client, who knows the primary's, must not notice
// when that host dies.
func TestAConnectionGoesOnWithTheNumbersThatTheClientKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pguest, sguest := new(recorder), new(recorder)
		w := newWorld(t, func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) {
			p.Deliver, s.Deliver = pguest.take, sguest.take
		})
		pnet, snet := recordedWire{newWire(), new(recorder)}, recordedWire{newWire(), new(recorder)}
		defer w.end()
		// In the place of those that the world has, which know no TCP.
		w.cancel()
		w.pw.Close()
		w.sw.Close()
		w.group.Wait()
		w.ctx, w.cancel = t.Context(), func() { pnet.Close(); snet.Close(); w.pconn.Close() }
		w.group.Go(func() { w.p.Run(w.ctx, pnet) })
		w.group.Go(func() { w.s.Run(w.ctx, snet) })
		w.connect()
		w.checkpoint()

		const client, pISN, sISN = 500, 1000, 9000
		syn := segment(true, client, 0, packet.SYN, "")
		pnet.in <- syn
		pguest.want(t, "SYN", syn)
		sguest.want(t, "SYN", syn)
		synack := segment(false, pISN, client+1, packet.SYN|packet.ACK, "")
		w.must(w.p.WritePacket(synack))
		pnet.want(t, "held until the other guest answers too")
		w.must(w.s.WritePacket(segment(false, sISN, client+1, packet.SYN|packet.ACK, "")))
		pnet.want(t, "the primary's number is the one that the client sees", synack)
		ask := segment(true, client+1, pISN+1, push, "ask")
		pnet.in <- ask
		pguest.want(t, "", ask)
		sguest.want(t, "translated", segment(true, client+1, sISN+1, push, "ask"))
		w.must(w.s.WritePacket(segment(false, sISN+1, client+4, push, "answer")))
		answer := segment(false, pISN+1, client+4, push, "answer")
		w.must(w.p.WritePacket(answer))
		pnet.want(t, "equal in the client's numbers", answer)

		pnet.Close()
		w.pconn.Close()
		w.must(w.s.Pause(w.ctx))
		w.must(w.s.Failover())
		w.must(w.s.Resume(w.ctx))
		snet.want(t, "all since the checkpoint, which the client may have",
			segment(false, sISN, client+1, packet.SYN|packet.ACK, ""), answer)
		snet.in <- segment(true, client+4, pISN+7, push, "more")
		sguest.want(t, "still translated", segment(true, client+4, sISN+7, push, "more"))
		w.must(w.s.WritePacket(segment(false, sISN+7, client+8, push, "on")))
		snet.want(t, "both ways", segment(false, pISN+7, client+8, push, "on"))
	})
}

func TestAPacketOfTheSecondarysTakesNoNewMemory(t *testing.T) {
	g := &guest{t: t}
	s := proxy.NewSecondary(proxy.SecondaryConfig{VM: g, Deliver: g.deliver})
	w := datagram("word")
	if err := s.Commit(0); err != nil {
		t.Fatal(err)
	}
	for range 1000 { // the memory that it takes in the end
		if err := s.WritePacket(w); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Commit(1); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(500, func() {
		if err := s.WritePacket(w); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
