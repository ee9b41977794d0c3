package filter

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// On a connection that was open at the last checkpoint there is nothing to translate, but the clock
// of the secondary's guest is behind that of the primary's, by as long as the checkpoint took. A
// client echoes what the primary's guest has sent, and so times that the secondary's guest has not
// come to; see past of life. So the latest timestamp of each such connection is kept, from the
// guest's first segment behind the checkpoint on.

// ticks notes the timestamp of h, a segment of the guest on a connection that is not followed.
func (r *Rewriter) ticks(k packet.Key, h packet.TCP) {
	if h.Flags()&packet.SYN != 0 {
		delete(r.clocks, k) // another connection has a clock of its own
	}
	ts := timestamps(h)
	if ts == nil || h.Flags()&packet.RST != 0 {
		return
	}
	v := binary.BigEndian.Uint32(ts)
	was, ok := r.clocks[k]
	if ok && int32(v-was) <= 0 {
		return
	}
	if !ok && len(r.clocks) >= r.cfg.MaxConns {
		for any := range r.clocks {
			delete(r.clocks, any)
			break
		}
	}
	r.clocks[k] = v
}

// lowers lowers the echo of the segment that has been parsed, which is for the guest on a connection
// that is not followed, if it is of a time that the guest has not sent.
func (r *Rewriter) lowers(k packet.Key, frame []byte, vnetHdr int) {
	stamp, ok := r.clocks[k]
	h := r.pkt.TCP()
	if !ok || h.Flags()&(packet.SYN|packet.RST) != 0 {
		return
	}
	was := headSum(h)
	if l := (life{stamp: stamp, stamped: true}); l.past(h) {
		r.translated(frame, vnetHdr, was)
	}
}
