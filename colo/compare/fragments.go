package compare

import (
	"bytes"
	"encoding/binary"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
)

// Each guest numbers the datagrams that it sends in fragments by itself, so the numbers are not
// compared. But the peer puts all fragments with one number together. If those of one datagram
// of the primary's guest could match fragments of several of the secondary's, the peer would get
// a datagram that the secondary's guest has never sent. So the fragments of a datagram match those
// of one other datagram only, in the order in which both guests have sent them: where fragments
// overlap, the order may decide which bytes the peer takes.
//
// A datagram whose other fragments have left before a mark goes on with the number that it has: the
// secondary's guest becomes the primary's, and gives it the same one.
//
// A datagram that one guest sends whole and the other in fragments matches nothing, since the peer would put
// together what nobody has sent so. The guests have learnt different things of the way to the peer, and
// a checkpoint ends that, so it is asked for at once.

// maxDatagrams is how many datagrams in fragments a flow remembers until all of their fragments have
// matched. Guests send the fragments of one right after each other. If there are more, the fragments of
// the next one wait for the checkpoint.
const maxDatagrams = 64

// reassembly is how long the rest of a datagram is waited for. After that no peer puts it
// together any more (RFC 8200 section 4.5).
const reassembly = time.Minute

// A datagrams says which datagrams of the two guests have fragments that have matched, or that a
// checkpoint covers.
type datagrams struct {
	at     []partners // at most maxDatagrams
	next   int        // where room for another one is looked for first
	unsure bool       // at the last mark there was no room for one that had begun: until the next mark none begins
}

// A partners is a datagram of the primary's guest, and the one of the secondary's whose fragments match
// its fragments.
type partners struct {
	primary, secondary uint32 // their identifications
	began              instant
	places             [4][2]uint32 // what has left or is covered of them: from, to, in bytes
	n                  uint8        // how many places there are; of more of them it is not known when they are all
	end                uint32       // the length of both, if their last fragments are among those; 0: they are not
}

// add notes a fragment.
func (x *partners) add(from, to uint32, last bool) {
	if last {
		x.end = to
	}
	for i := uint8(0); i < x.n; {
		at := x.places[i]
		if to < at[0] || at[1] < from {
			i++
			continue
		}
		from, to = min(from, at[0]), max(to, at[1])
		x.n--
		x.places[i] = x.places[x.n]
		i = 0
	}
	if int(x.n) == len(x.places) {
		return
	}
	x.places[x.n] = [2]uint32{from, to}
	x.n++
}

// over reports whether all of the datagram has left or is covered, or nobody waits for the rest.
func (x *partners) over(now instant) bool {
	return x.n == 1 && x.end > 0 && x.places[0] == [2]uint32{0, x.end} || now.Sub(x.began) > reassembly
}

// find returns what is known of these datagrams, of which each has at most one partner. ok says that
// their fragments may match. d may be nil.
func (d *datagrams) find(primary, secondary uint32) (x *partners, ok bool) {
	if d == nil {
		return nil, true
	}
	for i := range d.at {
		if x = &d.at[i]; x.primary == primary || x.secondary == secondary {
			return x, x.primary == primary && x.secondary == secondary
		}
	}
	return nil, !d.unsure
}

// begin returns room for another one, in the place of one that is over if there are many, or nil.
func (d *datagrams) begin(primary, secondary uint32, now instant) *partners {
	fresh := partners{primary: primary, secondary: secondary, began: now}
	if len(d.at) < maxDatagrams {
		d.at = append(d.at, fresh)
		return &d.at[len(d.at)-1]
	}
	for range d.at {
		x := &d.at[d.next]
		d.next = (d.next + 1) % len(d.at)
		if x.over(now) {
			*x = fresh
			return x
		}
	}
	return nil
}

// pending reports whether the rest of a datagram is still waited for. d may be nil.
func (d *datagrams) pending(now instant) bool {
	if d == nil {
		return false
	}
	for i := range d.at {
		if !d.at[i].over(now) {
			return true
		}
	}
	return false
}

// identification returns the number of the datagram of which p is a fragment.
func (p *pkt) identification() uint32 {
	if p.Kind == packet.IP4 {
		return uint32(p.IPv4().ID())
	}
	return binary.BigEndian.Uint32(p.Packet.Frame[p.Ident:])
}

// place returns where p, a fragment, is in its datagram, in bytes, and whether it is the last one.
func (p *pkt) place() (from, to uint32, last bool) {
	if p.Kind == packet.IP4 {
		from, last = uint32(p.IPv4().FragmentOffset()), !p.IPv4().MoreFragments()
		return from, from + uint32(p.End-p.L4), last
	}
	v := binary.BigEndian.Uint16(p.Packet.Frame[p.Ident-2:])
	from = uint32(v &^ 7)
	return from, from + uint32(p.End-p.Ident-4), v&1 == 0
}

// joins reports whether p, of the primary's guest, and s match, which are equal. Fragments have to be
// the first of their datagrams that wait. It then remembers that these two datagrams belong together.
func (c *conn) joins(p, s *pkt, now instant) bool {
	if c.key.kind != kindFragment {
		return true
	}
	a, b := p.identification(), s.identification()
	x, ok := c.datagrams.find(a, b)
	if !ok || !c.p.leads(p, a) || !c.s.leads(s, b) {
		return false
	}
	if x == nil {
		if c.datagrams == nil {
			c.datagrams = new(datagrams) // rare
		}
		if x = c.datagrams.begin(a, b, now); x == nil {
			return false
		}
	}
	if x.over(now) {
		*x = partners{primary: a, secondary: b, began: now} // the next with these numbers
	}
	x.add(p.place())
	return true
}

// narrow is called at a mark, before the packets that wait on c are moved. The secondary's guest that is heard
// after it is the primary's as it is now, and its datagrams have the same numbers.
func (d *datagrams) narrow(c *conn, now instant) *datagrams {
	if d == nil {
		d = new(datagrams)
	}
	n := 0
	for _, x := range d.at {
		if !x.over(now) {
			x.secondary = x.primary
			d.at[n] = x
			n++
		}
	}
	d.at, d.next, d.unsure = d.at[:n], 0, false
	for _, p := range c.p.all() {
		id := p.identification()
		x, _ := d.find(id, id)
		if x == nil {
			x = d.begin(id, id, now)
		}
		if d.unsure = x == nil; d.unsure {
			break
		}
		x.add(p.place())
	}
	if !d.pending(now) {
		return nil
	}
	return d
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

// torn is called when p, of which c is the flow, has come to wait and equals no packet of the other guest. It
// asks for a checkpoint if that guest has sent the same datagram otherwise: one of them whole, the
// other in fragments. The first fragment tells.
func (e *Engine) torn(c *conn, p *pkt) {
	k := &e.rest
	switch {
	case c.key.kind == kindFragment:
		e.pieced = true
		if k.kind = kindDatagram; !p.WholeKey(&k.Key) {
			return
		}
	case c.key.kind == kindDatagram && e.pieced:
		k.Key, k.kind = c.key.Key, kindFragment
		k.Ports = 0
	default:
		return
	}
	other := e.conns.find(e.conns.hash(k), k)
	if other == nil || c.blind || c.apart || other.blind || other.apart {
		return
	}
	waits := &other.p
	if e.speaks == primary {
		waits = &other.s
	}
	for _, q := range waits.all() {
		whole, first := p, q
		if p.Fragment {
			whole, first = q, p
		}
		if first.First && begins(whole, first) {
			e.diverge(c, ReasonPacket)
			return
		}
	}
}

// begins reports whether first, the first fragment of a datagram, is how whole begins. A checksum of UDP may
// not be computed yet in one of them.
func begins(whole, first *pkt) bool {
	a, b := whole.Payload(), first.Payload()
	if len(b) >= len(a) {
		return false
	}
	a = a[:len(b)]
	if whole.Proto == packet.ProtoUDP && len(b) >= packet.UDPLen {
		return bytes.Equal(a[:packet.UDPChecksumAt], b[:packet.UDPChecksumAt]) && bytes.Equal(a[packet.UDPLen:], b[packet.UDPLen:])
	}
	return bytes.Equal(a, b)
}
