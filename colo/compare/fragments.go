package compare

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// Each guest numbers the datagrams that it sends in fragments by itself, so the numbers are not
// compared. But the peer puts all fragments with one number together. If those of one datagram
// of the primary's guest could match fragments of several of the secondary's, the peer would get
// a datagram that the secondary's guest has never sent. So the fragments of a datagram match those
// of one other datagram only, in the order in which both guests have sent them: where fragments
// overlap, the order may decide which bytes the peer takes.

// maxDatagrams is how many datagrams in fragments a flow remembers. Guests send the fragments of
// one right after each other.
const maxDatagrams = 64

// A datagrams says which datagrams of the two guests have fragments that matched in this epoch.
type datagrams struct {
	at [maxDatagrams]struct{ primary, secondary uint32 } // their identifications
	n  int                                               // how many there were; the place of the next is n modulo maxDatagrams
}

// partner reports whether fragments of these datagrams may match, as far as others have. d may
// be nil.
func (d *datagrams) partner(primary, secondary uint32) (known, ok bool) {
	if d == nil {
		return false, true
	}
	for _, x := range d.at[:min(d.n, len(d.at))] {
		if x.primary == primary || x.secondary == secondary {
			return true, x.primary == primary && x.secondary == secondary
		}
	}
	return false, true
}

// identification returns the number of the datagram of which p is a fragment.
func (p *pkt) identification() uint32 {
	if p.Kind == packet.IP4 {
		return uint32(p.IPv4().ID())
	}
	return binary.BigEndian.Uint32(p.Packet.Frame[p.Ident:])
}

// joins reports whether p, of the primary's guest, and s match, which are equal. Fragments have to be
// the first of their datagrams that wait. It then remembers that these two datagrams belong together.
func (c *conn) joins(p, s *pkt) bool {
	if c.key.kind != kindFragment {
		return true
	}
	a, b := p.identification(), s.identification()
	known, ok := c.datagrams.partner(a, b)
	if !ok || !c.p.leads(p, a) || !c.s.leads(s, b) {
		return false
	}
	if !known {
		if c.datagrams == nil {
			c.datagrams = new(datagrams) // rare
		}
		d := c.datagrams
		x := &d.at[d.n%len(d.at)]
		x.primary, x.secondary = a, b
		d.n++
	}
	return true
}

// leads reports whether no fragment of the datagram with the number id waits in q before p.
func (q *queue) leads(p *pkt, id uint32) bool {
	for _, o := range q.all() {
		if o == p {
			break
		}
		if o.identification() == id {
			return false
		}
	}
	return true
}
