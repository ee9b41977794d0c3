package filter

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// RewriterConfig configures a [Rewriter]. The zero value is usable.
type RewriterConfig struct {
	// Strict makes the rewriter do what filter-rewriter of QEMU 7.2 does, its
	// gaps included.
	Strict bool

	// MaxConns bounds the number of connections that are followed. Zero is
	// 16384. More than that are not translated, so that their packets differ
	// and a checkpoint follows, after which there is nothing to translate.
	MaxConns int
}

// A Rewriter makes the secondary's guest fit into the primary's TCP
// connections. Both guests answer a client's SYN, each with an initial sequence
// number of its own; the client knows the primary's. So the client's
// acknowledgments are translated on their way to the secondary's guest, and the
// sequence numbers of what that sends on their way from it. A connection that
// was open at the last checkpoint has one number in both guests and needs
// nothing.
//
// Every packet to the guest goes through Inbound, every packet from it through
// Outbound, as often as it is sent. They change the packet in place and
// recompute its TCP checksum; what is not TCP, or is a fragment or malformed,
// passes unchanged. A Rewriter is a colo.SecondaryNetwork. It does no I/O and
// belongs to one goroutine at a time.
//
// The rules are those of net/filter-rewriter.c with its gaps closed: guests may
// open connections, the two halves of a handshake may come in any order, a SYN
// may be repeated, RST, selective acknowledgments and timestamps are translated
// too. The last because a guest may refuse a handshake that echoes a time which it
// has never sent, as Linux 6.18 does: the two guests need only be a millisecond
// apart.
type Rewriter struct {
	cfg    RewriterConfig
	conns  map[packet.Key]*conversation // by the guest's direction
	closed []packet.Key                 // in the order of their end; they go first
	over   bool                         // after a failover: nothing new is followed
	strict *strictRewriter
	pkt    packet.Packet
	held   int // bytes in early packets of all conversations
	stats  RewriterStats

	last    *conversation // that of lastKey, if not nil: packets come in bursts
	lastKey packet.Key

	earlyVNet int // of the packet that Outbound returned last
}

// RewriterStats counts packets since the Rewriter was made.
type RewriterStats struct {
	Rewritten uint64
	Held      uint64 // came before their connection's numbers were known, and were delivered later
	Dropped   uint64 // came too early, and were too many to be held
	Conns     int    // now: followed
}

// A conversation is a connection that was opened since the last checkpoint.
type conversation struct {
	pISN, sISN     uint32 // of the primary's and the secondary's guest
	client         uint32 // the client's ISN, if it opened the connection
	pKnown, sKnown bool
	opened         bool   // by the client
	pTime, sTime   uint32 // the guests' timestamps in their SYN
	pTimed, sTimed bool   // those are known
	early          []byte // a packet of the client's that came before sISN
	fin, finAcked  [2]bool
	finEnd         [2]uint32 // behind the FIN; of the guest in the primary's numbers
	closed         bool
}

const (
	fromGuest = iota
	toGuest
)

// Bounds for packets that come too early.
const (
	maxEarly    = 2048
	maxAllEarly = 1 << 20
)

// NewRewriter returns a Rewriter that follows no connection yet.
func NewRewriter(cfg RewriterConfig) *Rewriter {
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = 16384
	}
	r := &Rewriter{cfg: cfg, conns: make(map[packet.Key]*conversation)}
	if cfg.Strict {
		r.strict = newStrictRewriter()
	}
	return r
}

// known says that the two numbers of the connection are.
func (c *conversation) known() bool { return c.pKnown && c.sKnown }

// offset is what the secondary's numbers are ahead of the primary's.
func (c *conversation) offset() uint32 { return c.sISN - c.pISN }

// timeOffset is what the secondary's timestamps are ahead of the primary's.
func (c *conversation) timeOffset() uint32 {
	if c.pTimed && c.sTimed {
		return c.sTime - c.pTime
	}
	return 0
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

// tcp returns the segment in frame, nil if there is none.
func (r *Rewriter) tcp(frame []byte, vnetHdr int) packet.TCP {
	if vnetHdr < 0 || vnetHdr > len(frame) {
		return nil
	}
	if r.pkt.Parse(frame[vnetHdr:]); !r.pkt.IsTCP() {
		return nil
	}
	return r.pkt.TCP()
}

// seal puts the checksum right. If the virtio-net header says that the sender
// has left that to somebody else (VIRTIO_NET_HDR_F_NEEDS_CSUM), the field has
// the sum of the pseudo-header, which has not changed.
func (r *Rewriter) seal(frame []byte, vnetHdr int) {
	if vnetHdr > 0 && frame[0]&1 != 0 {
		return
	}
	r.pkt.TCP().SetChecksum(r.pkt.TCPChecksum())
}

// Inbound translates a packet on its way to the guest. The frame begins with a
// virtio-net header of vnetHdr bytes. If it returns false the packet must not
// be delivered now: it cannot be translated yet. It is then delivered by way of
// [Rewriter.Outbound], or, if it cannot be kept, the client sends it again.
func (r *Rewriter) Inbound(frame []byte, vnetHdr int) (deliver bool) {
	h := r.tcp(frame, vnetHdr)
	if h == nil {
		return true
	}
	var k packet.Key
	r.pkt.Key(&k)
	k = k.Reverse()
	if r.strict != nil {
		if r.strict.inbound(k, h) {
			r.stats.Rewritten++
			r.seal(frame, vnetHdr)
		}
		return true
	}
	c := r.conn(&k)
	flags := h.Flags()
	if flags&(packet.SYN|packet.ACK) == packet.SYN {
		r.clientOpens(k, c, h.Seq())
		return true
	}
	if c == nil {
		return true
	}
	if flags&packet.ACK == 0 {
		if flags&packet.RST != 0 {
			r.close(k, c)
		}
		return true
	}
	if !c.pKnown && (flags&packet.SYN != 0 || c.opened) {
		// The first acknowledgment after a SYN is that of the SYN itself.
		c.pISN, c.pKnown = h.Ack()-1, true
		if ts := timestamps(h); ts != nil {
			c.pTime, c.pTimed = binary.BigEndian.Uint32(ts[4:]), true
		}
	}
	if !c.known() {
		if flags&packet.RST != 0 {
			return true
		}
		r.hold(c, frame, vnetHdr)
		return false
	}
	r.track(k, c, h, toGuest, h.Seq(), h.Ack())
	if c.offset() != 0 || c.timeOffset() != 0 {
		translateAck(h, c.offset(), c.timeOffset())
		r.stats.Rewritten++
		r.seal(frame, vnetHdr)
	}
	return true
}

// translateAck adds offset to all that the client says of the guest's numbers:
// the acknowledgment and the edges of the selective ones (RFC 2018 section 3);
// and time to the timestamp that it echoes (RFC 7323 section 3).
func translateAck(h packet.TCP, offset, time uint32) {
	h.SetAck(h.Ack() + offset)
	opts := h.Options()
	if len(opts) == 0 {
		return
	}
	if len(opts) == 12 && usual(opts) {
		add32(opts[8:], time)
		return
	}
	for {
		kind, data, rest, ok := packet.NextOption(opts)
		switch {
		case !ok:
			return
		case kind == packet.OptSACK:
			for ; len(data) >= 4; data = data[4:] {
				add32(data, offset)
			}
		case kind == packet.OptTimestamps && len(data) == 8:
			add32(data[4:], time)
		}
		opts = rest
	}
}

func add32(b []byte, n uint32) { binary.BigEndian.PutUint32(b, binary.BigEndian.Uint32(b)+n) }

// usual reports whether options begin in the way that RFC 7323 appendix A
// recommends, with the timestamps.
func usual(opts []byte) bool {
	return len(opts) >= 12 && binary.BigEndian.Uint32(opts) == 0x0101080a
}

// timestamps returns the timestamp and the one that it echoes, nil if the
// segment has none.
func timestamps(h packet.TCP) []byte {
	opts := h.Options()
	if usual(opts) {
		return opts[4:12]
	}
	for {
		kind, data, rest, ok := packet.NextOption(opts)
		switch {
		case !ok:
			return nil
		case kind == packet.OptTimestamps && len(data) == 8:
			return data
		}
		opts = rest
	}
}

func (r *Rewriter) clientOpens(k packet.Key, c *conversation, isn uint32) {
	if c != nil && c.opened && c.client == isn {
		return // the SYN again
	}
	if c != nil {
		r.remove(k, c)
	}
	if r.follow(k) {
		r.conns[k] = &conversation{client: isn, opened: true}
	}
}

// follow reports whether there is room for another conversation.
func (r *Rewriter) follow(k packet.Key) bool {
	if r.over {
		return false
	}
	for len(r.conns) >= r.cfg.MaxConns && len(r.closed) > 0 {
		old := r.closed[0]
		r.closed = r.closed[1:]
		if c := r.conns[old]; c != nil && c.closed {
			r.remove(old, c)
		}
	}
	return len(r.conns) < r.cfg.MaxConns
}

func (r *Rewriter) remove(k packet.Key, c *conversation) {
	r.held -= len(c.early)
	delete(r.conns, k)
	r.last = nil
}

// close notes that the connection has ended. What is still on its way is
// translated for some time.
func (r *Rewriter) close(k packet.Key, c *conversation) {
	if !c.closed {
		c.closed = true
		r.closed = append(r.closed, k)
	}
}

// hold keeps a packet that came too early: the first one, that is the client's
// half of the handshake.
func (r *Rewriter) hold(c *conversation, frame []byte, vnetHdr int) {
	// The length of the virtio-net header goes with it.
	if n := 1 + len(frame); c.early == nil && n <= maxEarly && r.held+n <= maxAllEarly {
		c.early = append(append(make([]byte, 0, n), byte(vnetHdr)), frame...)
		r.held += n
		r.stats.Held++
		return
	}
	r.stats.Dropped++
}

// Outbound translates a packet on its way from the guest. The frame begins with
// a virtio-net header of vnetHdr bytes. If it returns a packet, that is one
// which Inbound has kept, translated: it is to be delivered to the guest. It is
// valid until the next call.
func (r *Rewriter) Outbound(frame []byte, vnetHdr int) (early []byte) {
	h := r.tcp(frame, vnetHdr)
	if h == nil {
		return nil
	}
	var k packet.Key
	r.pkt.Key(&k)
	if r.strict != nil {
		if r.strict.outbound(k, h) {
			r.stats.Rewritten++
			r.seal(frame, vnetHdr)
		}
		return nil
	}
	c := r.conn(&k)
	flags := h.Flags()
	if flags&packet.SYN != 0 {
		if flags&packet.ACK == 0 {
			c = r.guestOpens(k, c, h.Seq())
		}
		if c == nil {
			return nil
		}
		// Of several numbers the last one counts: what was sent before it has
		// not been acknowledged by anybody.
		if ts := timestamps(h); ts != nil && !(c.sTimed && c.sISN == h.Seq()) {
			c.sTime, c.sTimed = binary.BigEndian.Uint32(ts), true // of a SYN that is repeated, the first: it may have been answered
		}
		c.sISN, c.sKnown = h.Seq(), true
		return r.deliver(c)
	}
	if c == nil || !c.known() {
		return nil
	}
	seq := h.Seq() - c.offset()
	r.track(k, c, h, fromGuest, seq, h.Ack())
	if time := c.timeOffset(); c.offset() != 0 || time != 0 {
		h.SetSeq(seq)
		if time != 0 {
			if ts := timestamps(h); ts != nil {
				add32(ts, -time)
			}
		}
		r.stats.Rewritten++
		r.seal(frame, vnetHdr)
	}
	return nil
}

func (r *Rewriter) guestOpens(k packet.Key, c *conversation, isn uint32) *conversation {
	if c != nil && !c.opened && c.sISN == isn {
		return c // the SYN again
	}
	if c != nil {
		r.remove(k, c)
	}
	if !r.follow(k) {
		return nil
	}
	c = new(conversation)
	r.conns[k] = c
	return c
}

// deliver takes out the packet that came too early, now that it can be
// translated.
func (r *Rewriter) deliver(c *conversation) []byte {
	if c.early == nil || !c.known() {
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

// track follows the end of a connection. Both numbers are those that the client
// sees.
func (r *Rewriter) track(k packet.Key, c *conversation, h packet.TCP, dir int, seq, ack uint32) {
	flags := h.Flags()
	if flags&packet.FIN != 0 {
		c.fin[dir] = true
		c.finEnd[dir] = seq + uint32(len(h.Payload())) + 1
	}
	if other := 1 - dir; c.fin[other] && flags&packet.ACK != 0 && int32(ack-c.finEnd[other]) >= 0 {
		c.finAcked[other] = true
	}
	if flags&packet.RST != 0 || c.finAcked[fromGuest] && c.finAcked[toGuest] {
		r.close(k, c)
	}
}

// Commit says that the guest has become the primary's of epoch: its connections
// have the primary's numbers, so that there is nothing to translate but what
// is opened from now on.
func (r *Rewriter) Commit(epoch uint64) error {
	r.over = false
	if r.strict != nil {
		r.strict.checkpoint()
		return nil
	}
	clear(r.conns)
	r.last, r.closed, r.held = nil, nil, 0
	return nil
}

// Resumed says that the secondary's guest runs epoch. A Rewriter does not depend
// on it.
func (r *Rewriter) Resumed(epoch uint64) error { return nil }

// Failover says that this side goes on alone. The connections that are followed
// need translation for as long as they live; new ones do not.
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
	if r.strict != nil {
		s.Conns = len(r.strict.conns)
	}
	return s
}
