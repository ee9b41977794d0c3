package compare

import "github.com/gocolo/lockstep/internal/packet"

// A kind says how packets are compared. Packets of two kinds never share a queue.
type kind uint8

const (
	kindNone     kind = iota // not at all: they pass, or wait for a checkpoint
	kindMangled              // IP that contradicts itself: it waits for a checkpoint
	kindSegment              // whole TCP segments, as a stream
	kindDatagram             // whole packets of other protocols, one by one
	kindFragment             // fragments, one by one
	kindClaim                // ARP and neighbour discovery, by whose address they say is whose
)

// A connKey names what is compared with each other: a flow in one direction, and
// the kind of its packets.
type connKey struct {
	packet.Key
	kind kind
}

// A conn is a connection, or what comes nearest to one. What each packet needs is
// in front.
type conn struct {
	key      connKey
	hash     uint64      // of key
	plain    packet.Kind // IP4 or IP6: its segments may be plain; 0: they may not; see plain.go
	loner    side        // one side's guest only has sent anything; see ports.go
	apart    bool        // not compared at present; changes at a divergence and at a mark
	blind    bool        // nothing leaves before a checkpoint: a mark ends it
	diverged bool        // in this epoch: a mark ends it
	strikes  uint8       // epochs with a divergence, less those with enough that matched; see apart.go
	matched  uint16      // packets in this epoch
	age      uint32      // how many connections with these addresses were before this one
	used     instant     // of the last packet

	owed *pkt  // TCP: the newest acknowledgment that has not left whole; see ack.go
	p, s queue // waiting; TCP: in the order of the stream

	tcp stream

	claim   claim
	marked  int     // packets of an epoch that has ended and is not received
	until   instant // apart: when it is tried again
	crossed instant // since when datagrams of both sides have waited; zero: they do not

	newer, older *conn   // by the time at which they were put into the list
	placed       instant // then it was last used
}

// kindOf says how p is compared.
func (e *Engine) kindOf(p *pkt, k *connKey) kind {
	switch p.Kind {
	case packet.IP4, packet.IP6:
	case packet.ARP:
		if e.cfg.CompareARP && (p.Link.Bare() || e.cfg.CompareVLAN) && p.completes(packet.VNetOf(p.Data, p.VNetHdr)) && p.claimARP(k) {
			return kindClaim
		}
		return kindNone
	default:
		return kindNone
	}
	if !p.Link.Bare() && !e.cfg.CompareVLAN {
		return kindNone
	}
	switch {
	case p.Fragment:
		return kindFragment
	case p.segment.is && !finishes(packet.VNetOf(p.Data, p.VNetHdr), p.L4):
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

// conn returns the connection of p, a new one if it must be, nil if there are
// too many. k has been set as far as p's kind is compared by something else than
// its flow.
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
			// What is not looked at may begin a connection, so whatever seems to be
			// new in this epoch may not be.
			e.crowded = true
			return nil
		}
		if c = e.spare; c != nil {
			e.spare = c.older
			*c = conn{p: c.p, s: c.s}
		} else {
			c = new(conn)
		}
		c.key, c.hash, c.plain = *k, h, k.plain()
		e.conns.add(c)
		c.used = now
		c.blind, c.tcp.said.past = e.crowded, e.crowded
		e.front(c)
		e.enlist(c)
		if k.kind == kindSegment || k.kind == kindDatagram {
			e.newcomer(c)
		}
	}
	c.used = now
	e.lastConn = c
	return c
}

// evict forgets one of the connections that were idle longest, if one of them
// has nothing waiting. The list is not kept in order by each packet: who has been
// used since it was put there is put in front now.
func (e *Engine) evict() bool {
	busy := 0
	for range 4 * 16 {
		c := e.oldest
		switch {
		case c == nil || busy == 16:
			return false
		case c.used != c.placed:
		case c.idle():
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

// idle reports whether nothing waits. What is known of a connection may be
// forgotten then: until the secondary's guest has spoken again nothing leaves on
// it that a checkpoint does not cover.
func (c *conn) idle() bool {
	if c.p.len() > 0 || c.owed != nil || c.marked > 0 || c.blind {
		return false
	}
	if c.tcp.said.syn.is || c.tcp.said.past {
		return false // the guests speak of two connections, which must not be mixed up
	}
	for _, s := range c.s.all() {
		if !c.tcp.cover.tells(s) {
			return false
		}
	}
	return true
}

// forget takes an idle connection off.
func (e *Engine) forget(c *conn) {
	e.unlist(c)
	e.drop(&c.s)
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

// drop forgets the secondary's packets.
func (e *Engine) drop(q *queue) {
	for _, p := range q.all() {
		e.pool.put(p)
	}
	q.clear()
}

// hold returns a copy of p, to wait in a queue of c.
func (e *Engine) hold(c *conn, p *pkt) *pkt {
	q := e.pool.copy(p)
	q.owner, q.age = c, c.age
	return q
}
