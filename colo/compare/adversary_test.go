package compare_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/internal/require"
)

// Two guests that keep to no protocol say whatever a frame may be, mostly both the same,
// while checkpoints come and go. What leaves is held to what a guest that may go on has
// said: each byte at its place of the stream, each event, and of what is no stream the
// frame itself, but for the fields that the package comment names.

// A testimony is what a guest has said.
type testimony struct {
	facts map[string]bool
	acks  map[string]uint32
	words map[string]int
}

func newTestimony() *testimony {
	return &testimony{map[string]bool{}, map[string]uint32{}, map[string]int{}}
}

func (w *testimony) clone() *testimony {
	c := newTestimony()
	for k := range w.facts {
		c.facts[k] = true
	}
	for k, v := range w.acks {
		c.acks[k] = v
	}
	for k, v := range w.words {
		c.words[k] = v
	}
	return c
}

// lives are the initial numbers that connections begin with. Numbers near one of them
// belong to it.
var lives = [...]uint32{0x20000000, 0x40000000, 0x7ffffff0, 0xfffffff0}

func lifeOf(seq uint32) int {
	for i, n := range lives {
		if int32(seq-n) > -1<<20 && int32(seq-n) < 1<<20 {
			return i
		}
	}
	return -1
}

// says lists the facts of a segment, and returns its flow, its acknowledgment and whether it
// has one.
func says(p *packet.Packet) (flow string, facts []string, ack uint32, has bool) {
	h := p.TCP()
	var k packet.Key
	p.Key(&k)
	seq, flags := h.Seq(), h.Flags()
	flow = fmt.Sprintf("%x %x/%d", linkOf(p), k, lifeOf(seq))
	say := func(format string, args ...any) { facts = append(facts, flow+fmt.Sprintf(format, args...)) }
	if flags&packet.RST != 0 {
		flags &^= packet.SYN | packet.FIN // nobody looks at them then
	}
	if flags&packet.SYN != 0 {
		opts := map[byte]string{} // of several of a kind the last one counts
		for kind, data, rest, ok := packet.NextOption(h.Options()); ok; kind, data, rest, ok = packet.NextOption(rest) {
			switch {
			case kind == packet.OptMSS && len(data) == 2, kind == packet.OptWScale && len(data) == 1:
				opts[kind] = string(data)
			case kind == packet.OptTimestamps && len(data) == 8, kind == packet.OptSACKPermit:
				opts[kind] = ""
			}
		}
		// The guests' initial numbers differ.
		facts = append(facts, fmt.Sprintf("%x %x SYN%q", linkOf(p), k, opts))
		if flags&packet.FIN != 0 {
			facts = append(facts, fmt.Sprintf("%x %x SYN FIN", linkOf(p), k))
		}
		flags &^= packet.FIN
		seq++
	}
	for i, b := range h.Payload() {
		say(" %d=%d", seq+uint32(i), b)
	}
	if flags&packet.FIN != 0 {
		say(" FIN %d", seq+uint32(len(h.Payload())))
	}
	if flags&packet.RST != 0 {
		facts = append(facts, fmt.Sprintf("%x %x RST", linkOf(p), k))
	}
	return flow, facts, h.Ack(), flags&packet.ACK != 0
}

// linkOf returns what tells networks apart: the tags, without their priorities, and what
// PPP over Ethernet says.
func linkOf(p *packet.Packet) []byte {
	b := bytes.Clone(p.Frame[12:p.L3])
	for i := range p.Tags {
		b[4*i+2] &= 0x0f
	}
	if p.Link.PPPoE {
		clear(b[len(b)-4 : len(b)-2]) // its length
	}
	return b
}

// word is what two frames have in common that are the same to a comparison packet by
// packet.
func word(f compare.Frame) string {
	var p packet.Packet
	kind := p.ParseVNet(f.Data, f.VNetHdr)
	switch {
	case kind == packet.ARP && len(p.Frame) >= p.L3+28:
		return fmt.Sprintf("%x claims %x", linkOf(&p), p.Frame[p.L3+8:p.L3+18])
	case kind != packet.IP4 && kind != packet.IP6:
		return fmt.Sprintf("%x", p.Frame[min(12, len(p.Frame)):])
	}
	b := bytes.Clone(p.Frame[p.L3:p.End])
	head := b[:p.L4-p.L3]
	if kind == packet.IP4 {
		head[1], head[8] = 0, 0
		clear(head[4:6])
		clear(head[10:12])
	} else {
		head[0], head[7] = 0x60, 0
		clear(head[1:4])
		next := head[6]
		for at := 40; at < len(head); { // the identifications of fragments
			n := 8 * (1 + int(head[at+1]))
			switch next {
			case packet.ProtoFragment:
				n = 8
				clear(head[at+4 : at+8])
			case packet.ProtoAH:
				n = 4 * (2 + int(head[at+1]))
			}
			next, at = head[at], at+n
		}
	}
	if p.L4OK && !p.Fragment { // it is compared from its header on
		var k packet.Key
		p.Key(&k)
		return fmt.Sprintf("%x %x %x", linkOf(&p), k, p.Payload())
	}
	return fmt.Sprintf("%x %x", linkOf(&p), b)
}

// learn takes in what a guest says.
func (w *testimony) learn(f compare.Frame) {
	var p packet.Packet
	if p.ParseVNet(f.Data, f.VNetHdr); !p.IsTCP() {
		w.words[word(f)]++
		return
	}
	flow, facts, ack, has := says(&p)
	for _, x := range facts {
		w.facts[x] = true
	}
	if h := p.TCP(); h.Flags()&(packet.SYN|packet.FIN|packet.RST) == packet.SYN|packet.FIN {
		w.facts[fmt.Sprintf("%s FIN %d", flow, h.Seq()+1+uint32(len(h.Payload())))] = true
	} else if h.Flags()&packet.FIN != 0 && len(h.Payload()) == 0 && slices.Contains(lives[:], h.Seq()-1) {
		var k packet.Key
		p.Key(&k)
		w.facts[fmt.Sprintf("%x %x SYN FIN", linkOf(&p), k)] = true // it is the same, said apart
	}
	if old, ok := w.acks[flow]; has && (!ok || int32(ack-old) > 0) {
		w.acks[flow] = ack
	}
}

// lacks returns what of a frame the guest has not said.
func (w *testimony) lacks(f compare.Frame) string {
	var p packet.Packet
	if kind := p.ParseVNet(f.Data, f.VNetHdr); !p.IsTCP() {
		if w.words[word(f)] > 0 {
			if kind != packet.ARP {
				w.words[word(f)]--
			}
			return ""
		}
		return "the frame"
	}
	flow, facts, ack, has := says(&p)
	for _, x := range facts {
		if !w.facts[x] {
			return x
		}
	}
	if old, ok := w.acks[flow]; has && (!ok || int32(ack-old) > 0) {
		return fmt.Sprintf("%s acknowledgment %d: %d (%t)", flow, ack, old, ok)
	}
	return ""
}

// doubtful reports whether a frame cannot be compared, and so may leave by a checkpoint
// only: its headers contradict each other, or its virtio-net header contradicts them.
func doubtful(f compare.Frame) bool {
	var p packet.Packet
	switch p.ParseVNet(f.Data, f.VNetHdr) {
	case packet.Malformed, packet.Other:
		return true
	case packet.ARP:
		return len(p.Frame) < p.L3+28
	}
	if !p.IsTCP() {
		return !p.L4OK && !p.Fragment && slices.Contains([]uint8{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMP, packet.ProtoICMPv6}, p.Proto)
	}
	h := packet.VNetOf(f.Data, f.VNetHdr)
	if h == nil {
		return false
	}
	right := byte(packet.GSOTCPv4)
	if p.Kind == packet.IP6 {
		right = packet.GSOTCPv6
	}
	gso := h.GSOType() &^ packet.GSOECN
	return h.Flags()&packet.VNetNeedsCsum != 0 && !h.PartialChecksum(&p, packet.TCPChecksumAt) ||
		gso != packet.GSONone && gso != right
}

// An adversary is the two guests, and what happens between them.
type adversary struct {
	t      testing.TB
	choose func(int) int
	cfg    compare.Config
	e      *both
	now    time.Time
	vnet   int
	trace  []string

	told, base *testimony
	pending    map[uint64]*testimony
	at         [2]map[string]place // where each guest is, by its flow
	marked     map[string]place    // the primary's at the last mark
	next       uint64
	committed  uint64
	hears      bool
	wrong      uint32 // where the bytes of the secondary's guest begin to differ; 0: nowhere
	left       int
	clock      uint32            // of the primary's guest, for timestamps
	newest     map[string]uint32 // the timestamp that has left last, by flow
}

func (a *adversary) fail(format string, args ...any) {
	a.t.Helper()
	for _, l := range a.trace {
		a.t.Log(l)
	}
	a.t.Fatalf(format, args...)
}

func (a *adversary) note(format string, args ...any) {
	a.trace = append(a.trace, fmt.Sprintf(format, args...))
}

func (a *adversary) pick(list ...string) string { return list[a.choose(len(list))] }

// options are those of a segment, well-formed or not.
func (a *adversary) options() string {
	var o string
	switch a.choose(8) {
	case 0, 1, 2:
		a.clock += uint32(a.choose(2))
		o = wireTimes(a.clock, 7)
	case 3:
		o = wireMSS + wireSACKOK + wireWindow7
		if a.choose(2) == 0 {
			o += "\x22\x0acookie's" // data with a SYN (RFC 7413)
		}
	case 4:
		now := string(binary.BigEndian.AppendUint32(nil, a.clock))
		o = a.pick("\x08\x0a\x00\x00\x00\x01\x00\x00\x00\x02\x08\x0a"+now+"\x00\x00\x00\x02\x01\x01", // twice
			"\x08\x00\x01\x01", "\x08\x01\x01\x01", "\x08\xff\x01\x01", "\x05\x02\x01\x01", "\x05\x0b\x01\x01\x01\x01\x01\x01\x01\x01\x01\x00",
			"\x13\x12"+strings.Repeat("m", 16)+"\x01\x01", "\x1d\x10"+strings.Repeat("a", 14), "\x00\x08\x0a\x00")
	case 5:
		o = strings.Repeat("\x01", 40)
	case 6: // selective acknowledgments, as many as there is room for, at an odd place or not
		b := []byte{1, 1, 5, byte(2 + 8*(1+a.choose(4)))}
		for range (int(b[3]) - 2) / 4 {
			b = binary.BigEndian.AppendUint32(b, uint32(5000+a.choose(60)))
		}
		if o = string(b); a.choose(2) == 0 {
			o = o[1:] + "\x01"
		}
	}
	return o
}

// segment is one of a connection, whose bytes follow from their places.
func (a *adversary) segment(guest int) (h []byte) {
	life := lives[a.choose(len(lives))]
	if a.choose(4) > 0 {
		life = lives[3] // whose numbers wrap
	}
	flags := []byte{packet.ACK, packet.ACK | packet.PSH, packet.ACK, packet.ACK | packet.PSH, packet.SYN, packet.SYN | packet.ACK, packet.FIN | packet.ACK,
		packet.RST, packet.RST | packet.ACK, packet.ACK | packet.URG, packet.SYN | packet.FIN, packet.SYN | packet.RST, packet.FIN, 0, packet.ACK | 0x40, packet.ACK | 0xc0}[a.choose(16)]
	seq, n := life+1+uint32(a.choose(12)), 0
	if a.choose(3) > 0 {
		n = a.choose(12)
	}
	if flags&packet.SYN != 0 {
		if seq = life; a.choose(3) > 0 {
			n = 0
		}
	}
	opts := a.options()
	h = make([]byte, 20)
	binary.BigEndian.PutUint16(h, 80)
	binary.BigEndian.PutUint16(h[2:], uint16(a.choose(2)))
	binary.BigEndian.PutUint32(h[4:], seq)
	binary.BigEndian.PutUint32(h[8:], life*3+uint32(a.choose(40)))
	opts += strings.Repeat("\x00", -len(opts)&3)
	h[12], h[13] = byte(20+len(opts))<<2, flags
	if a.choose(8) == 0 {
		h[12] |= 1 // it counts marks of congestion
	}
	binary.BigEndian.PutUint16(h[14:], uint16(a.choose(3)*500))
	h = append(h, opts...)
	if flags&packet.SYN != 0 {
		seq++
	}
	for i := range uint32(n) {
		b := byte(seq+i) * 7
		if guest == 1 && a.wrong > 0 && seq+i-life >= a.wrong {
			b ^= 0x80
		}
		h = append(h, b)
	}
	return h
}

// chain puts extension headers before what has the number proto.
func (a *adversary) chain(proto byte, payload []byte) []byte {
	next := proto
	for range 1 + a.choose(3) {
		var h []byte
		kind := []byte{packet.ProtoHopByHop, packet.ProtoDestOpts, packet.ProtoRouting, packet.ProtoFragment, packet.ProtoAH}[a.choose(5)]
		switch h = []byte{next, 0, 1, 4, 0, 0, 0, byte(a.choose(2))}; kind {
		case packet.ProtoFragment:
			h[2], h[3] = 0, byte(a.choose(5)*a.choose(3)) // atomic, or one of several
		case packet.ProtoAH:
			h = append(h, 0, 0, 0, byte(a.choose(2)), 'i', 'c', 'v', '.')
			h[1] = 2
		case packet.ProtoRouting:
			h[3] = 0
		}
		payload, next = append(h, payload...), kind
	}
	return v6(next, payload)
}

// frame is anything. It is no function of the guest but for the bytes of its streams.
func (a *adversary) frame(guest int) []byte {
	h := a.segment(guest)
	var f []byte
	switch k := a.choose(24); k {
	case 0, 1, 2, 3, 4, 5, 6, 7, 8:
		f = sealed(wireIPv4(6, 0, h))
	case 9, 10, 11, 12:
		f = sealed(v6(6, h))
	case 13:
		f = sealed(a.chain(6, h))
	case 14:
		f = wireIPv4(6, uint16(a.choose(3))|0x2000*uint16(a.choose(2)), h[:8+a.choose(len(h)-7)])
	case 15:
		f = wireDatagram(uint16(53+a.choose(2)), 5000, a.pick("a", "b", "cc"))
	case 16:
		f = wireIPv4(1, 0, []byte{byte(a.choose(2) * 8), 0, 1, 1, 0, 1, 0, byte(a.choose(3)), 'x'})
		switch a.choose(3) {
		case 0: // groups that a guest joins, or leaves (IGMP, MLD)
			f = wireIPv4(2, 0, []byte{byte(0x16 + a.choose(2)), 0, 0, 0, 224, 0, 0, byte(a.choose(3))})
		case 1:
			f = v6(packet.ProtoHopByHop, append([]byte{packet.ProtoICMPv6, 0, 5, 2, 0, 0, 1, 0,
				byte(131 + a.choose(2)), 0, 0, 0, 0, 0, 0, 0, 0xff, 2}, make([]byte, 13)...))
			f = append(f, byte(a.choose(3)))
			binary.BigEndian.PutUint16(f[18:], uint16(len(f)-54))
		}
	case 17: // tunnels
		f = wireIPv4([]byte{4, 47, 41, 50, 51, 2, 132}[a.choose(7)], 0, h)
	case 18:
		f = append(make([]byte, 12), 8, 6, 0, 1, 8, 0, 6, 4, 0, byte(1+a.choose(2)), 2, 0, 0, 0, 0, byte(a.choose(2)), 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 9)
	case 19: // options of IPv4
		f = wireIPv4(6, 0, append([]byte(a.pick("\x01\x01\x01\x00", "\x94\x04\x00\x00", "\x07\x03\x04\x00")), h...))
		f[14] = 0x46
		f = sealed(f)
	case 20: // lengths that lie
		f = wireIPv4(6, 0, h)
		binary.BigEndian.PutUint16(f[16:], uint16(a.choose(80)))
	case 21:
		f = v6([]byte{6, 0, 59, 58, 17}[a.choose(5)], h)
		binary.BigEndian.PutUint16(f[18:], uint16(a.choose(60)))
	case 22: // a data offset that lies
		h[12] = byte(a.choose(16)) << 4
		f = sealed(wireIPv4(6, 0, h))
	default:
		f = append(make([]byte, 12), a.pick("\x08\x00", "\x88\x63", "\x88\x47", "\x00\x26", "\x91\x00", "\x81\x00", "\x88\x64\x11\x00\x00\x01\x00\x02")...)
		f = append(f, h[:a.choose(len(h))]...)
	}
	tag := func(tpid string, id byte) { f = slices.Insert(f, 12, []byte(tpid+"\x00"+string(id))...) }
	switch a.choose(16) {
	case 0:
		tag(a.pick("\x81\x00", "\x88\xa8"), byte(a.choose(2)))
	case 1:
		tag("\x81\x00", byte(a.choose(2)))
		tag(a.pick("\x81\x00", "\x88\xa8"), byte(a.choose(2)))
	case 2:
		tag("\x81\x00", 1)
		tag("\x81\x00", 2)
		tag("\x88\xa8", byte(a.choose(2)))
	case 3:
		proto := "\x00\x21"
		if f[12] == 0x86 {
			proto = "\x00\x57"
		}
		n := len(f) - 14 + 2
		f = slices.Concat(f[:12], []byte{0x88, 0x64, 0x11, 0, 0, byte(a.choose(2)), byte(n >> 8), byte(n)}, []byte(proto), f[14:])
		if a.choose(2) == 0 {
			tag("\x81\x00", 3)
		}
	case 4:
		f = append(f, make([]byte, max(0, 60-len(f)))...)
	case 5:
		f = f[:a.choose(len(f)+1)]
	}
	return sealed(f)
}

func sealed(f []byte) []byte {
	var p packet.Packet
	if p.Parse(f); p.IsTCP() {
		p.TCP().SetChecksum(p.TCPChecksum())
	}
	return f
}

// wrap puts a virtio-net header before a frame.
func (a *adversary) wrap(f []byte) compare.Frame {
	if a.vnet == 0 {
		return compare.Frame{Data: f}
	}
	h := make([]byte, a.vnet)
	var p packet.Packet
	p.Parse(f)
	switch a.choose(6) {
	case 0: // partial, as it ought to be
		if p.IsTCP() {
			h[0] = packet.VNetNeedsCsum
			binary.LittleEndian.PutUint16(h[6:], uint16(p.L4))
			binary.LittleEndian.PutUint16(h[8:], packet.TCPChecksumAt)
			p.TCP().SetChecksum(p.PseudoSum())
		}
	case 1:
		h[1] = []byte{0, 1, 3, 4, 5, 0x81, 0x84, 0x21}[a.choose(8)]
		binary.LittleEndian.PutUint16(h[2:], uint16(a.choose(90)))
		binary.LittleEndian.PutUint16(h[4:], uint16(a.choose(9)))
	case 2:
		h[0] = byte(a.choose(8))
		binary.LittleEndian.PutUint16(h[6:], uint16(a.choose(120)))
		binary.LittleEndian.PutUint16(h[8:], uint16(a.choose(30)))
		if p.IsTCP() && packet.VNet(h).PartialChecksum(&p, packet.TCPChecksumAt) {
			p.TCP().SetChecksum(p.PseudoSum())
		}
	}
	return compare.Frame{Data: append(h, f...), VNetHdr: a.vnet}
}

// check holds what leaves to the promises.
func (a *adversary) check(r compare.Result, receipt bool) {
	a.t.Helper()
	for _, f := range r.Release {
		a.left++
		a.note("  left %x", f.Data)
		if doubtful(f) {
			if !receipt {
				a.fail("what cannot be compared leaves: %x", f.Data)
			}
			continue
		}
		why := a.base.lacks(f)
		for _, k := range a.pending {
			if why == "" {
				why = k.lacks(f)
			}
		}
		if why != "" {
			a.fail("a frame leaves, and a guest that may go on has not said %s\n%x", why, f.Data)
		}
		var p packet.Packet
		if p.ParseVNet(f.Data, f.VNetHdr); !p.IsTCP() {
			continue
		}
		a.checkStamp(&p)
		want := p.TCPChecksum()
		if packet.VNetOf(f.Data, f.VNetHdr).PartialChecksum(&p, packet.TCPChecksumAt) {
			if f.Data[6]|f.Data[8] == 0 {
				continue
			}
			want = p.PseudoSum()
		}
		if got := p.TCP().Checksum(); got != want {
			a.fail("its checksum is %#x and not %#x: %x", got, want, f.Data)
		}
	}
}

// checkStamp refuses a timestamp that is older than one before it, since a peer drops the
// segment.
func (a *adversary) checkStamp(p *packet.Packet) {
	a.t.Helper()
	flow, _, _, _ := says(p)
	stamp, has := uint32(0), false
	for kind, data, rest, ok := packet.NextOption(p.TCP().Options()); ok; kind, data, rest, ok = packet.NextOption(rest) {
		if kind == packet.OptTimestamps && len(data) == 8 {
			stamp, has = binary.BigEndian.Uint32(data), true
		}
	}
	newest, known := a.newest[flow]
	switch {
	case !has || p.Signed():
	case known && int32(newest-stamp) > 0:
		a.fail("the timestamp %d leaves after %d: %x", stamp, newest, p.Frame)
	default:
		a.newest[flow] = stamp
	}
}

func (a *adversary) receive(epoch uint64) {
	if k := a.pending[epoch]; k != nil {
		a.base = k
		for e := range a.pending {
			if e <= epoch {
				delete(a.pending, e)
			}
		}
	}
}

// wild reports whether a segment is nothing that even these guests say: its numbers are
// nowhere near those of the connection, so that none can be said to be greater than another,
// or the primary's guest takes back what it has said.
func (a *adversary) wild(guest int, f compare.Frame) bool {
	var p packet.Packet
	if p.ParseVNet(f.Data, f.VNetHdr); !p.IsTCP() {
		return false
	}
	h := p.TCP()
	life := lifeOf(h.Seq())
	if doubtful(f) && h.Flags()&packet.SYN != 0 {
		return true // what the engine does not look into begins no connection
	}
	if life < 0 || uint32(int32(h.Ack()-lives[life]*3)+1<<20) > 1<<21 {
		return true
	}
	for i, b := range h.Payload() { // a retransmission has the same bytes
		if guest == 0 && b != streamed(h, i) {
			return true
		}
	}
	var k packet.Key
	p.Key(&k)
	flow := fmt.Sprintf("%x %x", linkOf(&p), k)
	c, ok := a.at[guest][flow]
	from := h.Seq()
	opens := h.Flags()&(packet.SYN|packet.RST) == packet.SYN
	if opens {
		from++
	}
	switch {
	case ok && c.life == life:
	case !opens && (ok || life != len(lives)-1):
		return true
	default:
		c = place{life, from, from}
	}
	if h.Flags()&packet.RST == 0 {
		if int32(from-c.from) < 0 || int32(c.to-from) < 0 {
			return true // a stream has no holes
		}
		c.to += uint32(max(0, int32(from+uint32(len(h.Payload()))-c.to)))
	}
	a.at[guest][flow] = c
	return false
}

// A place is how much of a stream a guest has said, and of which connection.
type place struct {
	life     int
	from, to uint32
}

// streamed returns the byte of both guests' streams that a segment has at a place of its data.
func streamed(h packet.TCP, i int) byte {
	if h.Flags()&packet.SYN != 0 {
		i++
	}
	return byte(h.Seq()+uint32(i)) * 7
}

func (a *adversary) say(guest int, f compare.Frame) {
	if a.wild(guest, f) {
		return
	}
	if guest == 0 {
		a.note("P %x", f.Data)
		a.told.learn(f)
		a.check(a.e.Primary(f, a.now), false)
		return
	}
	a.note("S %x", f.Data)
	if a.hears {
		a.base.learn(f)
	}
	a.check(a.e.Secondary(f, a.now), false)
}

func (a *adversary) step() {
	a.now = a.now.Add(time.Duration(a.choose(20)) * time.Millisecond)
	switch k := a.choose(64); {
	case k < 30: // both say the same, or nearly
		f := a.wrap(a.frame(0))
		g := compare.Frame{Data: bytes.Clone(f.Data), VNetHdr: f.VNetHdr}
		if len(g.Data) > a.vnet+14 && a.choose(6) == 0 {
			g.Data[a.vnet+a.choose(len(g.Data)-a.vnet)] ^= 1 << a.choose(8)
			if a.vnet == 0 || g.Data[0]&packet.VNetNeedsCsum == 0 {
				sealed(g.Data[a.vnet:])
			}
		}
		if first := a.choose(2); first == 0 {
			a.say(0, f)
			a.say(1, g)
		} else {
			a.say(1, g)
			a.say(0, f)
		}
	case k < 42:
		a.say(0, a.wrap(a.frame(0)))
	case k < 52:
		a.say(1, a.wrap(a.frame(1)))
	case k < 54:
		a.wrong = uint32(a.choose(20))
	case k == 54:
		a.note("mark %d", a.next)
		if err := a.e.Mark(a.next); err != nil {
			a.fail("%v", err)
		}
		a.pending[a.next], a.marked = a.told.clone(), maps.Clone(a.at[0])
		a.next++
		a.hears = false
	case k == 55 && a.next > 0:
		a.note("receipt %d", a.next-1)
		a.receive(a.next - 1)
		r, err := a.e.Received(a.next - 1)
		if err != nil {
			a.fail("%v", err)
		}
		a.check(r, true)
	case k < 58 && a.next > a.committed:
		a.committed = a.next
		a.note("commit %d", a.next-1)
		a.receive(a.next - 1)
		r, err := a.e.SecondaryMark(a.next - 1)
		if err != nil {
			a.fail("%v", err)
		}
		a.hears, a.wrong, a.at[1] = true, 0, maps.Clone(a.marked)
		a.check(r, true)
	case k == 58:
		a.now = a.now.Add(time.Duration(a.choose(3)) * time.Second)
		a.check(a.e.Tick(a.now), false)
	case k < 61:
		a.check(a.e.Tick(a.now), false)
	case k < 63: // the peer
		f := a.frame(0)
		if len(f) >= 38 && f[12] == 8 {
			f[34], f[35], f[36], f[37] = f[36], f[37], f[34], f[35]
			copy(f[26:], []byte{10, 0, 0, 2, 10, 0, 0, 1})
		}
		a.e.Inbound(a.wrap(f))
	}
	if s := a.e.Stats(); s.HeldBytes > a.cfg.MaxBytes+1<<12 {
		a.fail("%+v", s)
	}
}

func newAdversary(t testing.TB, choose func(int) int) *adversary {
	cfg := modelConfig(choose)
	cfg.MaxConns = 64 // a connection that is forgotten may begin anew
	return &adversary{
		t: t, choose: choose, cfg: cfg, e: newBoth(t, cfg), now: time.Unix(1000, 0),
		vnet: []int{0, 0, 10, 12, 20, 24}[choose(6)],
		told: newTestimony(), base: newTestimony(), pending: map[uint64]*testimony{}, hears: true,
		at: [2]map[string]place{{}, {}}, clock: 1<<32 - 20, newest: map[string]uint32{},
	}
}

func (a *adversary) end() {
	r := a.e.Failover()
	a.left += len(r.Release)
	if s := a.e.Stats(); s.Held != 0 || s.HeldBytes != 0 {
		a.fail("%+v", s)
	}
}

func TestNothingLeavesThatNoSurvivorHasSaid(t *testing.T) {
	seeds := uint64(60)
	if !require.Sampled() {
		seeds = 2000
	}
	matched := uint64(0)
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(seed, 19))
		a := newAdversary(t, rnd.IntN)
		a.note("seed %d", seed)
		for range 400 {
			a.step()
		}
		matched += a.e.Stats().Matched
		a.end()
	}
	if matched < 20*seeds {
		t.Errorf("%d packets matched in %d runs: nothing was tried", matched, seeds)
	}
}

func FuzzNothingLeavesThatNoSurvivorHasSaid(f *testing.F) {
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 20))
		b := make([]byte, 3000)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		a := newAdversary(t, func(n int) int {
			if len(script) == 0 || n < 2 {
				return 0
			}
			b := script[0]
			script = script[1:]
			return int(b) % n
		})
		for len(script) > 0 {
			a.step()
		}
		a.end()
	})
}
