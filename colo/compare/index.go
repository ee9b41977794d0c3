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
//
// With many connections nearly each packet finds its place in the table outside the
// processor's nearest caches. A slot is as small as it can be for that reason, so that more of
// the table is in the next one.
type index struct {
	slots  []slot    // a power of two
	all    []*conn   // by number; nil: the number is free
	vacant []int     // the numbers that are free
	n      int       // connections in the table
	seed   [4]uint64 // what keys are mixed with: drawn by newIndex, the same from then on
}

// A slot has a connection's number and a part of its hash, so that a probe touches hardly any
// other connection. It is 0 if it is free.
type slot uint32

// maxConns is how many connections an index can number.
const maxConns = 1<<24 - 1

// slotOf returns the slot of the connection with a hash and a number.
func slotOf(hash uint64, number int) slot { return slot(hash>>56)<<24 | slot(number+1) }

// may reports whether a connection with the hash h can have the slot s: the next step compares keys.
func (s slot) may(h uint64) bool { return uint64(s>>24) == h>>56 }

// number returns the number in s, which is not free.
func (s slot) number() int { return int(s&maxConns) - 1 }

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

// hash4 returns the part of hash that the addresses of s give, a plain segment of IPv4. It is
// inlined, as is hashPorts.
func (x *index) hash4(s *plain) uint64 {
	return mix(uint64(s.src)^x.seed[0], uint64(s.dst)^x.seed[1])
}

// hash6 does what hash4 does, for a plain segment of IPv6.
func (x *index) hash6(s *plain) uint64 {
	b := (*[32]byte)(s.frame[packet.EthernetLen+8:])
	h := mix(binary.LittleEndian.Uint64(b[:])^x.seed[0], binary.LittleEndian.Uint64(b[16:])^x.seed[1])
	if b, d := binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[24:]); b|d != 0 {
		h = mix(h^b^x.seed[2], d^x.seed[3])
	}
	return h
}

// hashPorts returns what hash returns for the key of s, whose addresses give h.
func (x *index) hashPorts(h uint64, s *plain) uint64 {
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
		s := x.slots[i]
		if s == 0 {
			return nil
		}
		if s.may(h) {
			if c := x.all[s.number()]; c.key.is(k) {
				return c
			}
		}
	}
}

// add numbers c and puts it into the index, which must have no connection with its key, and
// fewer than maxConns.
func (x *index) add(c *conn) {
	if 2*(x.n+1) > len(x.slots) {
		x.slots = make([]slot, 2*len(x.slots))
		for _, c := range x.all {
			if c != nil {
				x.put(c)
			}
		}
	}
	if n := len(x.vacant); n > 0 {
		c.number, x.vacant = x.vacant[n-1], x.vacant[:n-1]
		x.all[c.number] = c
	} else {
		c.number = len(x.all)
		x.all = append(x.all, c)
	}
	x.put(c)
	x.n++
}

// put writes the slot of c, which has a number, into the first free place for its hash.
func (x *index) put(c *conn) {
	mask := uint64(len(x.slots) - 1)
	i := c.hash & mask
	for x.slots[i] != 0 {
		i = (i + 1) & mask
	}
	x.slots[i] = slotOf(c.hash, c.number)
}

// remove takes c out of the index, where it must be. Connections behind it move up where
// they may, so that no gap ends a search too early.
func (x *index) remove(c *conn) {
	mask := uint64(len(x.slots) - 1)
	i := c.hash & mask
	for x.slots[i] != slotOf(c.hash, c.number) {
		i = (i + 1) & mask
	}
	for j := (i + 1) & mask; x.slots[j] != 0; j = (j + 1) & mask {
		if home := x.all[x.slots[j].number()].hash & mask; (j-home)&mask >= (j-i)&mask {
			x.slots[i] = x.slots[j]
			i = j
		}
	}
	x.slots[i] = 0
	x.all[c.number] = nil
	x.vacant = append(x.vacant, c.number)
	x.n--
}
