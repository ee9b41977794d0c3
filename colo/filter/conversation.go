package filter

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// A conversation is a TCP connection that the secondary's guest has opened, or whose
// opening it has answered, since the last checkpoint. Only packets of that guest begin or
// end one; see [Rewriter].
type conversation struct {
	// own is the initial number that the secondary's guest has chosen. It is set by the
	// guest's SYN or SYN|ACK. A later SYN|ACK with another number replaces it until the
	// connection is known to be established, since nobody has acknowledged the earlier
	// number.
	own initial

	// again is the timestamp of the SYN|ACK that the guest has sent last. It changes when the guest
	// repeats it.
	again uint32

	// peer is the initial number that the primary's guest has chosen, which is learnt from
	// a client's acknowledgment. It is set once; for a connection that the guest opens,
	// when the guest answers one of offers.
	peer      initial
	peerKnown bool

	// signed says that the guest signs its segments (see Signed of packet.Packet), so that nothing is
	// translated. It is set when the conversation begins.
	signed bool

	// byGuest says that the guest has sent a SYN. It is set when the conversation begins.
	byGuest bool

	// crossed says that the guest has also answered a SYN of the client's, which it had not
	// got when it sent its own (RFC 9293 section 3.5).
	crossed bool

	// carried says that a checkpoint has brought it, so that it may have gone on since. It is set when
	// the conversation begins.
	carried bool

	// fast says that the guest has taken data with the client's SYN, and so may speak before its
	// SYN|ACK is answered. It is set when the conversation begins.
	fast bool

	// first is the number that the guest's SYN|ACK acknowledges. It is set when the
	// conversation begins, or when it is crossed.
	first uint32

	// How far the two sides have come, and whether they have ended the connection.
	life

	// long says that the guest has sent more than maxWindow bytes, and so may come back to a
	// number that it has used. It is set by the guest's packets, once.
	long bool

	// offers are the SYN|ACKs that a guest which opens a connection has been given, the
	// latest last. They are emptied when the guest answers one of them.
	offers []offer

	// early is a packet of the client that came before it could be translated. It is
	// removed when it can be translated and is delivered.
	early    []byte
	earlySeq uint32 // the sequence number of early

	// late are packets of the guest that were sent before they could be translated. They are removed
	// when they are sent; see Rewriter.Late.
	late []byte

	closed bool // it is over and its key is in Rewriter.ended; set once
}

// A life is how far a connection has come, counted in the numbers of the guest.
type life struct {
	// next is the highest number of the client that the guest has acknowledged, and so
	// the one that it expects. It changes with the guest's packets.
	next uint32

	// window is how far beyond next the guest takes data, in bytes; it changes with the
	// guest's packets. scale is the shift that the guest's SYN or SYN|ACK announced (RFC
	// 7323), and is set by that.
	window uint32
	scale  uint8

	// sent is the end of the data that the guest has sent. It changes with the guest's
	// packets.
	sent uint32

	// stamp is the latest timestamp that the guest has sent, and stamped says that there
	// is one. Both change with the guest's packets other than its SYN or SYN|ACK.
	stamp   uint32
	stamped bool

	// guestFIN says that the guest has sent a FIN, and guestEnd is the number after it;
	// the guest's packets change both. guestAcked is set when the guest has been given an
	// acknowledgment of guestEnd. clientFIN and clientEnd are the same for the client;
	// packets to the guest change them, and they count only when the guest has
	// acknowledged clientEnd, which sets clientAcked.
	guestFIN, guestAcked   bool
	clientFIN, clientAcked bool
	guestEnd, clientEnd    uint32
}

// An initial is the first number that a guest uses on a connection, and its timestamp at
// that time.
type initial struct {
	seq   uint32
	time  uint32
	timed bool // there is a timestamp
}

// An offer is a SYN|ACK that came for a guest which opens a connection: the number of the
// SYN|ACK, and the initial number of the primary's guest, as the SYN|ACK acknowledges it.
type offer struct {
	seq  uint32
	peer initial
}

// maxOffers bounds the offers that are remembered for one connection. The guest
// answers the first that it gets.
const maxOffers = 4

// known reports whether packets of the connection can be translated.
func (c *conversation) known() bool { return c.peerKnown && !c.signed }

// translation returns how far the numbers of the secondary's guest are ahead of the
// primary's.
func (c *conversation) translation() translation { return c.own.ahead(c.peer) }

// ahead returns how far i is ahead of peer.
func (i initial) ahead(peer initial) translation {
	t := translation{seq: i.seq - peer.seq}
	if i.timed && peer.timed {
		t.time = i.time - peer.time
	}
	return t
}

// opened returns the initial number and timestamp that the guest's SYN or SYN|ACK has.
func opened(h packet.TCP) initial {
	i := initial{seq: h.Seq()}
	if ts := timestamps(h); ts != nil {
		i.time, i.timed = binary.BigEndian.Uint32(ts), true
	}
	return i
}

// windowOf returns the window field of a segment, which is not scaled.
func windowOf(h packet.TCP) uint32 { return uint32(binary.BigEndian.Uint16(h[14:])) }

// maxScale is the greatest shift of a window (RFC 7323 section 2.3).
const maxScale = 14

// scaleOf returns the shift of the window that a SYN or SYN|ACK announces, at most
// maxScale. Of several the last one counts.
func scaleOf(h packet.TCP) (last uint8) {
	for opts := h.Options(); ; {
		kind, data, rest, ok := packet.NextOption(opts)
		switch {
		case !ok:
			return last
		case kind == packet.OptWScale && len(data) == 1:
			last = min(data[0], maxScale)
		}
		opts = rest
	}
}

// acknowledged returns the initial number of the primary's guest, as the client's
// acknowledgment of that guest's SYN or SYN|ACK shows it.
func acknowledged(h packet.TCP) initial {
	i := initial{seq: h.Ack() - 1}
	if ts := timestamps(h); ts != nil {
		i.time, i.timed = binary.BigEndian.Uint32(ts[4:]), true
	}
	return i
}

// stamps notes the timestamp of a packet that the guest has sent.
func (c *life) stamps(h packet.TCP) {
	if ts := timestamps(h); ts != nil {
		if v := binary.BigEndian.Uint32(ts); !c.stamped || int32(v-c.stamp) > 0 {
			c.stamp, c.stamped = v, true
		}
	}
}

// past lowers the timestamp's echo in a segment for the guest if the guest has not sent that
// timestamp yet, and reports whether it did. The secondary's guest gets its input later than the
// primary's guest, so the timestamps that clients echo may be ahead of its own. A guest that
// measures the round trip with such an echo finds that it ended before it began, and may then
// wait for minutes before it sends again.
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

// says updates how far the guest has come by a packet that it sends, and returns the end of that.
func (c *life) says(h packet.TCP) (end uint32) {
	end = h.Seq() + uint32(len(h.Payload()))
	if h.Flags()&packet.FIN != 0 {
		end++
	}
	if h.Flags()&packet.RST == 0 && int32(end-c.sent) > 0 {
		c.sent = end
	}
	return end
}

// heard updates c by a packet that the guest sends, which has the guest's own numbers.
func (c *life) heard(h packet.TCP) {
	flags := h.Flags()
	end := c.says(h)
	if flags&packet.FIN != 0 {
		c.guestFIN, c.guestEnd = true, end
	}
	if flags&packet.RST == 0 {
		c.stamps(h)
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

// told updates c by a packet that the guest is given, after it has been translated into
// the guest's own numbers.
func (c *life) told(h packet.TCP) {
	flags := h.Flags()
	if flags&packet.FIN != 0 && !c.clientAcked && h.Seq()-c.next <= c.window {
		c.clientFIN, c.clientEnd = true, h.Seq()+uint32(len(h.Payload()))+1
	}
	if c.guestFIN && flags&packet.ACK != 0 && h.Ack() == c.guestEnd && h.Seq()-c.next <= c.window {
		c.guestAcked = true
	}
}

// over reports whether both directions have ended: the client has acknowledged the guest's
// FIN, and the guest the client's.
func (c *life) over() bool { return c.guestAcked && c.clientAcked }

// has reports whether the guest has sent all data up to seq, one of its own numbers. An
// acknowledgment of more belongs to another connection. Of a long connection only what is no more
// than a window before the end of the data counts.
func (c *conversation) has(seq uint32) bool {
	all := c.sent - c.own.seq
	if c.long {
		all = maxWindow
	}
	return c.sent-seq <= all
}

// flight returns how far behind a SYN|ACK a segment may be that follows it, in bytes.
func (c *conversation) flight() uint32 {
	if c.carried {
		return maxWindow
	}
	return maxFlight
}

// answers reports whether h, a segment of the client, acknowledges what this guest itself has sent. Then
// the client has got its SYN|ACK, which is that of the primary's guest too where both had sent it before the
// checkpoint and this one repeats it. In that case what the client said first may have been delivered
// before the conversation began.
func (c *conversation) answers(h packet.TCP) bool {
	switch ts := timestamps(h); {
	case h.Ack() == c.own.seq || !c.has(h.Ack()):
		return false
	case h.Ack() != c.own.seq+1 || h.Seq() != c.next || !c.own.timed || ts == nil:
		return true
	default: // two guests may have chosen one number
		return c.again-binary.BigEndian.Uint32(ts[4:]) <= c.again-c.own.time+answerTime
	}
}

// answerTime is for how long before a checkpoint a SYN|ACK may have been sent that is repeated behind it, in
// the units of timestamps, which are milliseconds mostly.
const answerTime = 1 << 16

// An opening remembers SYNs of clients that the guest has not answered yet. It only
// decides whether a packet that can belong to no other connection waits for the guest's
// answer.
type opening struct {
	syns  [4]syn // the latest replaces the oldest
	count int    // how many there have been
	early []byte // a packet that answers a SYN|ACK which this guest has not sent yet
	seq   uint32 // the number of that packet
}

// A syn is a SYN of a client: its number, and the number after its data (RFC 7413).
type syn struct{ seq, end uint32 }

// precedes reports whether seq is the number of the first packet after the SYN, where the
// data of the SYN may have been taken or not.
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

// follows reports whether seq is the number of the first packet after one of the SYNs.
func (o *opening) follows(seq uint32) bool {
	for _, s := range o.all() {
		if s.precedes(seq) {
			return true
		}
	}
	return false
}
