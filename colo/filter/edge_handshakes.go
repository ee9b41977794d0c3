package filter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/vmstate"
)

// halvesImage has the handshakes of an Edge that are not complete as a section has them, each
// as a record of halfRecord bytes, in ascending order of the bytes.
//
//	key, as in an edgeImage | byte bits | byte scale | be32 own | be32 time | be32 again |
//	be32 first | be32 next | be32 window | be32 sent | byte offers |
//	4 times be32 number, be32 peer, be32 time, byte timed
//
// The bits are 1 if the guest has sent a SYN, 2 if it has also answered one, and 4 if own has a
// timestamp. What follows are the fields of a conversation with these names. A record has room
// for four offers; the bytes of those that were not made are zero.
type halvesImage struct {
	count uint32
	data  []byte
}

const (
	halfScale  = edgeKey + 1
	halfOffers = halfScale + 1 + 7*4
	offerLen   = 4 + 4 + 4 + 1
	halfRecord = halfOffers + 1 + maxOffers*offerLen
)

const (
	halfByGuest = 1 << iota
	halfCrossed
	halfTimed
)

func (m *halvesImage) set(records [][halfRecord]byte) {
	slices.SortFunc(records, func(a, b [halfRecord]byte) int { return bytes.Compare(a[:], b[:]) })
	m.count = uint32(len(records))
	for i := range records {
		m.data = append(m.data, records[i][:]...)
	}
}

// vmState names the records.
func (m *halvesImage) vmState(f *vmstate.Fields) {
	f.Uint32("handshakes", &m.count)
	f.Bytes("halves", vmstate.Resize(f, &m.data, uint64(m.count)*halfRecord, MaxEdge*halfRecord))
}

// halves returns the handshakes of an Edge that has conns besides, or nil if there are none.
func (m *halvesImage) halves(conns map[packet.Key]*settled) *halves {
	h := newHalves()
	for b := m.data; len(b) >= halfRecord; b = b[halfRecord:] {
		if k := keyOf(b); len(conns)+len(h.r.conns) < MaxEdge {
			h.r.conns[k] = conversationOf(b)
		}
	}
	if h.len() == 0 {
		return nil
	}
	return h
}

func halfOf(k packet.Key, c *conversation) (r [halfRecord]byte) {
	putKey(r[:], k)
	for i, is := range [...]bool{c.byGuest, c.crossed, c.own.timed} { // in the order of the bits
		if is {
			r[edgeKey] |= 1 << i
		}
	}
	r[halfScale] = c.scale
	for i, n := range [...]uint32{c.own.seq, c.own.time, c.again, c.first, c.next, c.window, c.sent} {
		binary.BigEndian.PutUint32(r[halfScale+1+4*i:], n)
	}
	r[halfOffers] = byte(len(c.offers))
	for i, o := range c.offers {
		b := r[halfOffers+1+offerLen*i:]
		binary.BigEndian.PutUint32(b, o.seq)
		binary.BigEndian.PutUint32(b[4:], o.peer.seq)
		binary.BigEndian.PutUint32(b[8:], o.peer.time)
		if o.peer.timed {
			b[12] = 1
		}
	}
	return r
}

func conversationOf(r []byte) *conversation {
	number := func(i int) uint32 { return binary.BigEndian.Uint32(r[halfScale+1+4*i:]) }
	c := &conversation{
		carried: true,
		byGuest: r[edgeKey]&halfByGuest != 0, crossed: r[edgeKey]&halfCrossed != 0,
		own:   initial{seq: number(0), time: number(1), timed: r[edgeKey]&halfTimed != 0},
		again: number(2), first: number(3),
		life: life{next: number(4), window: number(5), sent: number(6), scale: r[halfScale]},
	}
	for b := r[halfOffers+1:]; len(c.offers) < int(r[halfOffers]); b = b[offerLen:] {
		peer := initial{seq: binary.BigEndian.Uint32(b[4:]), time: binary.BigEndian.Uint32(b[8:]), timed: b[12] != 0}
		c.offers = append(c.offers, offer{binary.BigEndian.Uint32(b), peer})
	}
	return c
}

// check checks that the records are as PreSave makes them, so that none replaces another, each has
// a state that a handshake may be in, and none is of a connection in conns, the records of an
// edgeImage.
func (m *halvesImage) check(conns []byte) error {
	var last []byte
	for n, b := 0, m.data; len(b) >= halfRecord; n, b = n+1, b[halfRecord:] {
		r := b[:halfRecord]
		bad := !isKey(r) || r[edgeKey] > halfByGuest|halfCrossed|halfTimed || r[halfScale] > maxScale ||
			r[halfOffers] > maxOffers || last != nil && bytes.Compare(last[:edgeKey], r[:edgeKey]) >= 0
		if !bad {
			c := conversationOf(r)
			bad = !c.byGuest && (c.crossed || len(c.offers) > 0) || c.window > maxWindow || halfOf(keyOf(r), c) != [halfRecord]byte(r)
		}
		for len(conns) >= edgeRecord && bytes.Compare(conns[:edgeKey], r[:edgeKey]) < 0 {
			conns = conns[edgeRecord:]
		}
		bad = bad || len(conns) >= edgeRecord && bytes.Equal(conns[:edgeKey], r[:edgeKey])
		if bad {
			return fmt.Errorf("handshake %d: %w", n, ErrEdge)
		}
		last = r
	}
	return nil
}
