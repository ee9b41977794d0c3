package compare

import "github.com/gocolo/lockstep/internal/packet"

// ARP and neighbour discovery are sent by timers of each guest, and so at times that the
// two guests do not share. Such a message tells only which hardware address belongs to
// which network address, and that does not change from one message to the next. So it
// leaves if the secondary's guest has claimed the same at any time, or if a received
// checkpoint covers that claim.
//
// A guest that asks whether anybody has an address does not claim it yet, and will not if
// somebody has. So a question is covered by the same question, and a claim by a claim.

// question stands in a key where other packets have ports, if the guest asks whether anybody has
// the address.
const question = 1

// A claim records which guests have sent messages that give one network address one
// hardware address.
type claim struct {
	told bool // the primary's guest has sent one; once true, it stays
	said bool // the guest that would run if the primary died now has sent one: true once the secondary's guest has, false from a mark at which told is false, and equal to mark from the receipt

	mark   bool   // told, as it was at the last mark
	marked bool   // there was a mark, and its receipt has not come
	epoch  uint64 // the number of that mark
}

// narrow is called at a mark and receive at a receipt, as stream's methods of these names
// are.
func (l *claim) narrow(epoch uint64) {
	l.said = l.said && l.told
	l.mark, l.marked, l.epoch = l.told, true, epoch
}

func (l *claim) receive(epoch uint64) {
	if l.marked && l.epoch <= epoch {
		l.said, l.marked = l.mark, false
	}
}

// ARP for IPv4 over Ethernet (RFC 826): its length, its sender, and the fixed
// beginning.
const arpLen = 28

// claimARP sets k to the pair of addresses that p claims, and reports whether p is ARP
// that claims one.
func (p *pkt) claimARP(k *connKey) bool {
	b := p.Packet.Frame[p.L3:]
	if len(b) < arpLen || string(b[:6]) != "\x00\x01\x08\x00\x06\x04" || b[6] != 0 || b[7] != 1 && b[7] != 2 {
		return false
	}
	p.LinkKey(&k.Key)
	who := b[14:18]
	if b[7] == 1 && [4]byte(who) == [4]byte{} {
		who, k.Ports = b[24:28], question // RFC 5227 section 2.1.1
	}
	copy(k.Dst[:], b[8:14]) // the sender's link-layer address
	copy(k.Src[:], who)
	return true
}

// Messages of neighbour discovery (RFC 4861 section 4) and their options.
const (
	ndRouterSolicitation    = 133
	ndNeighborSolicitation  = 135
	ndNeighborAdvertisement = 136

	ndSourceLinkAddress = 1
	ndTargetLinkAddress = 2
)

// claimND sets k to the pair of addresses that p claims, and reports whether p is a
// message of neighbour discovery that a host sends.
func (p *pkt) claimND(k *connKey) bool {
	b := p.Payload()
	ip := p.IPv6()
	who, opts, want := ip.Src(), []byte(nil), byte(ndSourceLinkAddress)
	asks := false
	switch {
	case b[0] == ndRouterSolicitation && b[1] == 0:
		opts = b[8:]
	case (b[0] == ndNeighborSolicitation || b[0] == ndNeighborAdvertisement) && b[1] == 0 && len(b) >= 24:
		opts = b[24:]
		if b[0] == ndNeighborAdvertisement {
			want = ndTargetLinkAddress
		}
		asks = b[0] == ndNeighborSolicitation && [16]byte(who) == [16]byte{} // RFC 4862 section 5.4
		if b[0] == ndNeighborAdvertisement || asks {
			who = b[8:24]
		}
	default:
		return false
	}
	address := packet.Ethernet(p.Packet.Frame).Src()
	for len(opts) >= 8 && opts[1] > 0 && int(opts[1])*8 <= len(opts) {
		if opts[0] == want && opts[1] == 1 {
			address = opts[2:8]
		}
		opts = opts[int(opts[1])*8:]
	}
	p.LinkKey(&k.Key)
	if asks {
		k.Ports = question
	}
	copy(k.Src[:], who)
	copy(k.Dst[:], address)
	return true
}

func (e *Engine) primaryClaim(c *conn, p *pkt) {
	c.claim.told = true
	if c.claim.said && !c.blind {
		e.release(p, &e.stats.Matched)
		return
	}
	c.p.push(e.hold(c, p))
}

func (e *Engine) secondaryClaim(c *conn) {
	c.claim.said = true
	for c.p.len() > 0 && !c.blind {
		e.release(c.p.remove(0), &e.stats.Matched)
	}
	e.recovered(c)
}
