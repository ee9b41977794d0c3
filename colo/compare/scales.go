package compare

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/gocolo/lockstep/internal/packet"
)

// ErrScales says that what was loaded is no table of scales: a connection in it is of an
// unknown kind, or is there twice, or has a scale that no window has, or its end is missing.
var ErrScales = errors.New("compare: malformed table of window scales")

// MaxScales is the greatest number of connections of which the scale of the window is kept
// where nothing is compared. Of others it is unknown then.
const MaxScales = 1 << 14

// Scales has the scales of the windows of a guest's TCP connections, which only their
// handshakes tell (RFC 7323 section 2). A host that nothing is compared on keeps it, and gives
// it to the Comparer that compares what the guest sends on these connections later
// ([Comparer.AdoptScales]). A connection that it has not seen begin is not in it.
//
// It is right if it is given all that the guest sends and is sent, as the guest has it, and
// if it is loaded anew when the guest becomes another.
//
// The zero value has none. It is used by one goroutine at a time.
type Scales struct {
	conns map[packet.Key]told // by the guest's direction, as toldOf returns it
	pkt   pkt
}

// Len returns the number of connections, those included whose handshake is not complete.
func (s *Scales) Len() int { return len(s.conns) }

// FromGuest looks at a frame that the guest sends. It begins with a virtio-net header of
// vnetHdr bytes.
func (s *Scales) FromGuest(frame []byte, vnetHdr int) {
	p := s.opening(frame, vnetHdr)
	if p == nil {
		return
	}
	var k packet.Key
	p.Key(&k)
	if _, ok := s.conns[k]; !ok && len(s.conns) >= MaxScales {
		for any := range s.conns {
			delete(s.conns, any)
			break
		}
	}
	if s.conns == nil {
		s.conns = make(map[packet.Key]told)
	}
	var t told
	t.note(p)
	s.conns[k] = toldOf(&t)
}

// ToGuest looks at a frame that is sent to the guest, as the guest gets it.
func (s *Scales) ToGuest(frame []byte, vnetHdr int) {
	if len(s.conns) == 0 {
		return
	}
	p := s.opening(frame, vnetHdr)
	if p == nil || p.flags&packet.ACK == 0 {
		return
	}
	var k packet.Key
	p.Key(&k)
	k = k.Reverse()
	t, ok := s.conns[k]
	if ok && t.answered(&p.Packet, packet.VNetOf(frame, vnetHdr), p.synOptions().scales) {
		s.conns[k] = t
	}
}

// opening returns the segment in a frame if it has a SYN, and nil otherwise.
func (s *Scales) opening(frame []byte, vnetHdr int) *pkt {
	f := Frame{frame, vnetHdr}
	if !f.fits() || len(frame) > maxFrame || !mayOpen(frame[vnetHdr:]) {
		return nil
	}
	p := &s.pkt
	p.Frame = f
	p.Parse(frame[vnetHdr:])
	if !p.IsTCP() || p.Routed || p.deep() {
		return nil
	}
	if p.parseSegment(); !p.opens() {
		return nil
	}
	return p
}

// mayOpen reports whether a frame may have a SYN. It looks at nearly all frames only once.
func mayOpen(b []byte) bool {
	const four, six = packet.EthernetLen + packet.IPv4Len, packet.EthernetLen + packet.IPv6Len
	const flags = 13 // where they are in the header
	if len(b) < four+packet.TCPLen {
		return false
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case packet.TypeIPv4:
		if b[14] == 0x45 {
			return b[23] == packet.ProtoTCP && b[four+flags]&packet.SYN != 0
		}
	case packet.TypeIPv6:
		if b[20] == packet.ProtoTCP && len(b) > six+flags {
			return b[six+flags]&packet.SYN != 0
		}
	}
	return true
}

// answered notes the options of a SYN|ACK of the peer, and reports whether it is the answer
// to the guest's SYN. scales says that the peer scales windows. v is the virtio-net header.
func (t *told) answered(p *packet.Packet, v packet.VNet, scales bool) bool {
	h := p.TCP()
	if h.Flags()&packet.SYN == 0 || !t.open || t.scaled || h.Ack() != t.isn+1 || p.Damaged(v) {
		return false // the guest drops one that is damaged
	}
	if t.scaled = true; !scales {
		t.scale = 0
	}
	return true
}

// adoptScales gives e the scales of s, of connections that it has not seen begin. Packets pass.
func (e *Engine) adoptScales(s *Scales) {
	if !e.passing || e.strict != nil {
		return
	}
	for k, t := range s.conns {
		key := connKey{Key: k, kind: kindSegment}
		h := e.conns.hash(&key)
		switch {
		case e.conns.find(h, &key) != nil:
		case e.conns.n >= e.cfg.MaxConns:
			return
		default:
			e.newConn(&key, h, e.now).tcp.told = t
		}
	}
}

// A record of a table has the connection, by the guest's direction, and the scale:
//
//	byte kind (4, 6) | byte layers | be16 VLAN | be32 outer | be32 ports |
//	16 bytes source | 16 bytes destination | byte scale
//
// Layers, VLAN and outer are what packet.Key has of the link. An address of IPv4 is followed
// by twelve zero bytes.
const scaleKey = 1 + 1 + 2 + 4 + 4 + 16 + 16 // where the scale is

// ScaleRecord is the length of a connection in a table of scales, in bytes.
const ScaleRecord = 45

func appendScale(b []byte, k *packet.Key, scale uint8) []byte {
	kind := byte(4)
	if k.Kind == packet.IP6 {
		kind = 6
	}
	b = append(b, kind, k.Layers)
	b = binary.BigEndian.AppendUint16(b, k.VLAN)
	b = binary.BigEndian.AppendUint32(b, k.Outer)
	b = binary.BigEndian.AppendUint32(b, k.Ports)
	b = append(b, k.Src[:]...)
	b = append(b, k.Dst[:]...)
	return append(b, scale)
}

// Append appends a record of [ScaleRecord] bytes to b for each connection whose scale is
// known, in ascending order.
func (s *Scales) Append(b []byte) []byte {
	records := make([][]byte, 0, len(s.conns))
	for k, t := range s.conns {
		if t.scaled {
			records = append(records, appendScale(make([]byte, 0, ScaleRecord), &k, t.scale))
		}
	}
	slices.SortFunc(records, bytes.Compare)
	for _, r := range records {
		b = append(b, r...)
	}
	return b
}

// appendScales appends the records of at most MaxScales connections, those first that were used
// last, roughly.
func (e *Engine) appendScales(b []byte) []byte {
	n := 0
	for c := e.newest; c != nil && n < MaxScales; c = c.older {
		if t := &c.tcp.told; c.key.kind == kindSegment && t.scaled {
			b = appendScale(b, &c.key.Key, t.scale)
			n++
		}
	}
	return b
}

// LoadScales returns the table that b has, as Append of a Scales or AppendScales of a
// Comparer makes it, in any order. What is none is [ErrScales].
func LoadScales(b []byte) (*Scales, error) {
	if len(b)%ScaleRecord != 0 || len(b) > MaxScales*ScaleRecord {
		return nil, fmt.Errorf("%w: %d bytes", ErrScales, len(b))
	}
	s := &Scales{conns: make(map[packet.Key]told, len(b)/ScaleRecord)}
	for n := 0; len(b) > 0; n, b = n+1, b[ScaleRecord:] {
		k := packet.Key{
			Src: [16]byte(b[12:]), Dst: [16]byte(b[28:]), Ports: binary.BigEndian.Uint32(b[8:]),
			Proto: packet.ProtoTCP, Kind: packet.IP4,
			Layers: b[1], VLAN: binary.BigEndian.Uint16(b[2:]), Outer: binary.BigEndian.Uint32(b[4:]),
		}
		if b[0] == 6 {
			k.Kind = packet.IP6
		}
		scale := b[scaleKey]
		_, twice := s.conns[k]
		var zero [12]byte
		if b[0] != 4 && b[0] != 6 || twice || scale > maxScale ||
			b[0] == 4 && ([12]byte(k.Src[4:]) != zero || [12]byte(k.Dst[4:]) != zero) {
			return nil, fmt.Errorf("%w: connection %d", ErrScales, n)
		}
		s.conns[k] = told{scale: scale, scaled: true}
	}
	return s, nil
}
