package filter

import "github.com/gocolo/lockstep/internal/packet"

// strictRewriter does what filter-rewriter of QEMU 7.2 does, with its gaps, as far as it
// can be seen from outside.
type strictRewriter struct {
	conns map[packet.Key]*strictConversation
	over  bool
}

// strictConversation holds the state that QEMU's rewriter keeps of a connection.
type strictConversation struct {
	state  tcpState
	offset uint32 // how far the secondary's numbers are ahead of the primary's
	finSeq uint32
}

// tcpState is a state of TCP, of which QEMU's rewriter follows these.
type tcpState uint8

const (
	tcpClosed tcpState = iota
	tcpSynSent
	tcpSynReceived
	tcpEstablished
	tcpCloseWait
	tcpLastAck
	tcpFinWait1
)

func newStrictRewriter() *strictRewriter {
	return &strictRewriter{conns: make(map[packet.Key]*strictConversation)}
}

// strictTable is the number of connections at which one more empties the table.
const strictTable = 16384

func (r *strictRewriter) conn(k packet.Key) *strictConversation {
	if k.Kind != packet.IP4 || k.Layers != 0 {
		return nil
	}
	c := r.conns[k]
	if c == nil && !r.over {
		if len(r.conns) > strictTable {
			clear(r.conns)
		}
		c = new(strictConversation)
		r.conns[k] = c
	}
	return c
}

func (r *strictRewriter) inbound(k packet.Key, h packet.TCP) (changed bool) {
	c := r.conn(k)
	if c == nil {
		return false
	}
	flags := h.Flags()
	switch both := flags & (packet.SYN | packet.ACK); {
	case both == packet.SYN|packet.ACK && c.state == tcpSynSent:
		c.state = tcpEstablished
	case both == packet.SYN:
		c.state = tcpSynReceived
	case both == packet.ACK:
		if c.state == tcpSynReceived {
			c.offset -= h.Ack() - 1
			c.state = tcpEstablished
		}
		if c.offset != 0 {
			h.SetAck(h.Ack() + c.offset)
			changed = true
		}
		if c.state == tcpLastAck && h.Ack() == c.finSeq+1 {
			delete(r.conns, k)
			return changed
		}
	}
	if flags&packet.FIN != 0 {
		switch c.state {
		case tcpEstablished:
			c.state = tcpCloseWait
		case tcpFinWait1:
			delete(r.conns, k)
		}
	}
	return changed
}

func (r *strictRewriter) outbound(k packet.Key, h packet.TCP) (changed bool) {
	c := r.conn(k)
	if c == nil {
		return false
	}
	flags := h.Flags()
	switch both := flags & (packet.SYN | packet.ACK); {
	case both == packet.SYN|packet.ACK && c.state == tcpSynReceived:
		c.offset = h.Seq()
	case both == packet.SYN && c.state == tcpClosed:
		c.state = tcpSynSent
	case both == packet.ACK && c.offset != 0:
		h.SetSeq(h.Seq() - c.offset)
		changed = true
	}
	switch both := flags & (packet.FIN | packet.ACK); {
	case both == packet.FIN|packet.ACK && c.state == tcpCloseWait:
		c.finSeq = h.Seq()
		c.state = tcpLastAck
	case both == packet.FIN && c.state == tcpEstablished:
		c.state = tcpFinWait1
	}
	return changed
}

// checkpoint forgets the offsets; the states stay.
func (r *strictRewriter) checkpoint() {
	r.over = false
	for _, c := range r.conns {
		c.offset = 0
	}
}

// failover stops following new connections, if there is nothing to translate.
func (r *strictRewriter) failover() {
	for _, c := range r.conns {
		if c.offset != 0 {
			return
		}
	}
	r.over = true
}
