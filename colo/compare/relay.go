package compare

import (
	"hash/maphash"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
)

// A guest may stop repeating what the peer lacks, and then its timer has to run out, which
// takes 200 ms at least: Linux takes a loss back when it hears that a repetition was
// needless, and does not always infer it again. With LowerAcks a repetition of either guest
// therefore leaves, although it would not otherwise, if the peer still lacks the bytes one
// and a half round trips after they left last, and has others that were sent later.
//
// Nothing new is said by that. The bytes have left before. So the secondary's guest has said
// them since its last roll-back, or a received checkpoint has given them to it, and it would
// repeat them if it had to go on alone. They are the same bytes as then: a hash is kept of
// each stretch that leaves while a flight is known. The packet acknowledges what the peer
// has been told, with the same window, and has the newest timestamp that has left. It has the
// headers of the primary's guest.

// A sent is a stretch of data that has left and that the peer has not acknowledged.
type sent struct {
	seq, end uint32
	hash     uint64  // of the data
	at       instant // when it left last
	relayed  bool    // that was in a packet of relay's
}

// How many stretches are kept of a connection, and of all.
const (
	maxSent    = 1 << 13
	maxAllSent = 1 << 16
	fewSent    = 64 // the memory for so many stays with a connection
)

// record notes that data of c leaves in f, where the segment is at l4 behind the virtio-net
// header. The data has the number seq, and a device may cut it. A repetition may begin or end
// where a segment of either guest did, and so the data is cut there into stretches.
func (e *Engine) record(c *conn, seq uint32, data []byte, f *Frame, l4 int, signed bool) {
	w := c.tcp.flight
	w.keepHead(f.Data[f.VNetHdr:], l4, signed)
	w.vnet = f.VNetHdr
	size := gsoSize(f)
	from, end := seq, seq+uint32(len(data))
	for i := len(w.parts) - 1; i >= 0 && after(w.parts[i].end, seq); i-- {
		r := &w.parts[i]
		if !after(end, r.seq) {
			continue
		}
		r.at, r.relayed = e.now, false
		if d := piece(seq, data, r); d != nil {
			r.hash = maphash.Bytes(e.seed, d) // with a checkpoint others may leave than before
		}
	}
	if n := len(w.parts); n > 0 && after(w.parts[n-1].end, from) {
		from = w.parts[n-1].end
	}
	said := c.s.all()
	for after(end, from) && len(w.parts) < maxSent && e.sents < maxAllSent {
		to := edge(end, seq, from, size)
		for len(said) > 0 && !after(said[0].end, from) {
			said = said[1:]
		}
		if len(said) > 0 {
			if s := said[0]; after(s.seq, from) {
				to = earlier(to, s.seq)
			} else {
				to = earlier(to, edge(s.end, s.seq, from, gsoSize(&s.Frame)))
			}
		}
		e.sents++
		w.parts = append(w.parts, sent{from, to, maphash.Bytes(e.seed, data[from-seq:to-seq]), e.now, false})
		from = to
	}
}

// edge returns the end of the piece that has the number from, in data from begin to end that
// is cut into pieces of a size, if that is not 0.
func edge(end, begin, from uint32, size int) uint32 {
	if size <= 0 {
		return end
	}
	n := uint32(size)
	return earlier(end, begin+((from-begin)/n+1)*n)
}

func earlier(a, b uint32) uint32 {
	if after(a, b) {
		return b
	}
	return a
}

// gsoSize returns how much data there is in each of the segments into which a device cuts f;
// 0: f is one segment.
func gsoSize(f *Frame) int {
	if h := packet.VNetOf(f.Data, f.VNetHdr); h != nil && h.GSOType() != packet.GSONone {
		return h.GSOSize()
	}
	return 0
}

// acknowledged forgets what the peer has acknowledged.
func (e *Engine) acknowledged(w *flight) {
	if w.news.IsZero() {
		return // it has acknowledged nothing that counts
	}
	n := 0
	for n < len(w.parts) && !after(w.parts[n].end, w.acked) {
		n++
	}
	e.sents -= n
	w.parts = w.parts[:copy(w.parts, w.parts[n:])]
	if m := cap(w.parts); m > fewSent && len(w.parts) <= m/4 {
		w.parts = append([]sent(nil), w.parts...) // what is kept for all is bounded by what is known of all
	}
}

// land forgets w, the flight of a connection that is over. w may be nil.
func (e *Engine) land(w *flight) {
	if w != nil {
		e.unkeep(w)
		e.sents -= len(w.parts)
	}
}

// patience returns how long after data has left it counts as lost if the peer has not got it,
// but other data that was sent later.
func (w *flight) patience() time.Duration { return w.rtt * 3 / 2 }

// piece returns what is in the place of r in data, which has the number seq, or nil if data
// does not have all of it. The two may be anywhere.
func piece(seq uint32, data []byte, r *sent) []byte {
	if at, n := r.seq-seq, r.end-r.seq; uint64(at)+uint64(n) <= uint64(len(data)) {
		return data[at:][:n]
	}
	return nil
}

// same reports whether s has all of r, with the bytes that have left.
func (e *Engine) same(s *pkt, r *sent) bool {
	d := piece(s.seq, s.data(), r)
	return d != nil && maphash.Bytes(e.seed, d) == r.hash
}

// takesBack reports whether the primary's guest says something else in p than has left and is
// not acknowledged, as far as that is known: p has all of a stretch, with other bytes. Where
// the peer acknowledges nothing that the engine hears of, it is not known which bytes it
// still looks at, and a guest may fill a packet that asks for a sign of life with any (RFC
// 9293 section 3.8.4).
func (e *Engine) takesBack(c *conn, p *pkt) bool {
	v, w := &c.tcp.cover, c.tcp.flight
	if w == nil || w.news.IsZero() || p.seq == p.end || p.flags&(packet.SYN|packet.RST) != 0 ||
		!v.agreed || v.ahead(p.seq) || p.seq == v.done {
		return false
	}
	for i := range w.parts {
		if r := &w.parts[i]; piece(p.seq, p.data(), r) != nil && !e.same(p, r) {
			return true
		}
	}
	return false
}

// relay takes s, in which a guest repeats what has left, and lets that part of it leave which
// the peer lacks. If the peer lacks it already, but has had too little time to get it, relay
// keeps s and looks again later.
func (e *Engine) relay(c *conn, s *pkt) {
	const odd = packet.SYN | packet.FIN | packet.RST | packet.URG
	t := &c.tcp
	v, l, w := &t.cover, &t.left, t.flight
	if !w.hears || w.rtt == 0 || s.VNetHdr != w.vnet || s.flags&(odd|packet.ACK) != packet.ACK || s.signed || c.blind || c.apart ||
		!t.covers(s) || !v.agreed || v.ahead(s.end) || !l.acks || s.ts > 0 && !l.tss || s.dack > 0 && !t.dataAcks.tells() || !s.suits(w.head) {
		return
	}
	from, to := s.seq, s.seq
	for i := range w.parts {
		r := &w.parts[i]
		if from == to && (after(s.seq, r.seq) || !after(r.end, w.acked) || w.sacks.has(r.seq, r.end)) {
			continue
		}
		if from != to && (r.seq != to || w.sacks.has(r.seq, r.end)) || !e.same(s, r) {
			break
		}
		if e.now.Sub(r.at) < w.patience() {
			if from == to && !after(r.seq, w.acked) {
				e.postpone(c, s, r.at.Add(w.patience()))
			}
			break
		}
		if !after(w.heard, r.end) {
			break
		}
		if from == to {
			from = r.seq
		}
		to = r.end
		if s.VNetHdr > 0 {
			break // a device would have to cut more than one
		}
	}
	if from == to {
		return
	}
	q := e.cut(c, s, s.dat+int(from-s.seq), s.dat+int(to-s.seq), from, s.flags&(packet.ACK|packet.PSH))
	q.putHead(w.head)
	q.id, q.at = e.ids, e.now
	d := edit{seq: q.seq, ack: l.ack, win: l.win, cut: q.nsck > 0}
	if t.dataAcks.news(q, 0) {
		d.less = q.dataAck() - t.dataAcks.left.n
	}
	if s.ts > 0 {
		// The primary's guest may have repeated it, and have heard of that too late.
		d.ts = w.latest(l.ts)
		l.ts = d.ts
	}
	q = e.apply(q, &d)
	w.leave(to, e.now)
	for i := range w.parts {
		if r := &w.parts[i]; !after(from, r.seq) && !after(r.end, to) {
			r.at, r.relayed = e.now, true
		}
	}
	e.release(q, &e.stats.Relayed)
}

// relays reports whether the data from one number to another has left for the other guest so
// lately that it may still be on its way.
func (w *flight) relays(from, to uint32, now instant) (all bool) {
	for i := range w.parts {
		if r := &w.parts[i]; after(r.end, from) && after(to, r.seq) {
			if !r.relayed || now.Sub(r.at) >= w.patience() {
				return false
			}
			all = true
		}
	}
	return all
}

// postpone keeps s, at which relay is to look again at the time due.
func (e *Engine) postpone(c *conn, s *pkt, due instant) {
	w := c.tcp.flight
	if w.kept != s {
		e.unkeep(w)
		w.kept = e.hold(c, s)
	}
	w.due = due
	e.await(c, due)
}

// unkeep gives up what w keeps. w may be nil.
func (e *Engine) unkeep(w *flight) {
	if w != nil && w.kept != nil {
		e.pool.put(w.kept)
		w.kept = nil
	}
}

// await has tickFlights look at c at the time due, or before.
func (e *Engine) await(c *conn, due instant) {
	if w := c.tcp.flight; !c.awaits || due.Before(w.next) {
		w.next = due
	}
	if !c.awaits {
		c.awaits = true
		e.flights = append(e.flights, c)
	}
	e.sooner(due)
}

// tickFlights lets those repetitions leave that have waited long enough for their turn, or
// that the peer turns out to need.
func (e *Engine) tickFlights() {
	wait := e.flights[:0]
	for _, c := range e.flights {
		w := c.tcp.flight
		if w == nil {
			c.awaits = false
			continue
		}
		if e.now.Before(w.next) {
			e.sooner(w.next)
			wait = append(wait, c)
			continue
		}
		e.hurry(c, func(q *pkt) bool { return e.now.Sub(q.at) >= w.rtt })
		if w.kept != nil && !e.now.Before(w.due) {
			if e.relay(c, w.kept); !e.now.Before(w.due) {
				e.unkeep(w) // relay has not postponed it again
			}
		}
		var next instant
		if w.kept != nil {
			next = w.due
		}
		for _, q := range c.p.all() {
			if due := q.at.Add(w.rtt); q.turn && !c.blind && !c.apart && (next.IsZero() || due.Before(next)) {
				next = due
			}
		}
		if next.IsZero() {
			c.awaits = false
			continue
		}
		w.next = next
		e.sooner(next)
		wait = append(wait, c)
	}
	clear(e.flights[len(wait):])
	e.flights = wait
}
