package filter

import (
	"sync"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
)

// An Edge keeps connections alive through a second failover. A secondary that has
// taken over has a guest whose numbers the clients do not know, on the connections
// that its [Rewriter] translates. When such a guest becomes the primary of a new
// pair, both guests have these numbers: there is nothing for the new secondary's
// Rewriter to do, but every packet between the guest and the network still has to
// be translated, on the primary, and on the secondary once it takes over.
//
// So an Edge stands between the network and all the rest of a proxy, on both
// sides. It begins with what [Edge.Adopt] takes from a Rewriter, and each
// checkpoint carries it: register it as a device of the guest on both sides,
// behind the Buffer's section, so that a connection which the guest opens anew at
// the very moment is in one of the two. The secondary's Rewriter is configured
// with the Edge, and tells it of the connections that its own guest opens anew
// between two checkpoints.
//
// A connection whose handshake is not complete when the Edge begins with it is translated
// from the client's answer on. Each checkpoint carries it as far as it is known. What the
// answer acknowledges tells the number of the earlier guest, but a secondary is given the
// client's segments as they are translated already, and the client does not send its answer
// again. So on a host that is protected, where Mark is called, the answer is not delivered
// before a checkpoint has what it tells: the client sends it again.
//
// The zero value translates nothing yet. Its methods may be called from any
// goroutine; those of the device belong to the session.
type Edge struct {
	// Checkpoint, if it is not nil, is called when a handshake waits for a checkpoint. It
	// must not block, nor call the Edge. It is set before the Edge is used.
	Checkpoint func()

	mu     sync.Mutex
	conns  map[packet.Key]*settled // by the guest's direction
	halves *halves                 // nil: there are none
	pkt    packet.Packet
	count  uint64

	guarded bool   // from Mark(0) to Failover: a checkpoint is to have what is learnt
	next    uint64 // the epoch that the next mark ends
	asks    bool   // Checkpoint is to be called

	saved, staged edgeImage // what PreSave gathered, and what was loaded and not yet committed
}

// settled is a connection whose translation is known and does not change any more. Its
// life begins with the first segment that the guest sends on it.
type settled struct {
	translation
	life
	answer
	begun bool
	ended time.Time // when it was over; zero: it is not
}

// An answer has the numbers of the SYN|ACK that the guest has sent on a connection, and
// what that acknowledges. There is none where the guest has opened the connection and the
// client has answered.
type answer struct {
	answered   bool
	own, first uint32
}

// settle returns what is kept of c, whose numbers are known.
func settle(c *conversation) *settled {
	s := &settled{translation: c.translation(), life: c.life, begun: true}
	if !c.byGuest || c.crossed {
		s.answer = answer{true, c.own.seq, c.first}
	}
	if c.closed {
		s.ended = time.Now()
	}
	return s
}

// repeats reports whether h, a SYN or SYN|ACK, is that SYN|ACK once more, as a guest sends
// it whose handshake is not complete because a packet was lost on its way to the guest. A SYN
// opens another connection, with the same number by chance: that of this one has been answered.
func (a *answer) repeats(h packet.TCP) bool {
	return a.answered && h.Flags()&packet.ACK != 0 && h.Seq() == a.own && h.Ack() == a.first
}

// maxLinger is how long an Edge keeps a connection that is over, of which late packets may
// come (RFC 9293 section 3.4.2), and a handshake that does not become complete.
const maxLinger = 4 * time.Minute

// MaxEdge is the greatest number of connections that an Edge translates. If more are open
// at a failover, those beyond it break at the next failover.
const MaxEdge = 1 << 16

// Adopt takes over the connections that r translates, after the failover of its
// side and before the side is protected again. No packet may be on its way between
// the guest and the network meanwhile. Of r only Commit may be called afterwards.
// Adopt returns how many connections there was no room for.
func (e *Edge) Adopt(r *Rewriter) (left int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conns == nil {
		e.conns = make(map[packet.Key]*settled)
	}
	e.tidy()
	for k, c := range r.conns {
		// The guest has opened this connection anew since the Edge took over the earlier one
		// with the same addresses.
		delete(e.conns, k)
		e.halves.remove(k)
		switch {
		case c.signed, c.closed && !c.known(), c.known() && c.translation() == translation{}:
		case len(e.conns)+e.halves.len() >= MaxEdge:
			left++
		case !c.known():
			e.begin(k, c)
		default:
			e.conns[k] = settle(c)
		}
	}
	return left
}

// Len returns how many connections are translated, or will be once their handshake is
// complete.
func (e *Edge) Len() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns) + e.halves.len()
}

// Rewritten returns how many packets were translated since the Edge was made.
func (e *Edge) Rewritten() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.count
}

// Inbound translates a packet from the network in place, before anything else
// sees it. The frame begins with a virtio-net header of vnetHdr bytes. If it returns
// false the packet must not be delivered: it cannot be translated yet, and the client
// sends it again.
func (e *Edge) Inbound(frame []byte, vnetHdr int) (deliver bool) {
	deliver, asks := e.pass(frame, vnetHdr, true)
	if asks && e.Checkpoint != nil {
		e.Checkpoint()
	}
	return deliver
}

// Outbound translates a packet in place as the last thing before it leaves.
func (e *Edge) Outbound(frame []byte, vnetHdr int) { e.pass(frame, vnetHdr, false) }

// pass translates a packet in place, and reports whether it may be delivered, and whether a
// checkpoint is wanted.
func (e *Edge) pass(frame []byte, vnetHdr int, inward bool) (deliver, asks bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.conns) == 0 && e.halves == nil {
		return true, false
	}
	deliver = e.translate(frame, vnetHdr, inward)
	asks, e.asks = e.asks, false
	return deliver, asks
}

// translate does the work of pass where there is a connection.
func (e *Edge) translate(frame []byte, vnetHdr int, inward bool) (deliver bool) {
	p := &e.pkt
	p.ParseVNet(frame, vnetHdr)
	if !p.IsTCP() {
		var q packet.Quoted
		if p.HeadKey(&q.Key) {
			if s := e.conns[ofGuest(q.Key, !inward)]; s != nil && translatesHead(p) {
				s.head(p, packet.VNetOf(frame, vnetHdr), &s.life, inward)
				e.count++
			}
		} else if p.Quoted(&q) {
			if t, ok := e.translationOf(ofGuest(q.Key, inward)); ok {
				t.quoted(p, &q, inward)
				e.count++
			}
		}
		return true
	}
	var k packet.Key
	p.Key(&k)
	k = ofGuest(k, !inward)
	s := e.conns[k]
	if s == nil {
		return e.passHalf(&k, frame, vnetHdr, inward)
	}
	h, over := p.TCP(), false
	was := headSum(h)
	switch {
	case h.Flags()&packet.SYN != 0:
		// Only a packet from the guest decides whether the connection is a new one.
		switch {
		case inward:
			return true
		case !s.repeats(h):
			delete(e.conns, k)
			return true
		}
		s.outward(h)
	case p.Signed():
		return true
	case inward:
		ends := h.Flags()&packet.RST != 0 || s.ends(h)
		lost := ends && p.Damaged(packet.VNetOf(frame, vnetHdr)) // the guest drops it
		s.inward(h)
		if s.begun {
			s.past(h)
		}
		if s.begun && !lost {
			s.told(h)
			over = h.Flags()&packet.RST != 0 && h.Seq() == s.next
		}
	default:
		if !s.begun && h.Flags()&packet.RST == 0 {
			s.begun, s.next, s.window, s.sent = true, h.Ack(), windowOf(h), h.Seq()
		}
		s.heard(h)
		s.outward(h)
		if h.Flags()&packet.RST != 0 {
			delete(e.conns, k) // what the guest sends now has the client's own numbers
		}
	}
	if (over || s.over()) && s.ended.IsZero() {
		s.ended = time.Now()
	}
	seal(p, packet.VNetOf(frame, vnetHdr), was)
	e.count++
	return true
}

// opens takes note of a SYN or SYN|ACK of a secondary's guest, and reports whether that
// opens a connection anew, which is translated no more.
func (e *Edge) opens(k packet.Key, h packet.TCP) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.conns[k]; s != nil && s.repeats(h) {
		return false
	}
	if e.halves.repeats(k, h) {
		return false
	}
	delete(e.conns, k)
	e.halves.remove(k)
	return true
}

// An EdgeNetwork is a network as an [Edge] shows it: packets read from it and written to
// it are translated. A proxy is given one as its network.
type EdgeNetwork struct {
	edge    *Edge
	network interface {
		PacketReader
		PacketWriter
	}
	vnet    int
	in, out []byte
}

// Network returns a network that reads from n and writes to n, and translates each packet.
// Frames begin with a virtio-net header of vnetHdr bytes. One goroutine reads, and one writes.
func (e *Edge) Network(n interface {
	PacketReader
	PacketWriter
}, vnetHdr int) *EdgeNetwork {
	return &EdgeNetwork{edge: e, network: n, vnet: vnetHdr}
}

// ReadPacket returns the next packet. The slice is valid until the next call.
func (n *EdgeNetwork) ReadPacket() ([]byte, error) {
	for {
		p, err := n.network.ReadPacket()
		if err != nil || n.edge.Len() == 0 {
			return p, err
		}
		n.in = append(n.in[:0], p...)
		if n.edge.Inbound(n.in, n.vnet) {
			return n.in, nil
		}
	}
}

// WritePacket sends a packet, and neither keeps nor changes p.
func (n *EdgeNetwork) WritePacket(p []byte) error {
	if n.edge.Len() == 0 {
		return n.network.WritePacket(p)
	}
	n.out = append(n.out[:0], p...)
	n.edge.Outbound(n.out, n.vnet)
	return n.network.WritePacket(n.out)
}

// Close closes the network, if it can be closed.
func (n *EdgeNetwork) Close() error {
	if c, ok := n.network.(interface{ Close() error }); ok {
		return c.Close()
	}
	return nil
}
