package filter

import (
	"slices"

	"github.com/gocolo/lockstep/internal/packet"
)

// A queue has keys in the order in which they were pushed. The conversation of a key may
// be gone or changed by the time the key is popped; the caller of pop checks that.
type queue struct{ keys []packet.Key }

func (q *queue) push(k packet.Key) { q.keys = append(q.keys, k) }

// pop removes the oldest key and returns it.
func (q *queue) pop() (k packet.Key, ok bool) {
	if len(q.keys) == 0 {
		return k, false
	}
	k, q.keys = q.keys[0], q.keys[1:]
	return k, true
}

// tidy removes keys that are in the queue twice, and those for which means returns false,
// when the queue is much longer than most, the number of keys that can have a meaning.
func (q *queue) tidy(most int, means func(k packet.Key) bool) {
	if len(q.keys) <= 4*most+16 {
		return
	}
	seen := make(map[packet.Key]bool, most)
	q.keys = slices.DeleteFunc(q.keys, func(k packet.Key) bool {
		if seen[k] || !means(k) {
			return true
		}
		seen[k] = true
		return false
	})
	q.keys = slices.Clip(q.keys)
}

// room makes room for another conversation, and reports whether there is some.
// Connections that are over go first, then those whose handshake has not come to
// its end, the oldest first: with a flood of SYNs that is what most are.
func (r *Rewriter) room() bool {
	isEnded := func(k packet.Key) bool { c := r.conns[k]; return c != nil && c.closed }
	isHalf := func(k packet.Key) bool { c := r.conns[k]; return c != nil && !c.peerKnown }
	r.ended.tidy(r.cfg.MaxConns, isEnded)
	r.halves.tidy(r.cfg.MaxConns, isHalf)
	for len(r.conns) >= r.cfg.MaxConns {
		if k, ok := r.ended.pop(); ok {
			if isEnded(k) {
				r.remove(k, r.conns[k])
			}
		} else if k, ok := r.halves.pop(); ok {
			if isHalf(k) {
				r.remove(k, r.conns[k])
			}
		} else {
			return false
		}
	}
	return true
}

// roomForOpening makes room for another opening, in the place of the oldest one for which
// no packet waits.
func (r *Rewriter) roomForOpening() bool {
	r.asked.tidy(r.cfg.MaxConns, func(k packet.Key) bool { return r.opens[k] != nil })
	const tries = 16 // bounds the work that a flood can cause
	for range tries {
		if len(r.opens) < r.cfg.MaxConns {
			return true
		}
		k, ok := r.asked.pop()
		if !ok {
			break
		}
		switch o := r.opens[k]; {
		case o == nil:
		case o.early != nil:
			r.asked.push(k)
		default:
			r.withdraw(k, o)
		}
	}
	return len(r.opens) < r.cfg.MaxConns
}

func (r *Rewriter) remove(k packet.Key, c *conversation) {
	r.held -= len(c.early) + len(c.late)
	delete(r.conns, k)
	r.last = nil
	if r.ready == c {
		r.ready = nil
	}
}

func (r *Rewriter) withdraw(k packet.Key, o *opening) {
	r.held -= len(o.early)
	delete(r.opens, k)
}

// note ends the conversation c if both directions of the connection have ended.
func (r *Rewriter) note(k packet.Key, c *conversation) {
	if c.over() {
		r.end(k, c)
	}
}

// end notes that the connection of c has ended. Late packets of it are translated until
// its place is needed.
func (r *Rewriter) end(k packet.Key, c *conversation) {
	if !c.closed {
		c.closed = true
		r.ended.push(k)
	}
}

// hold keeps a packet of c that came too early, if it is the first such packet.
func (r *Rewriter) hold(c *conversation, frame []byte, vnetHdr int) {
	if c.early == nil {
		c.early = r.keep(frame, vnetHdr)
		c.earlySeq = r.pkt.TCP().Seq()
		return
	}
	r.stats.Dropped++
}

// holdOpening keeps a packet that answers a SYN|ACK which this guest has not sent yet.
func (r *Rewriter) holdOpening(k packet.Key, h packet.TCP, frame []byte, vnetHdr int) (deliver bool) {
	if o := r.opens[k]; o.early == nil {
		o.early, o.seq = r.keep(frame, vnetHdr), h.Seq()
	} else {
		r.stats.Dropped++
	}
	return false
}

// keep returns a copy of a packet, after a byte with the length of its virtio-net header,
// or nil if there is no room.
func (r *Rewriter) keep(frame []byte, vnetHdr int) []byte {
	n := 1 + len(frame)
	if n > maxEarly || r.held+n > maxAllEarly {
		r.stats.Dropped++
		return nil
	}
	r.held += n
	r.stats.Held++
	return append(append(make([]byte, 0, n), byte(vnetHdr)), frame...)
}

// deliver removes and returns the packet of c that came too early, if it can be translated
// now.
func (r *Rewriter) deliver(c *conversation) []byte {
	if c.early == nil || !c.peerKnown && c.earlySeq != c.next {
		return nil
	}
	v, frame := int(c.early[0]), c.early[1:]
	r.held -= len(c.early)
	c.early = nil
	r.earlyVNet = v
	if r.Inbound(frame, v) {
		return frame
	}
	return nil
}

// unfollowed removes the opening that h, a SYN|ACK of the guest, has answered, where the connection is
// one that the Edge translates. It returns the packet that waited for that answer, if there is one.
func (r *Rewriter) unfollowed(k packet.Key, h packet.TCP) (early []byte) {
	o := r.opens[k]
	if o == nil || h.Flags()&packet.ACK == 0 || !o.follows(h.Ack()) {
		return nil
	}
	r.withdraw(k, o)
	if o.early == nil || o.seq != h.Ack() {
		return nil
	}
	r.earlyVNet = int(o.early[0])
	return o.early[1:]
}
