package main

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// Two guests that were captured at two places had hardware addresses of their own, and so had
// those who talked to them; who spoke PPP over Ethernet had sessions of their own, too. A packet
// of the secondary gets the addresses and the session that the primary's flow began with, if it
// has those that the secondary's flow began with: a guest that changes them is seen.

// A station says from which hardware address to which a flow goes, and in which session.
type station struct {
	addrs   [12]byte // of the destination, and of the source
	pppoe   bool
	session uint16
}

// seen notes where the flow of p begins.
func (n *numbering) seen(p *packet.Packet) {
	k := flow(p)
	if _, ok := n.stations[k]; k != (packet.Key{}) && !ok {
		n.stations[k] = station{[12]byte(p.Frame), p.Link.PPPoE, p.Link.Session}
	}
}

// sources returns, for hardware addresses of the secondary's guest, those of the primary's. An
// address that stands for several has none.
func (n *numbering) sources(primary *numbering) map[[6]byte][6]byte {
	all := map[[6]byte][6]byte{}
	for k, s := range n.stations {
		p, ok := primary.stations[k]
		if !ok {
			continue
		}
		from, to := [6]byte(s.addrs[6:]), [6]byte(p.addrs[6:])
		if was, ok := all[from]; ok && was != to {
			to = from
		}
		all[from] = to
	}
	return all
}

// move gives p, a packet of the secondary, the place of the primary's flow. sources is what the
// method of that name returned.
func (n *numbering) move(p *packet.Packet, primary *numbering, sources map[[6]byte][6]byte) {
	k := flow(p)
	mine, his, ok := n.stations[k], station{}, false
	if k != (packet.Key{}) {
		his, ok = primary.stations[k]
	}
	if ok && mine.addrs == [12]byte(p.Frame) && (!p.Link.PPPoE || mine.session == p.Link.Session) {
		copy(p.Frame, his.addrs[:])
		if p.Link.PPPoE && his.pppoe {
			const session = 6 // from the network header backwards: behind it are the length and PPP's protocol
			binary.BigEndian.PutUint16(p.Frame[p.L3-session:], his.session)
		}
	}
	replace := func(b []byte) {
		if to, ok := sources[[6]byte(b)]; ok {
			copy(b, to[:])
		}
	}
	switch {
	case p.Kind == packet.ARP && len(p.Frame)-p.L3 >= 28:
		replace(p.Frame[6:])
		replace(p.Frame[p.L3+8:])
	case p.Kind == packet.IP6 && p.Proto == packet.ProtoICMPv6 && p.L4OK && !p.Fragment:
		for opts := neighborOptions(p.Payload()); len(opts) >= 8 && opts[1] > 0 && int(opts[1])*8 <= len(opts); opts = opts[int(opts[1])*8:] {
			if opts[0] == 1 || opts[0] == 2 { // the address of the source, or of the target (RFC 4861 section 4.6.1)
				replace(opts[2:])
			}
		}
	}
}

// neighborOptions returns the options of a message of neighbour discovery (RFC 4861 section 4)
// that a host sends.
func neighborOptions(m []byte) []byte {
	switch {
	case m[0] == 133:
		return m[8:]
	case (m[0] == 135 || m[0] == 136) && len(m) >= 24:
		return m[24:]
	}
	return nil
}
