package filter

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// A conversation is a connection that the secondary's guest has opened, or has
// answered the opening of, since the last checkpoint. Only what the guest itself
// says makes one or ends one; see [Rewriter].
type conversation struct {
	// own is what the secondary's guest chose, by its SYN or SYN|ACK. It changes
	// with a SYN|ACK that has another number before the connection is known to be
	// established, because nobody has acknowledged the one before.
	own initial

	// peer is what the primary's guest chose, as an acknowledgment of the client's
	// tells. It is set once; for a connection that the guest opens, when the guest
	// answers one of offers.
	peer      initial
	peerKnown bool

	// signed says that the guest signs its segments (TCP-MD5, TCP-AO). It is set
	// with the conversation. Nothing is translated then.
	signed bool

	// byGuest says that the guest sent a SYN. It is set with the conversation.
	byGuest bool

	// first is the client's number behind its SYN, if it sent one first. It is set
	// with the conversation.
	first uint32

	// The end of the connection, and how far the two sides have come until then.
	life

	// offers are the SYN|ACKs which a guest that opens a connection was given, the
	// latest last. They are emptied when it answers one of them.
	offers []offer

	// early is a packet of the client's that came before it could be translated. It
	// is taken out once that can be done, or never.
	early    []byte
	earlySeq uint32 // its number

	closed bool // set once: in the queue of those that go first
}

// A life is how far a connection has come, in the guest's own numbers.
type life struct {
	// next is the client's number that the guest expects: the highest that it has
	// acknowledged. It changes with what the guest sends.
	next uint32

	// window is how far beyond next the guest takes data, in bytes, and scale the
	// shift of its SYN or SYN|ACK (RFC 7323). Window changes with what the guest
	// sends, scale is set when the connection is opened.
	window uint32
	scale  uint8

	// sent is the end of what the guest has sent. It changes with what the guest
	// sends.
	sent uint32

	// stamp is the latest timestamp that the guest has sent, if it is stamped. They
	// change with what the guest sends, but for a SYN or SYN|ACK.
	stamp   uint32
	stamped bool

	// guestFIN and guestEnd, the number behind the FIN, change with what the guest
	// sends, and guestAcked when an acknowledgment that the guest takes covers it.
	// clientFIN and clientEnd change with what comes for the guest, and mean nothing
	// until the guest has acknowledged clientEnd, when clientAcked is set.
	guestFIN, guestAcked   bool
	clientFIN, clientAcked bool
	guestEnd, clientEnd    uint32
}

// An initial is the first number that a guest uses, and its timestamp then.
type initial struct {
	seq   uint32
	time  uint32
	timed bool // there is a timestamp
}

// An offer is a SYN|ACK that came for a guest which opens a connection: its number,
// and what it says of the primary's guest.
type offer struct {
	seq  uint32
	peer initial
}

// maxOffers bounds the offers that are remembered for one connection. The guest
// answers the first that it gets.
const maxOffers = 4

// known says whether the connection can be translated.
func (c *conversation) known() bool { return c.peerKnown && !c.signed }

// translation is how far the secondary's guest is ahead of the primary's.
func (c *conversation) translation() translation { return c.own.ahead(c.peer) }

// ahead is how far i is ahead of peer.
func (i initial) ahead(peer initial) translation {
	t := translation{seq: i.seq - peer.seq}
	if i.timed && peer.timed {
		t.time = i.time - peer.time
	}
	return t
}

// opened returns what the guest's SYN or SYN|ACK says of its number.
func opened(h packet.TCP) initial {
	i := initial{seq: h.Seq()}
	if ts := timestamps(h); ts != nil {
		i.time, i.timed = binary.BigEndian.Uint32(ts), true
	}
	return i
}

// windowOf returns the window of a segment as it stands there.
func windowOf(h packet.TCP) uint32 { return uint32(binary.BigEndian.Uint16(h[14:])) }

// scaleOf returns the shift of the window that a SYN or SYN|ACK announces, at most
// 14 (RFC 7323 section 2.3).
func scaleOf(h packet.TCP) uint8 {
	for opts := h.Options(); ; {
		kind, data, rest, ok := packet.NextOption(opts)
		switch {
		case !ok:
			return 0
		case kind == packet.OptWScale && len(data) == 1:
			return min(data[0], 14)
		}
		opts = rest
	}
}

// acknowledged returns what the client's acknowledgment of a SYN or SYN|ACK says
// of the number of the primary's guest.
func acknowledged(h packet.TCP) initial {
	i := initial{seq: h.Ack() - 1}
	if ts := timestamps(h); ts != nil {
		i.time, i.timed = binary.BigEndian.Uint32(ts[4:]), true
	}
	return i
}

// stamps notes the timestamp of what the guest itself sends.
func (c *life) stamps(h packet.TCP) {
	if ts := timestamps(h); ts != nil {
		if v := binary.BigEndian.Uint32(ts); !c.stamped || int32(v-c.stamp) > 0 {
			c.stamp, c.stamped = v, true
		}
	}
}

// past makes a segment for the guest echo no time that the guest has not sent yet,
// and reports whether it did otherwise. What a primary's guest has sent may be ahead
// of what the secondary's has, as that gets its input later, and so then are the
// times that a client echoes. A guest that measures with them, and finds the round
// trip to have ended before it began, may wait for minutes before it sends again.
func (c *life) past(h packet.TCP) (changed bool) {
	if !c.stamped || h.Flags()&packet.ACK == 0 {
		return false
	}
	ts := timestamps(h)
	if ts == nil || int32(binary.BigEndian.Uint32(ts[4:])-c.stamp) <= 0 {
		return false
	}
	binary.BigEndian.PutUint32(ts[4:], c.stamp)
	return true
}

// heard notes what the guest itself sends, in its own numbers.
func (c *life) heard(h packet.TCP) {
	flags := h.Flags()
	end := h.Seq() + uint32(len(h.Payload()))
	if flags&packet.FIN != 0 {
		end++
		c.guestFIN, c.guestEnd = true, end
	}
	if flags&packet.RST == 0 {
		c.stamps(h)
		if int32(end-c.sent) > 0 {
			c.sent = end
		}
	}
	if flags&packet.ACK == 0 || flags&packet.RST != 0 {
		return
	}
	ack := h.Ack()
	if int32(ack-c.next) >= 0 {
		c.next, c.window = ack, windowOf(h)<<c.scale
	}
	if c.clientFIN && ack == c.clientEnd {
		c.clientAcked = true
	}
}

// told notes what the guest is given, in the guest's own numbers, after it was
// translated.
func (c *life) told(h packet.TCP) {
	flags := h.Flags()
	if flags&packet.FIN != 0 && !c.clientAcked && h.Seq()-c.next <= c.window {
		c.clientFIN, c.clientEnd = true, h.Seq()+uint32(len(h.Payload()))+1
	}
	if c.guestFIN && flags&packet.ACK != 0 && h.Ack() == c.guestEnd && h.Seq()-c.next <= c.window {
		c.guestAcked = true
	}
}

// over says that both directions have ended: the guest has said so of its own, and
// has acknowledged the end of the other.
func (c *life) over() bool { return c.guestAcked && c.clientAcked }

// has reports whether the guest has sent up to seq, which is one of its own
// numbers: an acknowledgment of more is of another connection.
func (c *conversation) has(seq uint32) bool { return seq-c.own.seq <= c.sent-c.own.seq }

// An opening is what clients ask of the guest that it has not answered yet: their
// SYNs. It changes nothing but whether a packet that can only be of one of these
// connections waits for the answer.
type opening struct {
	syns  [4]syn // the latest replaces the oldest
	count int    // ever
	early []byte // a packet that answers a SYN|ACK which this guest has not sent yet
	seq   uint32 // the number of that packet
}

// A syn is a SYN of a client's: its number, and that of what follows it, which is
// more than the next one if it carries data (RFC 7413).
type syn struct{ seq, end uint32 }

// precedes reports whether seq is the number of the first packet behind the SYN,
// whose data may have been taken or not.
func (s syn) precedes(seq uint32) bool { return seq == s.seq+1 || seq == s.end }

func (o *opening) all() []syn { return o.syns[:min(o.count, len(o.syns))] }

// add notes a SYN.
func (o *opening) add(s syn) {
	for _, x := range o.all() {
		if x == s {
			return
		}
	}
	o.syns[o.count%len(o.syns)] = s
	o.count++
}

// follows reports whether seq is the number of the first packet behind one of the
// SYNs.
func (o *opening) follows(seq uint32) bool {
	for _, s := range o.all() {
		if s.precedes(seq) {
			return true
		}
	}
	return false
}
