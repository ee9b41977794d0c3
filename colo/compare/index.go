package compare

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"

	"github.com/gocolo/lockstep/internal/packet"
)

// An index finds connections by their key. It is a table with open addressing and
// linear probing, at most half full. The numbers that keys are mixed with are
// drawn for each index, so that whoever chooses ports cannot make them collide.
type index struct {
	slots []slot // a power of two
	n     int
	seed  [4]uint64
}

// A slot has the connection's hash, so that a probe touches no other one. It is free
// if there is no connection.
type slot struct {
	hash uint64
	c    *conn
}

func newIndex() index {
	x := index{slots: make([]slot, 64)}
	for i := range x.seed {
		x.seed[i] = rand.Uint64()
	}
	return x
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// hash returns a hash of all fields of k.
func (x *index) hash(k *connKey) uint64 {
	le := binary.LittleEndian.Uint64
	h := mix(le(k.Src[:])^x.seed[0], le(k.Dst[:])^x.seed[1])
	if a, b := le(k.Src[8:]), le(k.Dst[8:]); a|b != 0 { // not IPv4, whose addresses have zeroes here
		h = mix(h^a^x.seed[2], b^x.seed[3])
	}
	rest := uint64(k.VLAN)<<32 | uint64(k.kind)<<24 | uint64(k.Layers)<<16 | uint64(k.Kind)<<8 | uint64(k.Proto)
	return mix(h^uint64(k.Ports)<<32^uint64(k.Outer)^x.seed[1], rest^x.seed[3])
}

// hashPlain returns what hash returns for the key of s.
func (x *index) hashPlain(s *plain) uint64 {
	var h uint64
	if s.kind == packet.IP4 {
		b := (*[8]byte)(s.frame[packet.EthernetLen+12:])
		h = mix(uint64(binary.LittleEndian.Uint32(b[:]))^x.seed[0], uint64(binary.LittleEndian.Uint32(b[4:]))^x.seed[1])
	} else {
		b := (*[32]byte)(s.frame[packet.EthernetLen+8:])
		h = mix(binary.LittleEndian.Uint64(b[:])^x.seed[0], binary.LittleEndian.Uint64(b[16:])^x.seed[1])
		if b, d := binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[24:]); b|d != 0 {
			h = mix(h^b^x.seed[2], d^x.seed[3])
		}
	}
	rest := uint64(kindSegment)<<24 | uint64(s.kind)<<8 | packet.ProtoTCP
	return mix(h^uint64(s.ports)<<32^x.seed[1], rest^x.seed[3])
}

// is reports whether k and o are equal. It is inlined, where == would be a call for each
// packet.
func (k *connKey) is(o *connKey) bool {
	le := binary.LittleEndian.Uint64
	return k.Ports == o.Ports && le(k.Src[:]) == le(o.Src[:]) && le(k.Src[8:]) == le(o.Src[8:]) &&
		le(k.Dst[:]) == le(o.Dst[:]) && le(k.Dst[8:]) == le(o.Dst[8:]) &&
		k.Proto == o.Proto && k.Kind == o.Kind && k.Layers == o.Layers && k.VLAN == o.VLAN && k.Outer == o.Outer && k.kind == o.kind
}

// find returns the connection of k, whose hash is h, or nil.
func (x *index) find(h uint64, k *connKey) *conn {
	for i := h & uint64(len(x.slots)-1); ; i = (i + 1) & uint64(len(x.slots)-1) {
		s := &x.slots[i]
		if s.c == nil || s.hash == h && s.c.key.is(k) {
			return s.c
		}
	}
}

// add puts c into the index, which must have no connection with its key.
func (x *index) add(c *conn) {
	if 2*(x.n+1) > len(x.slots) {
		old := x.slots
		x.slots = make([]slot, 2*len(old))
		for _, s := range old {
			if s.c != nil {
				x.put(s)
			}
		}
	}
	x.put(slot{c.hash, c})
	x.n++
}

func (x *index) put(s slot) {
	mask := uint64(len(x.slots) - 1)
	i := s.hash & mask
	for x.slots[i].c != nil {
		i = (i + 1) & mask
	}
	x.slots[i] = s
}

// remove takes c out of the index, where it must be. Connections behind it move up where
// they may, so that no gap ends a search too early.
func (x *index) remove(c *conn) {
	mask := uint64(len(x.slots) - 1)
	i := c.hash & mask
	for x.slots[i].c != c {
		i = (i + 1) & mask
	}
	for j := (i + 1) & mask; x.slots[j].c != nil; j = (j + 1) & mask {
		if home := x.slots[j].hash & mask; (j-home)&mask >= (j-i)&mask {
			x.slots[i] = x.slots[j]
			i = j
		}
	}
	x.slots[i] = slot{}
	x.n--
}
