package filter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/vmstate"
)

// ErrEdge says that what was loaded is no table of connections: a connection in it is of
// an unknown kind, or is there twice, or needs no translation, or has a window that no
// connection has.
var ErrEdge = errors.New("malformed table of connections")

// edgeImage has the connections of an Edge as a section has them, each as a record of
// edgeRecord bytes, in ascending order of the bytes.
//
//	byte kind (4, 6) | byte layers | be16 VLAN | be32 outer | be32 ports |
//	16 bytes source | 16 bytes destination | be32 numbers | be32 timestamps |
//	byte scale | byte answered | be32 own | be32 first
//
// Layers, VLAN and outer are what packet.Key has of the link. The ports are the
// source's and the destination's, and the source is the guest; an address of IPv4 is
// followed by twelve zero bytes. Numbers and timestamps are how far the guest is
// ahead of what the other end knows. Scale is the shift of the guest's window. If answered is
// 1 the guest has sent a SYN|ACK with the number own, which acknowledges first; else it and
// these are zero. Handshakes that are not complete follow.
type edgeImage struct {
	count uint32
	data  []byte

	handshakes halvesImage
}

const (
	edgeKey    = 1 + 1 + 2 + 4 + 4 + 16 + 16
	edgeScale  = edgeKey + 4 + 4
	edgeAnswer = edgeScale + 1
	edgeRecord = edgeAnswer + 1 + 4 + 4
)

// Entry returns the entry under which the Edge is registered in a vmstate.Registry.
// instance is the number of the NIC within the guest. A section of version 1 has no
// handshakes, and loads too.
func (e *Edge) Entry(instance uint32) vmstate.Entry {
	return vmstate.Entry{Name: "lockstep-net-edge", Instance: instance, Version: 2, MinVersion: 1}
}

// PreSave gathers the connections that are translated, and forgets those that were over
// some minutes ago. (A vmstate.PreSaver.)
func (e *Edge) PreSave() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tidy()
	records := make([][edgeRecord]byte, 0, len(e.conns))
	for k, s := range e.conns {
		records = append(records, recordOf(k, s))
	}
	m := edgeImage{data: e.saved.data[:0], handshakes: halvesImage{data: e.saved.handshakes.data[:0]}}
	if e.halves != nil {
		halves := make([][halfRecord]byte, 0, e.halves.len())
		for k, c := range e.halves.r.conns {
			switch {
			case c.closed || e.conns[k] != nil:
			case !c.known():
				halves = append(halves, halfOf(k, c))
			case c.translation() != translation{} && len(records) < MaxEdge:
				records = append(records, recordOf(k, settle(c)))
			}
		}
		m.handshakes.set(halves)
	}
	slices.SortFunc(records, func(a, b [edgeRecord]byte) int { return bytes.Compare(a[:], b[:]) })
	m.count = uint32(len(records))
	for i := range records {
		m.data = append(m.data, records[i][:]...)
	}
	e.saved = m
	return nil
}

// VMState names the connections. (A vmstate.Device.)
//
// Loading touches nothing but a staging area, which becomes what the Edge
// translates in PostLoad, that is when the checkpoint is committed; a load that is
// rolled back leaves the Edge as it was. What is loaded is bounded by [MaxEdge]
// and checked one by one: it fails with vmstate.ErrBounds or [ErrEdge].
func (e *Edge) VMState(f *vmstate.Fields) {
	m := &e.saved
	if f.Loading() {
		m = &e.staged
	}
	f.Uint32("count", &m.count)
	f.Bytes("connections", vmstate.Resize(f, &m.data, uint64(m.count)*edgeRecord, MaxEdge*edgeRecord))
	if f.Version() >= 2 {
		m.handshakes.vmState(f)
	} else if f.Loading() {
		m.handshakes = halvesImage{}
	}
	if f.Loading() && f.Err() == nil {
		if err := m.check(); err != nil {
			f.Fail(&Error{Op: "load", Offset: -1, Err: err})
		}
	}
}

// PostLoad makes what was loaded the connections of the Edge, in the place of what
// it had. (A vmstate.PostLoader.)
func (e *Edge) PostLoad(uint32) error {
	conns := make(map[packet.Key]*settled, e.staged.count)
	for b := e.staged.data; len(b) >= edgeRecord; b = b[edgeRecord:] {
		k, s := connectionOf(b)
		conns[k] = s
	}
	half := e.staged.handshakes.halves(conns)
	e.staged = edgeImage{}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conns, e.halves = conns, half
	return nil
}

func recordOf(k packet.Key, s *settled) (r [edgeRecord]byte) {
	putKey(r[:], k)
	binary.BigEndian.PutUint32(r[edgeKey:], s.seq)
	binary.BigEndian.PutUint32(r[edgeKey+4:], s.time)
	r[edgeScale] = s.scale
	if a := s.answer; a.answered {
		r[edgeAnswer] = 1
		binary.BigEndian.PutUint32(r[edgeAnswer+1:], a.own)
		binary.BigEndian.PutUint32(r[edgeAnswer+5:], a.first)
	}
	return r
}

// putKey writes k into the first edgeKey bytes of a record.
func putKey(r []byte, k packet.Key) {
	r[0] = 4
	if k.Kind == packet.IP6 {
		r[0] = 6
	}
	r[1] = k.Layers
	binary.BigEndian.PutUint16(r[2:], k.VLAN)
	binary.BigEndian.PutUint32(r[4:], k.Outer)
	binary.BigEndian.PutUint32(r[8:], k.Ports)
	copy(r[12:], k.Src[:])
	copy(r[28:], k.Dst[:])
}

// keyOf returns the key that putKey has written.
func keyOf(r []byte) (k packet.Key) {
	k = packet.Key{
		Src: [16]byte(r[12:]), Dst: [16]byte(r[28:]),
		Ports: binary.BigEndian.Uint32(r[8:]), Proto: packet.ProtoTCP, Kind: packet.IP4,
		Layers: r[1], VLAN: binary.BigEndian.Uint16(r[2:]), Outer: binary.BigEndian.Uint32(r[4:]),
	}
	if r[0] == 6 {
		k.Kind = packet.IP6
	}
	return k
}

// isKey reports whether the first edgeKey bytes of r are as putKey writes them.
func isKey(r []byte) bool {
	var zero [12]byte
	return r[0] == 6 || r[0] == 4 && bytes.Equal(r[16:28], zero[:]) && bytes.Equal(r[32:44], zero[:])
}

func connectionOf(r []byte) (k packet.Key, s *settled) {
	return keyOf(r), &settled{
		translation: translation{seq: binary.BigEndian.Uint32(r[edgeKey:]), time: binary.BigEndian.Uint32(r[edgeKey+4:])},
		life:        life{scale: r[edgeScale]},
		answer: answer{r[edgeAnswer] != 0,
			binary.BigEndian.Uint32(r[edgeAnswer+1:]), binary.BigEndian.Uint32(r[edgeAnswer+5:])},
	}
}

// check checks that the records are as PreSave makes them, so that each table has one form
// only and no record replaces another.
func (m *edgeImage) check() error {
	var last []byte
	for n, b := 0, m.data; len(b) >= edgeRecord; n, b = n+1, b[edgeRecord:] {
		r := b[:edgeRecord]
		_, s := connectionOf(r)
		switch {
		case !isKey(r),
			s.translation == translation{}, s.scale > maxScale,
			r[edgeAnswer] > 1, r[edgeAnswer] == 0 && s.answer != answer{},
			last != nil && bytes.Compare(last[:edgeKey], r[:edgeKey]) >= 0:
			return fmt.Errorf("connection %d: %w", n, ErrEdge)
		}
		last = r
	}
	return m.handshakes.check(m.data)
}
