package compare

import (
	"bytes"
	"slices"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
)

// strict does what colo-compare of QEMU 7.2 does (net/colo-compare.c, net/colo.c), with
// its mistakes, as far as it can be seen from outside. Only the epochs are an addition.
type strict struct {
	cfg     Config
	conns   map[strictKey]*strictConn
	list    []*strictConn // in the order of their creation
	marked  []*strictPkt
	scan    time.Time // zero: no packet has come, and Tick was not called
	passing bool      // nothing is compared
	deaf    bool      // packets of the secondary are dropped, since they are of an older epoch
	count   Stats
	taken   []instant // when the packets of the last Result came
	instant func(time.Time) instant
}

// strictKey takes the first four bytes after the IP header for ports, also those of a
// fragment.
type strictKey struct {
	addrs [8]byte
	ports [4]byte
	proto uint8
}

// strictConn is a connection, with the packets of both guests that are not compared yet.
type strictConn struct {
	proto      uint8
	p, s       []*strictPkt
	compared   uint32 // how much of the stream has been compared; 0 is unknown
	pAck, sAck uint32 // the acknowledgments of the last packets, which need not be the greatest
}

// strictPkt is a packet that waits for that of the other guest.
type strictPkt struct {
	Frame
	at       time.Time
	l4       int // offset in Data of what follows the IP header
	seq, end uint32
	ack      uint32
	data     []byte // what is compared, with padding
	off      int    // how much of data has been compared
}

func newStrict(cfg Config, in func(time.Time) instant) *strict {
	return &strict{cfg: cfg, conns: make(map[strictKey]*strictConn), instant: in}
}

func (e *strict) primary(f Frame, now time.Time) Result {
	if e.passing {
		e.count.Passed++
		e.taken = append(e.taken, e.instant(now))
		return Result{Release: []Frame{f}}
	}
	p, c := e.intake(f, now)
	if p == nil {
		e.count.Passed++
		e.taken = append(e.taken, e.instant(now))
		return Result{Release: []Frame{f}}
	}
	if len(c.p) <= e.cfg.MaxQueue {
		c.insert(&c.p, p)
		c.pAck = p.ack
	}
	return e.compare(c)
}

func (e *strict) secondary(f Frame, now time.Time) Result {
	if e.passing || e.deaf {
		e.count.Stale++
		return Result{}
	}
	s, c := e.intake(f, now)
	if s == nil {
		e.count.Dropped++
		return Result{}
	}
	if len(c.s) <= e.cfg.MaxQueue {
		c.insert(&c.s, s)
		c.sAck = s.ack
	}
	return e.compare(c)
}

// intake returns a copy of f and its connection. The connection is nil if colo-compare
// does not support the packet.
func (e *strict) intake(f Frame, now time.Time) (*strictPkt, *strictConn) {
	v := f.VNetHdr
	if v < 0 || v > 20 || len(f.Data) < packet.EthernetLen+4+v {
		return nil, nil
	}
	b := f.Data[v:]
	if packet.Ethernet(b).Type() != packet.TypeIPv4 {
		return nil, nil
	}
	l4 := packet.EthernetLen + packet.IPv4(b[packet.EthernetLen:]).HeaderLen()
	if len(b) < l4 || len(b) < packet.EthernetLen+packet.IPv4Len {
		return nil, nil
	}
	h := packet.IPv4(b[packet.EthernetLen:])
	k := strictKey{addrs: [8]byte(h[12:20]), proto: h.Proto()}
	switch l := b[l4:]; h.Proto() {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoDCCP, packet.ProtoESP, packet.ProtoSCTP, packet.ProtoUDPLite:
		if len(l) >= 4 {
			k.ports = [4]byte(l)
		}
	case packet.ProtoAH:
		if len(l) >= 8 {
			k.ports = [4]byte(l[4:])
		}
	}
	data := bytes.Clone(f.Data)
	if e.scan.IsZero() {
		e.scan = now
	}
	p := &strictPkt{Frame: Frame{data, v}, at: now, l4: v + l4}
	if k.proto == packet.ProtoTCP {
		t := packet.TCP(data[p.l4:])
		// A header that is too short or reaches beyond the frame would make
		// QEMU read what is not there.
		if len(t) < packet.TCPLen || t.HeaderLen() < packet.TCPLen || t.HeaderLen() > len(t) {
			return nil, nil
		}
		p.seq, p.ack, p.data = t.Seq(), t.Ack(), t.Payload()
		p.end = p.seq + uint32(len(p.data))
	}
	c := e.conns[k]
	if c == nil {
		if len(e.conns) > e.cfg.MaxConns {
			clear(e.conns) // with all packets that wait there
			e.list = e.list[:0]
		}
		c = &strictConn{proto: k.proto}
		e.conns[k] = c
		e.list = append(e.list, c)
	}
	return p, c
}

func (c *strictConn) insert(q *[]*strictPkt, p *strictPkt) {
	i := len(*q)
	for c.proto == packet.ProtoTCP && i > 0 && after((*q)[i-1].seq, p.seq) {
		i--
	}
	*q = slices.Insert(*q, i, p)
}

func (e *strict) compare(c *strictConn) (r Result) {
	if c.proto == packet.ProtoTCP {
		c.compareTCP(&r, e.release)
	} else {
		c.compareOther(&r, e.release)
	}
	e.count.Matched += uint64(len(r.Release))
	if r.Diverged {
		e.count.Diverged[r.Reason]++
	}
	return r
}

// release lets p leave.
func (e *strict) release(r *Result, p *strictPkt) {
	r.Release = append(r.Release, p.Frame)
	e.taken = append(e.taken, e.instant(p.at))
}

func (c *strictConn) compareTCP(r *Result, release func(*Result, *strictPkt)) {
	takeP := func() { release(r, c.p[0]); c.p = slices.Delete(c.p, 0, 1) }
	takeS := func() { c.s = slices.Delete(c.s, 0, 1) }
	for len(c.p) > 0 && len(c.s) > 0 {
		p, s := c.p[0], c.s[0]
		usedP, usedS := false, false
		if len(p.data) == 0 || c.compared != 0 && !after(p.end, c.compared) {
			takeP()
			usedP = true
		}
		if len(s.data) == 0 || c.compared != 0 && !after(s.end, c.compared) {
			takeS()
			usedS = true
		}
		if usedP || usedS {
			continue
		}
		why := ReasonData
		switch restP, restS := p.data[p.off:], s.data[s.off:]; {
		case p.seq == s.seq && p.end == s.end && bytes.Equal(p.data, s.data):
			c.compared = p.end
			takeP()
			takeS()
			continue
		case !after(p.end, s.end):
			if len(restS) >= len(restP) && bytes.Equal(restP, restS[:len(restP)]) {
				if !after(p.ack, min(c.pAck, c.sAck)) {
					c.compared = p.end
					if s.off += len(restP); s.off == len(s.data) {
						takeS()
					}
					takeP()
					continue
				}
				why = ReasonAck
			}
		case len(restP) >= len(restS) && bytes.Equal(restP[:len(restS)], restS):
			p.off += len(restS)
			c.compared = s.end
			takeS()
			continue
		}
		r.Diverged, r.Reason = true, why
		return
	}
}

func (c *strictConn) compareOther(r *Result, release func(*Result, *strictPkt)) {
	for len(c.p) > 0 && len(c.s) > 0 {
		last := len(c.p) - 1
		p := c.p[last]
		i := slices.IndexFunc(c.s, func(s *strictPkt) bool { return c.same(p, s) })
		if i < 0 {
			r.Diverged, r.Reason = true, ReasonPacket
			return
		}
		release(r, p)
		c.p = c.p[:last]
		c.s = slices.Delete(c.s, i, i+1)
	}
}

func (c *strictConn) same(p, s *strictPkt) bool {
	if len(p.Data) != len(s.Data) {
		return false
	}
	from := p.VNetHdr
	switch c.proto {
	case packet.ProtoUDP, packet.ProtoICMP:
		from = p.l4
	}
	return bytes.Equal(p.Data[from:], s.Data[from:])
}

// mark takes all packets that wait out of their queues, in the order in which QEMU
// releases them: those of TCP by sequence number, others newest first.
func (e *strict) mark() {
	for _, c := range e.list {
		if c.proto != packet.ProtoTCP {
			slices.Reverse(c.p)
		}
		e.marked = append(e.marked, c.p...)
		c.p, c.s = nil, nil
	}
	e.deaf, e.passing = true, false
}

func (e *strict) received() (r Result) {
	for _, p := range e.marked {
		e.release(&r, p)
	}
	e.count.Checkpoint += uint64(len(e.marked))
	e.marked = nil
	return r
}

func (e *strict) tick(now time.Time) (r Result) {
	if now.Before(e.scan) {
		return r
	}
	e.scan = now.Add(e.cfg.Scan)
	late := func(p *strictPkt) bool { return now.Sub(p.at) > e.cfg.Timeout }
	for _, c := range e.list {
		if slices.ContainsFunc(c.p, late) || slices.ContainsFunc(c.s, late) {
			r.Diverged, r.Reason = true, ReasonTimeout
			e.count.Diverged[ReasonTimeout]++
			break
		}
	}
	return r
}

func (e *strict) stats() Stats {
	s := e.count
	s.Conns = len(e.conns)
	s.Held = len(e.marked)
	for _, c := range e.list {
		s.Held += len(c.p) + len(c.s)
	}
	return s
}
