package filter

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// A guest that takes data with a client's SYN (TCP Fast Open, RFC 7413) may answer that before the
// client has answered its SYN|ACK, which tells the number that the client knows. What the guest
// says in between is kept, in its order, until then.

// maxLate bounds the packets that are kept for one connection, in bytes: an initial window (RFC 6928),
// however it is cut, with the headers.
const maxLate = 32 << 10

// lateHead is the length, in bytes, of what comes before each packet in conversation.late: the
// length of the virtio-net header, and that of the packet.
const lateHead = 1 + 4

// takesData reports whether h, a SYN|ACK of the guest, acknowledges data that came with a SYN.
func (r *Rewriter) takesData(k packet.Key, h packet.TCP) bool {
	if !r.cfg.KeepLate || h.Flags()&packet.ACK == 0 || len(r.opens) == 0 {
		return false
	}
	o := r.opens[k]
	if o == nil {
		return false
	}
	for _, s := range o.all() {
		if s.end != s.seq+1 && s.end == h.Ack() {
			return true
		}
	}
	return false
}

// keepLate keeps a packet of the guest that cannot be translated yet. If there is no room it is
// dropped, and the guest will send it again.
func (r *Rewriter) keepLate(c *conversation, frame []byte, vnetHdr int) {
	r.kept = true
	n := lateHead + len(frame)
	if len(c.late)+n > maxLate || r.held+n > maxAllEarly {
		r.stats.Dropped++
		return
	}
	r.held += n
	r.stats.Held++
	c.late = append(c.late, byte(vnetHdr))
	c.late = binary.BigEndian.AppendUint32(c.late, uint32(len(frame)))
	c.late = append(c.late, frame...)
}

// Kept reports whether the packet that Outbound or OutboundCopy was given last is kept by the
// Rewriter, so that it must not be sent. See KeepLate of [RewriterConfig].
func (r *Rewriter) Kept() bool { return r.kept }

// Late returns the next packet of the guest that was kept and can be translated since the last
// Inbound or Outbound. It is translated, and is to be sent. It is nil if there is none. It is valid
// until the next call of a method of the Rewriter.
func (r *Rewriter) Late() []byte {
	c := r.ready
	if c == nil {
		return nil
	}
	n := int(binary.BigEndian.Uint32(c.late[1:]))
	r.lateVNet = int(c.late[0])
	frame := c.late[lateHead : lateHead+n : lateHead+n]
	c.late = c.late[lateHead+n:]
	r.held -= lateHead + n
	if len(c.late) == 0 {
		c.late, r.ready = nil, nil
	}
	var k packet.Key
	r.pkt.ParseVNet(frame, r.lateVNet)
	r.pkt.Key(&k)
	c.heard(r.pkt.TCP())
	r.note(k, c)
	r.spares = false
	return r.outward(c.translation(), frame, r.lateVNet)
}
