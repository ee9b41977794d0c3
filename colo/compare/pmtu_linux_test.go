package compare_test

import (
	"encoding/binary"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/gocolo/lockstep/internal/netns"
	"github.com/gocolo/lockstep/internal/packet"
)

// A narrow is a router on the way to the client: it drops what is longer than the path takes, and says so
// to the guest (RFC 1191, RFC 8201).
type narrow struct {
	mtu  atomic.Int64 // of the path, in bytes; 0: any
	told atomic.Int64 // how often it has said so
}

// on puts n on the link l to the client. What n says goes over the link up to the guest.
func (n *narrow) on(up, l *link) {
	out := l.out
	l.out = func(f []byte) {
		mtu := int(n.mtu.Load())
		var p packet.Packet
		if p.Parse(f); mtu == 0 || !p.IsTCP() || len(f)-packet.EthernetLen <= mtu {
			out(f)
			return
		}
		n.told.Add(1)
		up.WritePacket(tooBig(f, mtu))
	}
}

// tooBig is what a router answers to a frame which is longer than mtu.
func tooBig(f []byte, mtu int) []byte {
	var p packet.Packet
	p.Parse(f)
	eth := slices.Concat(f[6:12], f[:6], f[12:14])
	quoted := f[packet.EthernetLen:][:p.L4-packet.EthernetLen+64]
	if p.Kind == packet.IP6 {
		m := binary.BigEndian.AppendUint32([]byte{2, 0, 0, 0}, uint32(mtu))
		m = append(m, quoted...)
		h := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(m)))
		h = append(h, packet.ProtoICMPv6, 64)
		h = append(append(h, f[38:54]...), f[22:38]...)
		pseudo := append(slices.Clone(h[8:]), 0, 0, byte(len(m)>>8), byte(len(m)), 0, 0, 0, packet.ProtoICMPv6)
		binary.BigEndian.PutUint16(m[2:], packet.Checksum(append(pseudo, m...)))
		return slices.Concat(eth, h, m)
	}
	m := append([]byte{3, 4, 0, 0, 0, 0}, byte(mtu>>8), byte(mtu))
	m = append(m, quoted...)
	binary.BigEndian.PutUint16(m[2:], packet.Checksum(m))
	h := make([]byte, packet.IPv4Len)
	h[0], h[8], h[9] = 0x45, 64, packet.ProtoICMP
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(m)))
	copy(h[12:], f[30:34])
	copy(h[16:], f[26:30])
	binary.BigEndian.PutUint16(h[10:], packet.Checksum(h))
	return slices.Concat(eth, h, m)
}

// The path to the client takes less and less, before the primary is lost and after. Both guests are told so
// of a segment that the primary's has sent, and send shorter ones: no checkpoint is needed, and the survivor,
// whose own numbers are others, hears of it too.
func TestBothGuestsFindThePathMTU(t *testing.T) {
	for name, addr := range map[string]string{"IPv4": netns.Guest4, "IPv6": netns.Guest6} {
		t.Run(name, func(t *testing.T) {
			n := new(narrow)
			var up *link
			w := newWorldOver(t, func(l *link) {
				l.loss, l.dup, l.late = 0, 0, 0
				if up == nil {
					up = l
				} else {
					n.on(up, l)
				}
			})
			startServers(t, w)
			c := w.dial(t, "tcp", at(addr))
			download(t, c, 1<<20, 0, func() {})
			n.mtu.Store(1400)
			download(t, c, 1<<20, 1, func() {})
			upload(t, c, 1<<20, 2, func() {})
			first := n.told.Load()
			download(t, c, 1<<20, 3, func() { w.cutOff(t) })
			n.mtu.Store(1300)
			download(t, c, 1<<20, 4, func() {})
			if again := n.told.Load(); first == 0 || again == first {
				t.Errorf("the guests were told %d times, and %d after the failover", first, again-first)
			}
			upload(t, c, 1<<20, 5, func() {})
			download(t, w.dial(t, "tcp", at(addr)), 1<<20, 6, func() {})
			w.check(t)
		})
	}
}
