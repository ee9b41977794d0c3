package compare

import "github.com/gocolo/lockstep/internal/packet"

// A segment may come with a virtio-net header that contradicts it. It is not compared, and
// waits for the checkpoint by itself. But the guest that sends it has said what is in it, and
// once a checkpoint has that, both guests go on from there. A SYN begins a connection, and
// what comes after it must not be taken for more of the one before it. So nothing leaves on
// that connection any more before the checkpoint.

// opens reports whether p is a segment with a SYN.
func (p *pkt) opens() bool { return p.segment.is && p.flags&packet.SYN != 0 }

// obscures is called for such a segment of the primary's guest.
func (e *Engine) obscures(p *pkt, k *connKey) {
	k.kind = kindSegment
	if !p.opens() {
		p.Key(&k.Key)
		if c := e.conns.find(e.conns.hash(k), k); c != nil {
			c.tcp.told.note(p)
		}
		return
	}
	c := e.conn(p, k, e.now)
	if c == nil {
		return // what comes after it has no connection either
	}
	if t := &c.tcp; !t.told.open || t.told.isn != p.seq {
		e.reopen(c, p)
		t.told.note(p)
	}
	c.blind = true
	e.diverge(c, ReasonFlags)
}

// obscured is called for such a SYN of the secondary's guest.
func (e *Engine) obscured(p *pkt, k *connKey) {
	k.kind = kindSegment
	p.Key(&k.Key)
	c := e.conns.find(e.conns.hash(k), k)
	if c == nil {
		return // whatever it says before the primary's guest has begun the connection too does not count
	}
	e.missed(c, p)
	e.diverge(c, ReasonFlags)
}

// missed is called for a SYN of the secondary's guest that the comparison does not have: it is
// not looked into, or there is no room for it. What that guest says after it is of another
// connection, of which nothing is known, and counts for none until a receipt or another SYN.
func (e *Engine) missed(c *conn, p *pkt) {
	e.drop(&c.s)
	c.blind = true
	if t := &c.tcp; !t.said.open || t.said.isn != p.seq {
		e.forgets(c)
	}
}

// forgets is called when the secondary's guest has begun another connection, and what it says on that
// does not count.
func (e *Engine) forgets(c *conn) {
	e.drop(&c.s)
	t := &c.tcp
	t.said, t.cover, t.urgent, t.refusals = said{past: true}, cover{}, nil, nil
	t.dataAcks.reset()
}

// pieces takes note of a fragment. Fragments are compared one by one, and where the data in them
// begins and ends is not looked at. But what comes after a SYN in fragments is of another
// connection.
func (e *Engine) pieces(p *pkt) {
	k := connKey{kind: kindSegment}
	if !p.FirstKey(&k.Key) {
		return
	}
	c := e.conns.find(e.conns.hash(&k), &k)
	if c == nil {
		return
	}
	opens := !p.L4OK || p.TCP().Flags()&packet.SYN != 0 // or nobody can tell from this fragment
	if opens {
		if l := &c.tcp.left; e.speaks == primary {
			ts, tss := l.ts, l.tss
			e.reopen(c, p)
			l.ts, l.tss = ts, tss // the peer may take the SYN for none, and goes on with the connection before it
		} else {
			e.forgets(c)
		}
		c.blind = true
		e.diverge(c, ReasonFlags)
	}
	c.tcp.told.pieces = c.tcp.told.pieces || e.speaks == primary
}
