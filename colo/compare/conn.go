package compare

import "github.com/gocolo/lockstep/internal/packet"

// A kind says how packets are compared. Packets of two kinds never share a queue.
type kind uint8

const (
	kindNone     kind = iota // not compared: they pass, or wait for a checkpoint
	kindMangled              // IP whose lengths or headers contradict each other: it waits for a checkpoint
	kindSegment              // whole TCP segments, as a stream
	kindDatagram             // whole packets of other protocols, one by one
	kindFragment             // fragments, one by one
	kindClaim                // ARP and neighbour discovery, by the pair of addresses that they claim
)

// A connKey names one queue of packets that are compared with each other: a flow in one
// direction, and the kind of its packets.
type connKey struct {
	packet.Key
	kind kind
}

// A conn is the state of the engine for one connKey: for a TCP connection, a flow of
// datagrams, or a claim. The fields that each packet needs come first, so that it takes
// few lines of the processor's cache.
type conn struct {
	key      connKey
	plain    packet.Kind // IP4 or IP6: its segments may be plain; 0: they may not; see plain.go
	loner    side        // the side whose guest is the only one that has sent anything; see ports.go
	apart    bool        // set apart, and so not compared at present; changes at a divergence, at its first packet and at a mark; see setapart.go
	blind    bool        // its packets cannot be compared any more in this epoch: nothing leaves before a checkpoint; a mark ends it
	diverged bool        // it has diverged in this epoch; a mark ends it, and so do packets that match after all
	strikes  uint8       // epochs with a divergence, less those in which enough matched; see setapart.go
	matched  uint16      // packets that matched in this epoch
	age      uint32      // how many connections with these addresses came before this one
	used     instant     // when the last packet came

	owed *pkt  // TCP: the newest acknowledgment that has not left whole; a mark puts it to those that wait for its receipt; see ack.go
	p, s queue // packets that wait, of TCP in the order of the stream

	tcp stream

	hash   uint64 // the hash of key
	number int    // in the index
	awaits bool   // it is in the engine's list flights
	claim  claim

	datagrams *datagrams // of fragments: which datagrams have begun to match; nil: none have; a mark leaves those that are not over

	marked  int     // how many packets wait that belong to an epoch that has ended and is not received
	until   instant // when the flow is tried again, if it is set apart
	crossed instant // since when datagrams of both sides wait for their equals, or a loner for the other guest to begin it; zero: none do

	partial instant // since when a part of its lowest segment is covered, and no more of it; zero: none is; see release_part.go
	partOK  uint32  // the sequence number up to which it is covered

	newer, older *conn   // neighbours in the engine's list, in the order in which they were put there
	placed       instant // the value of used when it was put there
}

// kindOf returns how p is compared, and sets the part of k that does not follow from p's
// addresses.
func (e *Engine) kindOf(p *pkt, k *connKey) kind {
	deep := p.deep()
	switch p.Kind {
	case packet.IP4, packet.IP6:
	case packet.ARP:
		if e.cfg.CompareARP && !deep && (p.Link.Bare() || e.cfg.CompareVLAN) && p.completes(packet.VNetOf(p.Data, p.VNetHdr)) && p.claimARP(k) {
			return kindClaim
		}
		return kindNone
	default:
		return kindNone
	}
	if !p.Link.Bare() && !e.cfg.CompareVLAN || deep {
		return kindNone
	}
	switch {
	case p.Fragment:
		return kindFragment
	case p.L4OK && p.Routed: // it is not known to whom it goes
		return kindMangled
	case p.segment.is && !p.offloads(packet.VNetOf(p.Data, p.VNetHdr)):
		return kindMangled
	case p.segment.is:
		return kindSegment
	case p.L4OK:
		if e.cfg.CompareARP && p.Proto == packet.ProtoICMPv6 && p.completes(packet.VNetOf(p.Data, p.VNetHdr)) && p.claimND(k) {
			return kindClaim
		}
		return kindDatagram
	}
	switch p.Proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMP, packet.ProtoICMPv6:
		return kindMangled
	}
	return kindDatagram
}

// deep reports whether p has more VLAN tags than a connKey holds, so that the engine cannot
// tell in which network it is.
func (p *pkt) deep() bool { return int(p.Link.Tags) > len(p.Link.VLAN) }

// conn returns the connection of p: a new one if there is none yet, nil if there are too
// many. kindOf has set the fields of k that are not p's addresses and ports.
func (e *Engine) conn(p *pkt, k *connKey, now instant) *conn {
	if k.kind != kindClaim {
		p.Key(&k.Key)
	}
	if c := e.lastConn; c != nil && c.key.is(k) {
		c.used = now
		return c
	}
	h := e.conns.hash(k)
	c := e.conns.find(h, k)
	if c == nil {
		if e.conns.n >= e.cfg.MaxConns && !e.evict() {
			// A packet without a connection may be the first of one, so the next packets
			// of it would wrongly seem to begin it.
			e.crowded = true
			return nil
		}
		c = e.newConn(k, h, now)
		c.blind, c.tcp.said.past = e.crowded, e.crowded
		switch k.kind {
		case kindSegment, kindDatagram:
			e.newcomer(c)
			e.enlist(c)
		case kindClaim:
			e.enlist(c)
		}
	}
	c.used = now
	e.lastConn = c
	return c
}

// newConn adds a connection, for which there is room. The hash of its key is h.
func (e *Engine) newConn(k *connKey, h uint64, now instant) *conn {
	c := e.spare
	if c != nil {
		e.spare = c.older
		*c = conn{p: c.p, s: c.s, awaits: c.awaits}
	} else {
		c = new(conn)
	}
	c.key, c.hash, c.plain = *k, h, k.plain()
	e.conns.add(c)
	c.used = now
	e.front(c)
	return c
}

// evict forgets one of the connections that were idle longest, if one of the oldest has no
// packets waiting. A packet does not move its connection in the list; instead, a
// connection that turns out to have been used since it was put into the list is moved to
// the front now.
func (e *Engine) evict() bool {
	busy := 0
	for range 4 * 16 {
		c := e.oldest
		switch {
		case c == nil || busy == 16:
			return false
		case c.used != c.placed:
		case e.idle(c):
			e.forget(c)
			return true
		default:
			busy++
		}
		e.unlink(c)
		e.front(c)
	}
	return false
}

// idle reports whether no packet waits on c, so that c may be forgotten. After that
// nothing leaves on it that a checkpoint does not cover, until the secondary's guest has
// spoken again.
func (e *Engine) idle(c *conn) bool {
	if c.p.len() > 0 || c.owed != nil || c.marked > 0 || c.blind {
		return false
	}
	if c.datagrams.pending(e.now) {
		return false
	}
	if c.tcp.said.syns || c.tcp.said.past {
		return false // the guests are in two successive connections, which must not be mixed up
	}
	for _, s := range c.s.all() {
		if !c.tcp.cover.tells(s) {
			return false
		}
	}
	return true
}

// forget removes a connection that is idle.
func (e *Engine) forget(c *conn) {
	e.unlist(c)
	e.drop(&c.s)
	e.land(c.tcp.flight)
	if c.apart {
		e.aparts--
	}
	e.conns.remove(c)
	e.unlink(c)
	if e.lastConn == c {
		e.lastConn = nil
	}
	c.older, e.spare = e.spare, c
}

// front puts c in front of the list.
func (e *Engine) front(c *conn) {
	c.placed = c.used
	c.newer, c.older = nil, e.newest
	if e.newest != nil {
		e.newest.newer = c
	} else {
		e.oldest = c
	}
	e.newest = c
}

func (e *Engine) unlink(c *conn) {
	if c.newer != nil {
		c.newer.older = c.older
	} else {
		e.newest = c.older
	}
	if c.older != nil {
		c.older.newer = c.newer
	} else {
		e.oldest = c.newer
	}
}

// drop gives up the packets of the secondary's guest that wait in q.
func (e *Engine) drop(q *queue) {
	for _, p := range q.all() {
		e.pool.put(p)
	}
	q.clear()
}

// hold returns a copy of p that belongs to c and may wait in one of its queues.
func (e *Engine) hold(c *conn, p *pkt) *pkt {
	q := e.pool.copy(p)
	q.owner, q.age = c, c.age
	return q
}
