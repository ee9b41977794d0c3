package compare

import (
	"encoding/binary"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
)

// A flight has what is known of the data of a connection that is on its way to the peer.
// It is kept from the first repetition on, until nothing was repeated between two marks.
type flight struct {
	used bool // something was repeated since the last mark

	// A guest that hears of an older timestamp than that of its first repetition takes what
	// it repeated for not lost (RFC 3522); see floor.
	stamp    uint32 // the newest timestamp of a repetition of the primary's guest, whether that left or not
	stamps   bool   // stamp is known
	twin     uint32 // the newest timestamp of a repetition of the secondary's guest
	twins    bool   // twin is known
	recovers bool   // the primary's guest has repeated something, and the peer does not have all that had been sent by then
	began    uint32 // the timestamp of the first repetition since recovers
	until    uint32 // the end of what had been sent by then
	withheld bool   // since then a repetition has waited for its turn, or not left

	acked uint32  // the peer's greatest acknowledgment number
	moved instant // about when acked was moved last; zero: never
	heard uint32  // the peer has acknowledged nothing from here on, selectively either
	sacks ranges  // the blocks of the peer's last acknowledgment
	hears bool    // the peer acknowledges selectively, and acked and heard are known
	news  instant // about when heard was moved last; zero: never

	kept  *pkt          // a repetition that may turn out to be needed; nil: none
	due   instant       // when that is looked at
	next  instant       // when tickFlights is to look at the connection, if that awaits it
	head  []byte        // the headers that the primary's guest has lately put in front of its data; see relayed_headers.go
	vnet  int           // the length of the virtio-net headers that leave
	parts []sent        // what is on its way, in the order of the stream; see relay.go
	sent  uint32        // the greatest end of the data that has left, or waited when the flight began
	timed uint32        // the end of some data that is on its way
	since instant       // when that left; zero: none is timed
	rtt   time.Duration // how long the peer has lately taken to acknowledge data after it left; 0: not known
}

// longestFlight bounds a measured time; a longer one counts as this. No stack repeats data
// by its clock alone within a time that follows from it: Linux waits for 200 ms at least.
const longestFlight = 100 * time.Millisecond

// hear takes an acknowledgment of the peer. The guest has sent data up to end. hear
// ignores an acknowledgment of more, as every stack does (RFC 9293 section 3.10.7.4):
// anybody who knows the addresses can send one. now may be the time of an earlier packet.
func (w *flight) hear(h packet.TCP, end uint32, now instant) {
	top := h.Ack()
	if after(top, end) || !w.news.IsZero() && after(w.acked, top) {
		return // nothing can be known from it, or it was overtaken
	}
	if after(top, w.acked) {
		w.moved = now
	}
	w.acked, w.sacks = top, ranges{}
	if !after(w.until, top) {
		w.recovers, w.withheld = false, false
	}
	for kind, data, rest, ok := packet.NextOption(h.Options()); ok; kind, data, rest, ok = packet.NextOption(rest) {
		if kind != packet.OptSACK {
			continue
		}
		for w.hears = true; len(data) >= 8; data = data[8:] {
			from, to := binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:])
			if after(to, end) {
				continue
			}
			w.sacks.add(from, to)
			if after(to, top) {
				top = to
			}
		}
	}
	if !w.news.IsZero() && !after(top, w.heard) {
		return
	}
	w.heard, w.news = top, now
	if !w.since.IsZero() && !after(w.timed, top) {
		took := min(now.Sub(w.since), longestFlight)
		w.rtt, w.since = max(took, w.rtt-(w.rtt-took)/4), 0
	}
}

// lacks reports whether the peer has last said that it lacks data before seq. Nothing is
// known of that where w is nil.
func (w *flight) lacks(seq uint32) bool {
	return w != nil && !w.news.IsZero() && after(seq, w.acked)
}

// latest returns the timestamp that the guests get as the echo of a segment that leaves now
// and to which its guest gave the timestamp was: was itself, or the timestamp of the newest
// repetition, if that is newer.
func (w *flight) latest(was uint32) uint32 {
	if w.stamps && after(w.stamp, was) {
		return w.stamp
	}
	return was
}

// floor returns the echo that the guests are to get in place of echo, which the peer sent.
// While the primary's guest recovers from a loss that is a newer one: a packet that the peer
// echoes then may come from either guest, or may have been sent before the first repetition
// and have left after it. The timestamps of the secondary's guest count only up to the newest
// one that has left, which l has, since the clock of that guest may be ahead.
func (w *flight) floor(echo uint32, l *left) uint32 {
	if w == nil || !w.recovers || !w.withheld && after(w.began, echo) {
		return echo
	}
	n := w.latest(echo)
	switch {
	case !w.twins, !l.tss, !after(w.twin, n):
		return n
	case !after(w.twin, l.ts):
		return w.twin
	case after(l.ts, n):
		return l.ts
	}
	return n
}

// leave notes that data up to end leaves.
func (w *flight) leave(end uint32, now instant) {
	switch {
	case after(end, w.sent):
		if w.sent = end; w.since.IsZero() {
			w.timed, w.since = end, now
		}
	case !after(w.timed, end):
		w.since = 0 // nobody could tell which of the two was acknowledged
	}
}

// tooSoon reports whether the data from one number to another, which has left, is repeated
// although the peer has just acknowledged it, or could not yet say anything from which its
// loss follows. A guest that has heard nothing for a while, and repeats data because of
// that, is never too soon: it waits for twice the time of the way (RFC 8985 section 7.2).
func (w *flight) tooSoon(from, to uint32, now instant) bool {
	if !w.hears || now.Sub(w.news) >= w.rtt*3/2 {
		return false
	}
	return !after(w.heard, from) || !after(to, w.acked) || w.sacks.has(from, to)
}

// overhear notes what a packet of the peer acknowledges, on a connection on which something
// was repeated.
func (e *Engine) overhear(f Frame) {
	if !e.repeats || e.strict != nil || !f.fits() || len(f.Data) > maxFrame {
		return
	}
	p := &e.inbound
	if p.Parse(f.Data[f.VNetHdr:]); !p.IsTCP() || p.Routed || p.TCP().Flags()&(packet.SYN|packet.RST|packet.ACK) != packet.ACK {
		return
	}
	k := &e.key // which lies there already
	p.Key(&k.Key)
	k.Key, k.kind = k.Reverse(), kindSegment
	if c := e.conns.find(e.conns.hash(k), k); c != nil && c.tcp.flight != nil {
		if p.Damaged(packet.VNetOf(f.Data, f.VNetHdr)) {
			return // the guests drop it
		}
		w := c.tcp.flight
		w.hear(p.TCP(), c.tcp.told.end, e.now)
		e.acknowledged(w)
	}
}
