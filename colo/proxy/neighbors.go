package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/vmstate"
)

// Neighbors learns from a guest's frames under which addresses the network knows it, for
// [Announce]. On both sides the host gives it every frame that the guest sends, and
// registers it as a device. So a secondary that takes over also knows what the primary's
// guest has said long ago.
//
// It takes a MAC from each frame. It learns IP addresses from ARP and neighbor discovery
// only, since there the guest claims them as its own; the source of any other packet may
// be a host for which the guest is a router. If the host also gives it the frames that are
// sent to the guest, it forgets an address that another host claims.
//
// The zero value knows none. At most [MaxNeighbors] are kept, the latest. Its
// methods may be called from any goroutine; those of the device belong to the
// session.
type Neighbors struct {
	mu     sync.Mutex
	known  []Neighbor // in the order in which they were learned
	last   [6]byte    // the MAC of the last frame, in a VLAN of which that is known
	tags   [2]uint16
	staged neighborImage
	saved  neighborImage
}

// MaxNeighbors is how many addresses are kept of one NIC.
const MaxNeighbors = 128

// All returns the addresses that are known.
func (t *Neighbors) All() []Neighbor {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.known)
}

// FromGuest looks at a frame that the guest sends, which begins with a virtio-net
// header of vnetHdr bytes.
func (t *Neighbors) FromGuest(frame []byte, vnetHdr int) {
	l, ok := linkOf(frame, vnetHdr)
	if !ok {
		return
	}
	n := Neighbor{MAC: l.src, VLAN: l.vlan, Outer: l.outer}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.MAC != t.last || t.tags != [2]uint16{n.VLAN, n.Outer} || len(t.known) == 0 {
		if !n.valid() {
			return
		}
		if !slices.ContainsFunc(t.known, func(k Neighbor) bool {
			return k.MAC == n.MAC && k.VLAN == n.VLAN && k.Outer == n.Outer
		}) {
			t.learn(n)
		}
		t.last, t.tags = n.MAC, [2]uint16{n.VLAN, n.Outer}
	}
	if n.Addr, n.Router, ok = l.claim(); ok && n.valid() {
		t.learn(n)
	}
}

// ToGuest looks at a frame that is sent to the guest, and forgets an address that the sender
// of the frame claims.
func (t *Neighbors) ToGuest(frame []byte, vnetHdr int) {
	l, ok := linkOf(frame, vnetHdr)
	if !ok {
		return
	}
	addr, _, ok := l.claim()
	if !ok {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = [6]byte{} // its MAC may be gone with the address, and has to be learned again
	t.known = slices.DeleteFunc(t.known, func(k Neighbor) bool {
		return k.Addr == addr && k.VLAN == l.vlan && k.Outer == l.outer && k.MAC != l.src
	})
}

// learn adds n, or updates the neighbor with its addresses.
func (t *Neighbors) learn(n Neighbor) {
	for i, k := range t.known {
		switch {
		case k.MAC != n.MAC || k.VLAN != n.VLAN || k.Outer != n.Outer:
		case k.Addr == n.Addr:
			t.known[i].Router = n.Router
			return
		case k.Addr == netip.Addr{}:
			t.known[i] = n // the entry with an address replaces the one with the MAC alone
			return
		}
	}
	if len(t.known) >= MaxNeighbors {
		t.known = slices.Delete(t.known, 0, 1)
	}
	t.known = append(t.known, n)
}

// A link is the sender's side of a frame, and the frame's payload.
type link struct {
	src         [6]byte
	vlan, outer uint16
	typ         uint16
	body        []byte
}

// linkOf returns the link of a frame in at most two VLANs. ok says that it is such a
// frame.
func linkOf(frame []byte, vnetHdr int) (l link, ok bool) {
	if vnetHdr < 0 || len(frame) < vnetHdr+packet.EthernetLen {
		return l, false
	}
	b := frame[vnetHdr:]
	l.src = [6]byte(b[6:])
	for b = b[12:]; ; b = b[packet.TagLen:] {
		if len(b) < 2 {
			return l, false
		}
		l.typ = binary.BigEndian.Uint16(b)
		if l.typ != packet.TypeVLAN && l.typ != packet.TypeQinQ {
			l.body = b[2:]
			return l, true
		}
		if len(b) < packet.TagLen || l.outer != 0 {
			return l, false
		}
		if id := binary.BigEndian.Uint16(b[2:]) & 0xfff; id != 0 { // or it has a priority alone
			l.outer, l.vlan = l.vlan, id
		}
	}
}

// claim returns the address that the sender of the frame claims as its own.
func (l *link) claim() (addr netip.Addr, router, ok bool) {
	switch l.typ {
	case packet.TypeARP:
		b := l.body
		if len(b) < 28 || !bytes.Equal(b[:6], []byte{0, 1, 8, 0, 6, 4}) || [6]byte(b[8:]) != l.src {
			return addr, false, false
		}
		addr = netip.AddrFrom4([4]byte(b[14:]))
		return addr, false, single(addr)
	case packet.TypeIPv6:
		b := l.body
		if len(b) < packet.IPv6Len+8 {
			return addr, false, false
		}
		h := packet.IPv6(b)
		// A hop limit below the greatest shows that a router has forwarded the message
		// (RFC 4861 section 7.1).
		if h.Version() != 6 || h.NextHeader() != packet.ProtoICMPv6 || b[7] != 255 {
			return addr, false, false
		}
		addr = netip.AddrFrom16([16]byte(h.Src()))
		switch m := b[packet.IPv6Len:]; m[0] {
		case ndRouterSolicitation, ndSolicitation:
		case ndRouterAdvertisement:
			router = true
		case ndAdvertisement:
			if len(m) < 24 {
				return addr, false, false
			}
			router = m[4]&ndRouter != 0
			addr = netip.AddrFrom16([16]byte(m[8:]))
		default:
			return addr, false, false
		}
		return addr, router, single(addr) && !addr.Is4In6()
	}
	return addr, false, false
}

// neighborImage has the known addresses as a section has them, each as a record of
// neighborRecord bytes.
//
//	6 bytes MAC | be16 VLAN | be16 outer | byte kind (0, 4, 6) | byte 1 for a router | 16 bytes address
type neighborImage struct {
	count uint32
	data  []byte
}

const neighborRecord = 6 + 2 + 2 + 1 + 1 + 16

// Entry returns the entry under which Neighbors are registered in a vmstate.Registry.
// instance is the number of the NIC within the guest.
func (t *Neighbors) Entry(instance uint32) vmstate.Entry {
	return vmstate.Entry{Name: "lockstep-net-neighbors", Instance: instance, Version: 1, MinVersion: 1}
}

// PreSave gathers what is known. (A vmstate.PreSaver.)
func (t *Neighbors) PreSave() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := neighborImage{count: uint32(len(t.known)), data: t.saved.data[:0]}
	for _, n := range t.known {
		b := append(m.data, n.MAC[:]...)
		b = binary.BigEndian.AppendUint16(b, n.VLAN)
		b = binary.BigEndian.AppendUint16(b, n.Outer)
		router, kind, addr := byte(0), byte(0), [16]byte{}
		if n.Router {
			router = 1
		}
		switch {
		case n.Addr.Is4():
			a := n.Addr.As4()
			kind = 4
			copy(addr[:], a[:])
		case n.Addr.Is6():
			kind, addr = 6, n.Addr.As16()
		}
		m.data = append(append(b, kind, router), addr[:]...)
	}
	t.saved = m
	return nil
}

// VMState names what is known. Loaded, it takes effect in PostLoad, that is at the
// commit. It is bounded by [MaxNeighbors] and checked one by one: it fails with
// vmstate.ErrBounds or [ErrNeighbor]. (A vmstate.Device.)
func (t *Neighbors) VMState(f *vmstate.Fields) {
	m := &t.saved
	if f.Loading() {
		m = &t.staged
	}
	f.Uint32("count", &m.count)
	f.Bytes("neighbors", vmstate.Resize(f, &m.data, uint64(m.count)*neighborRecord, MaxNeighbors*neighborRecord))
	if f.Loading() && f.Err() == nil {
		if _, err := m.neighbors(); err != nil {
			f.Fail(err)
		}
	}
}

// PostLoad replaces the known addresses by those that were loaded. (A vmstate.PostLoader.)
func (t *Neighbors) PostLoad(uint32) error {
	known, err := t.staged.neighbors()
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known, t.last, t.staged = known, [6]byte{}, neighborImage{}
	return nil
}

func (m *neighborImage) neighbors() (known []Neighbor, err error) {
	for i, b := 0, m.data; len(b) >= neighborRecord; i, b = i+1, b[neighborRecord:] {
		n := Neighbor{
			MAC: [6]byte(b), VLAN: binary.BigEndian.Uint16(b[6:]), Outer: binary.BigEndian.Uint16(b[8:]),
			Router: b[11] == 1,
		}
		err := errors.New("malformed")
		switch addr := b[12:neighborRecord]; {
		case b[11] > 1:
		case b[10] == 0 && bytes.Equal(addr, make([]byte, 16)):
			err = n.check()
		case b[10] == 4 && bytes.Equal(addr[4:], make([]byte, 12)):
			n.Addr = netip.AddrFrom4([4]byte(addr))
			err = n.check()
		case b[10] == 6:
			n.Addr = netip.AddrFrom16([16]byte(addr))
			err = n.check()
		}
		if err == nil && slices.Contains(known, n) {
			err = errors.New("there twice")
		}
		if err != nil {
			return nil, fmt.Errorf("neighbor %d: %w: %w", i, ErrNeighbor, err)
		}
		known = append(known, n)
	}
	return known, nil
}
