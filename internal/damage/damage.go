// Package damage makes damaged copies of what a peer, a guest or a file says, for tests of
// what reads it: bits that flip, lengths that are wrong, an end that is missing, records that
// are missing, come twice or out of turn, and two streams in one.
package damage

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
)

// An Input is what is to be damaged.
type Input struct {
	Bytes []byte
	// Cuts are the offsets at which records begin, in ascending order. Damage is made at them
	// as often as anywhere else, and what is left out, comes twice or changes places lies
	// between them. Without any, each offset is as good as another.
	Cuts []int
}

// Copies returns n copies of in, each damaged in one to three places, with a text that says
// how. A seed gives the same copies each time. From others come the parts that are not of in.
func Copies(seed uint64, n int, in Input, others ...Input) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for i := range n {
			d := damager{Rand: rand.New(rand.NewPCG(seed, uint64(i))), in: in, others: others, p: slices.Clone(in.Bytes)}
			d.how = fmt.Sprintf("seed %d, copy %d:", seed, i)
			for range 1 + d.IntN(4)/2*d.IntN(3) {
				d.damage()
			}
			if !yield(d.how, d.p) {
				return
			}
		}
	}
}

// damager damages one copy.
type damager struct {
	*rand.Rand
	in     Input
	others []Input
	p      []byte
	how    string
}

func (d *damager) did(format string, args ...any) { d.how += " " + fmt.Sprintf(format, args...) + "." }

// at returns an offset: half of the time in what may be the head of a record.
func (d *damager) at() int {
	if len(d.p) == 0 {
		return 0
	}
	at := d.IntN(len(d.p))
	if n := len(d.in.Cuts); n > 0 && d.IntN(2) == 0 {
		at = d.in.Cuts[d.IntN(n)] + d.IntN(24)
	}
	return min(at, len(d.p)-1)
}

// cut returns an offset at which a record begins.
func (d *damager) cut(in Input) int {
	if n := len(in.Cuts); n > 0 {
		return min(in.Cuts[d.IntN(n)], len(in.Bytes))
	}
	return d.IntN(len(in.Bytes) + 1)
}

// records returns two places, the second behind the first, as a rule near to it.
func (d *damager) records() (from, to int) {
	cuts := d.in.Cuts
	if len(cuts) < 2 {
		from = d.at()
		return from, min(from+1+d.IntN(64), len(d.p))
	}
	i := d.IntN(len(cuts) - 1)
	j := min(i+1+d.IntN(1+d.IntN(4)), len(cuts)-1)
	return min(cuts[i], len(d.p)), min(cuts[j], len(d.p))
}

func (d *damager) damage() {
	switch d.IntN(8) {
	case 0:
		at, bit := d.at(), d.IntN(8)
		if len(d.p) > 0 {
			d.p[at] ^= 1 << bit
		}
		d.did("Bit %d of byte %d is flipped", bit, at)
	case 1, 2, 3:
		d.number()
	case 4:
		at := d.at()
		if d.IntN(3) == 0 {
			at = min(d.cut(d.in), len(d.p))
		}
		d.p = d.p[:at]
		d.did("It ends at %d", at)
	case 5:
		from, to := d.records()
		d.p = slices.Delete(d.p, from, to)
		d.did("Bytes %d to %d are missing", from, to)
	case 6:
		from, to := d.records()
		into := min(d.cut(d.in), len(d.p))
		if d.IntN(2) == 0 {
			into = to
		}
		d.p = slices.Insert(d.p, into, slices.Clone(d.p[from:to])...)
		d.did("Bytes %d to %d come again at %d", from, to, into)
	case 7:
		if len(d.others) == 0 || d.IntN(2) == 0 {
			from, mid := d.records()
			_, to := d.records()
			if to = max(mid, to); to > mid+1<<16 {
				to = min(mid+1+d.IntN(1<<12), len(d.p))
			}
			copy(d.p[from:to], slices.Concat(d.p[mid:to], d.p[from:mid]))
			d.did("Bytes %d to %d come behind those up to %d", from, mid, to)
			return
		}
		k := d.IntN(len(d.others))
		at, from := min(d.cut(d.in), len(d.p)), d.cut(d.others[k])
		d.p = slices.Concat(d.p[:at], d.others[k].Bytes[from:])
		d.did("From %d on it is the other one %d, from %d on", at, k, from)
	}
}

// number makes a number of one to eight bytes, in either order, one that is hard to take.
func (d *damager) number() {
	at, size := d.at(), 1<<d.IntN(4)
	if at+size > len(d.p) {
		return
	}
	field := d.p[at : at+size]
	little := d.IntN(4) == 0
	if little {
		slices.Reverse(field)
	}
	v := uint64(0)
	for _, b := range field {
		v = v<<8 | uint64(b)
	}
	top := uint64(1) << (8*size - 1)
	v = [...]uint64{0, 1, v + 1, v - 1, 2 * v, v / 2, top, top - 1, top<<1 - 1, top<<1 - 4096, v | top, 1 << d.IntN(8*size)}[d.IntN(12)]
	for i := range field {
		field[i] = byte(v >> (8 * (size - 1 - i)))
	}
	d.did("The %d bytes at %d are %#x", size, at, field)
	if little {
		slices.Reverse(field)
	}
}
