package filter

import (
	"github.com/gocolo/lockstep/internal/packet"
)

// A Rewriter makes the secondary's guest fit into the primary's TCP
// connections. Both guests answer a client's SYN, each with an initial sequence
// number of its own; the client knows the primary's. So a Rewriter translates the
// client's acknowledgments on their way to the secondary's guest, and the sequence
// numbers of the packets that this guest sends on their way to the client. A
// connection that was open at the last checkpoint has one number in both guests and
// needs nothing.
//
// Every packet to the guest goes through Inbound, every packet from it through
// Outbound, as often as it is sent. They change the packet in place and its TCP checksum
// with it, which is as right or wrong as it was, or right if it was zero, unless the
// virtio-net header says that it is partial and somebody else completes it. What is not
// TCP, or is malformed, passes unchanged, but for ICMP and ICMPv6 errors,
// whose quoted segment is translated. Of a segment in fragments the first is translated, if it has
// the header and the connection is known; nothing is learned from it. A Rewriter is a
// colo.SecondaryNetwork. It does no I/O and belongs to one goroutine at a time.
//
// The rules are those of net/filter-rewriter.c with its gaps closed: guests may
// open connections, the two halves of a handshake may come in any order, a SYN
// may be repeated, RST, selective acknowledgments and timestamps are translated
// too; timestamps because a guest may refuse a handshake that echoes a time which
// it has never sent, as Linux 6.18 does: the two guests need only be a millisecond
// apart.
//
// Anybody can send segments with the addresses of a connection. So a connection is
// followed, replaced and forgotten by what the guest says: by its SYN, or by its
// SYN|ACK, which tells the SYN that it answers (RFC 9293 section 3.5); a SYN on a
// connection that lives changes nothing, as the guest answers it with an ACK (RFC
// 5961 section 4). The numbers of the primary's guest come from the first
// acknowledgment whose own number is the one that the guest expects. A RST ends a
// connection where the guest would end it, that is if it has exactly that number
// (RFC 5961 section 3). A Rewriter learns nothing from a segment to the guest whose
// checksum is wrong, since the guest drops it.
//
// The number of the primary's SYN, where the guests open a connection, is not known here. What
// answers that SYN or refuses it is translated by the number that it acknowledges, so that the
// guest takes such a segment from anybody who knows the addresses and ports. A host that has the
// primary's output keeps from the secondary what answers another number (Refuses of a
// compare.Comparer).
type Rewriter struct {
	cfg    RewriterConfig
	conns  map[packet.Key]*conversation // the keys are in the direction from the guest
	opens  map[packet.Key]*opening      // the keys are in the same direction
	ended  queue                        // conversations that are over; they are forgotten first when there is no room
	halves queue                        // conversations whose handshake may be incomplete; they are forgotten next
	clocks map[packet.Key]uint32        // the latest timestamps of the guest on connections that are not in conns
	asked  queue                        // openings, in the order in which they were asked for
	over   bool                         // there was a failover: no new connection is followed
	strict *strictRewriter
	pkt    packet.Packet
	held   int // bytes in early packets of all conversations and openings
	stats  RewriterStats

	last    *conversation // the conversation of lastKey, if not nil: packets come in bursts
	lastKey packet.Key

	spares bool   // the frame of this call must not be changed
	copied []byte // memory for a copy of such a frame

	earlyVNet int // the length of the virtio-net header of the packet that Outbound returned last

	kept     bool          // the packet of the last Outbound is kept
	ready    *conversation // what Late returns packets of, if not nil
	lateVNet int           // as earlyVNet, of the packet that Late returned last
}

// maxWindow is the greatest window, in bytes (RFC 7323 section 2.3).
const maxWindow = 1 << 30

// maxFlight is the most that a client sends before its SYN|ACK is answered, in bytes: the window of a SYN is not
// scaled (RFC 7323 section 2.2).
const maxFlight = 1 << 16

// Bounds for packets that come too early, in bytes: for one packet, which may be a whole
// initial window (RFC 6928), and for all.
const (
	maxEarly    = 16 << 10
	maxAllEarly = 2 << 20
)

// NewRewriter returns a Rewriter that follows no connection yet.
func NewRewriter(cfg RewriterConfig) *Rewriter {
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = 16384
	}
	r := &Rewriter{cfg: cfg, conns: make(map[packet.Key]*conversation), opens: make(map[packet.Key]*opening), clocks: make(map[packet.Key]uint32)}
	if cfg.Strict {
		r.strict = newStrictRewriter()
	}
	return r
}

// conn returns the conversation of k, nil if it is not followed.
func (r *Rewriter) conn(k *packet.Key) *conversation {
	if r.last != nil && r.lastKey == *k {
		return r.last
	}
	c := r.conns[*k]
	if c != nil {
		r.last, r.lastKey = c, *k
	}
	return c
}

// Inbound translates a packet on its way to the guest. The frame begins with a
// virtio-net header of vnetHdr bytes. If it returns false the packet must not
// be delivered now: it cannot be translated yet. It is then delivered by way of
// [Rewriter.Outbound], or, if it cannot be kept, the client sends it again.
func (r *Rewriter) Inbound(frame []byte, vnetHdr int) (deliver bool) {
	r.pkt.ParseVNet(frame, vnetHdr)
	if !r.pkt.IsTCP() {
		r.spares = false
		r.parts(frame, vnetHdr, true)
		return true
	}
	h := r.pkt.TCP()
	var k packet.Key
	r.pkt.Key(&k)
	k = k.Reverse()
	if r.strict != nil {
		if r.strict.inbound(k, h) {
			r.sealAnew(frame, vnetHdr)
		}
		return true
	}
	c := r.conn(&k)
	flags := h.Flags()
	v := packet.VNetOf(frame, vnetHdr)
	// The guest drops one that is damaged, which teaches nothing then.
	lost := (c.teaches(h) || len(r.opens) > 0 && r.opens[k] != nil) && r.pkt.Damaged(v)
	switch {
	case lost && (c == nil || !c.known()):
		return true
	case flags&(packet.SYN|packet.ACK) == packet.SYN:
		if !lost {
			r.clientAsks(k, c, h)
		}
		return true
	case r.pkt.Signed() || c != nil && c.signed:
		return true
	case flags&packet.ACK == 0:
		if !lost {
			r.clientResets(k, c, h)
		}
		return true
	case !lost && flags&(packet.RST|packet.SYN) == 0 && r.isOfOpening(k, c, h):
		return r.holdOpening(k, h, frame, vnetHdr)
	case c == nil:
		r.lowers(k, frame, vnetHdr)
		return true
	}
	t, ok, wait := c.learn(h)
	switch {
	case wait:
		r.hold(c, frame, vnetHdr)
		return false
	case !ok:
		r.clientResets(k, c, h)
		return true
	}
	if len(c.late) > 0 && c.known() {
		r.ready = c
	}
	was := headSum(h)
	if t != (translation{}) {
		t.inward(h)
	}
	if c.past(h) || t != (translation{}) {
		r.translated(frame, vnetHdr, was)
	}
	if lost {
		return true
	}
	c.told(h)
	r.clientResets(k, c, h)
	r.note(k, c)
	return true
}

// learn returns the translation for a segment to the guest. ok says that the segment is to
// be translated. wait says that the translation is not known yet and that the guest might
// accept the segment, so that it has to wait. The segment has the flag ACK.
func (c *conversation) learn(h packet.TCP) (t translation, ok, wait bool) {
	flags := h.Flags()
	switch {
	case c.peerKnown:
		return c.translation(), true, false
	case c.byGuest && flags&(packet.SYN|packet.RST) != 0:
		// A SYN|ACK, or a refusal. There may be several SYN|ACKs, of which the guest takes
		// the first; its answer tells which one that was.
		o := offer{seq: h.Seq(), peer: acknowledged(h)}
		if flags&packet.SYN != 0 {
			c.offered(o)
		}
		return c.own.ahead(o.peer), true, false
	case c.byGuest && len(c.offers) == 1 && h.Seq()-c.offers[0].seq <= c.flight():
		return c.own.ahead(c.offers[0].peer), true, false // it follows the only SYN|ACK
	case c.byGuest && c.crossed && len(c.offers) == 0 && h.Seq() == c.next:
		c.peer, c.peerKnown = acknowledged(h), true // the client's SYN|ACK has not come
		return c.translation(), true, false
	case c.byGuest && len(c.offers) > 1:
		return translation{}, false, true // until the guest has answered one of them
	case c.byGuest:
		return translation{}, false, false // both guests answer it with a RST that echoes its number
	case flags&(packet.SYN|packet.RST) != 0:
		return translation{}, false, false // what a RST acknowledges does not count, and a SYN|ACK is of no use
	case h.Seq()-c.next < c.window && c.answers(h):
		c.peer, c.peerKnown = c.own, true
		return c.translation(), true, false
	case h.Seq() == c.next:
		c.peer, c.peerKnown = acknowledged(h), true
		return c.translation(), true, false
	case h.Seq()-c.next < c.window:
		return translation{}, false, true // the one before it is still to come
	}
	return translation{}, false, false // it is of an older connection, whose acknowledgment does not count
}

// translated counts the segment that has been parsed, and seals it. The sum of its header
// was another before it was translated.
func (r *Rewriter) translated(frame []byte, vnetHdr int, was uint16) {
	r.stats.Rewritten++
	seal(&r.pkt, packet.VNetOf(frame, vnetHdr), was)
}

// sealAnew does what translated does, but it computes the checksum anew, as QEMU does.
func (r *Rewriter) sealAnew(frame []byte, vnetHdr int) {
	r.stats.Rewritten++
	if !packet.VNetOf(frame, vnetHdr).PartialChecksum(&r.pkt, packet.TCPChecksumAt) {
		r.pkt.TCP().SetChecksum(r.pkt.TCPChecksum())
	}
}

// Outbound translates a packet on its way from the guest. The frame begins with
// a virtio-net header of vnetHdr bytes. If it returns a packet, that is one
// which Inbound has kept, translated: it is to be delivered to the guest. It is
// valid until the next call.
func (r *Rewriter) Outbound(frame []byte, vnetHdr int) (early []byte) {
	r.spares = false
	_, early = r.outbound(frame, vnetHdr)
	return early
}

// OutboundCopy is Outbound for a frame that is not to be changed. It returns the frame, or
// a copy of it, valid until the next call, if there is something to translate.
func (r *Rewriter) OutboundCopy(frame []byte, vnetHdr int) (out, early []byte) {
	r.spares = true
	return r.outbound(frame, vnetHdr)
}

func (r *Rewriter) outbound(frame []byte, vnetHdr int) (out, early []byte) {
	r.kept = false
	r.pkt.ParseVNet(frame, vnetHdr)
	if !r.pkt.IsTCP() {
		return r.parts(frame, vnetHdr, false), nil
	}
	h := r.pkt.TCP()
	var k packet.Key
	r.pkt.Key(&k)
	if r.strict != nil {
		frame = r.writable(frame, vnetHdr)
		if r.strict.outbound(k, r.pkt.TCP()) {
			r.sealAnew(frame, vnetHdr)
		}
		return frame, nil
	}
	c := r.conn(&k)
	flags := h.Flags()
	if flags&packet.SYN != 0 {
		fast := r.takesData(k, h)
		if c = r.guestOpens(k, c, h); c == nil {
			r.ticks(k, h)
			return frame, r.unfollowed(k, h)
		}
		c.fast = c.fast || fast
		if c.known() { // it is repeated, and the client has acknowledged the primary's
			frame = r.outward(c.translation(), frame, vnetHdr)
		}
		return frame, r.deliver(c)
	}
	if c == nil {
		r.ticks(k, h)
		r.refuses(k, h)
		return frame, nil
	}
	if c.byGuest && !c.peerKnown && flags&packet.ACK != 0 && (c.carried || flags&packet.RST == 0) {
		c.answered(h)
	}
	if !c.known() || r.pkt.Signed() {
		c.says(h)
		if c.fast && !c.signed && flags&packet.RST == 0 {
			r.keepLate(c, frame, vnetHdr)
		}
		return frame, nil
	}
	if flags&packet.RST != 0 && h.Seq() == 0 && !c.has(0) && !(c.carried && h.Ack()-c.next < c.flight()) {
		return frame, nil // it refuses a segment without ACK, by a number that means nothing (RFC 9293 section 3.10.7.1)
	}
	c.heard(h)
	c.long = c.long || c.sent-c.own.seq > maxWindow
	if flags&packet.RST != 0 {
		r.end(k, c)
	}
	r.note(k, c)
	frame = r.outward(c.translation(), frame, vnetHdr)
	return frame, r.deliver(c)
}

// outward translates the segment of the guest that has been parsed, and returns its frame.
func (r *Rewriter) outward(t translation, frame []byte, vnetHdr int) []byte {
	if t == (translation{}) {
		return frame
	}
	frame = r.writable(frame, vnetHdr)
	was := headSum(r.pkt.TCP())
	t.outward(r.pkt.TCP())
	r.translated(frame, vnetHdr, was)
	return frame
}

// writable returns the frame that has been parsed, or, if it is not to be changed, a copy,
// of which the parsed packet is then.
func (r *Rewriter) writable(frame []byte, vnetHdr int) []byte {
	if !r.spares {
		return frame
	}
	r.copied = append(r.copied[:0], frame...)
	r.pkt.Frame = r.copied[vnetHdr:]
	return r.copied
}

func (r *Rewriter) cannot() {
	if r.cfg.Untranslatable != nil {
		r.cfg.Untranslatable()
	}
}

// Commit says that the guest has the state of the primary's guest at epoch: its
// connections have the same numbers, so that there is nothing to translate but what is
// opened from now on. The SYNs that clients sent before are forgotten. Where the primary's
// output is compared, or leaves with checkpoints, that is safe: if the primary's guest has
// answered before the mark, both guests have its number, and an answer that it gives later
// leaves once the secondary's guest has answered too, by way of Outbound, or once a later
// checkpoint has that answer. So no client acknowledges a number that is unknown here.
func (r *Rewriter) Commit(epoch uint64) error {
	r.over = false
	if r.strict != nil {
		r.strict.checkpoint()
		return nil
	}
	clear(r.conns)
	clear(r.opens)
	clear(r.clocks)
	r.last, r.ready, r.held = nil, nil, 0
	r.ended, r.halves, r.asked = queue{}, queue{}, queue{}
	return nil
}

// Resumed says that the secondary's guest runs. A Rewriter does nothing then.
func (r *Rewriter) Resumed(epoch uint64) error { return nil }

// Failover says that this side goes on alone. The connections that are followed
// need translation for as long as they live, and so do those that a client has
// asked for and that the primary may have answered; new ones do not.
func (r *Rewriter) Failover() error {
	r.over = true
	if r.strict != nil {
		r.strict.failover()
	}
	return nil
}

// Stats returns the present counts.
func (r *Rewriter) Stats() RewriterStats {
	s := r.stats
	s.Conns = len(r.conns)
	for k := range r.opens {
		if r.conns[k] == nil {
			s.Conns++
		}
	}
	if r.strict != nil {
		s.Conns = len(r.strict.conns)
	}
	return s
}
