package guest

import (
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
	"testing"
)

// inverse returns the inverse of an odd number modulo 2^64: Newton's iteration
// doubles the right bits, of which there are three at first.
func inverse(a uint64) uint64 {
	x := a
	for range 5 {
		x *= 2 - a*x
	}
	return x
}

// taken returns what mix took into the hash before, to make x of it.
func taken(x, before uint64) uint64 { return (x^x>>32)*inverse(golden) ^ before }

// undo takes vCPU 0 from after a round, which took in t, to before it. Of the state
// before it is told which page came first, and acc.
func undo(mem []byte, r *Regs, p Params, first uint64, acc float64, t uint64) {
	le, set, pages := binary.LittleEndian, p.setBase(0), uint64(p.Pages)
	x := taken(r.X, t)
	x = taken(x, r.K)
	r.K = (r.K - r.N) * inverse(lcg)
	r.Acc = acc
	x = taken(x, math.Float64bits(acc))
	for i := range uint64(p.Touch) {
		i = uint64(p.Touch) - 1 - i
		base := set + (first+i)%pages*PageSize
		for _, word := range [2]uint64{(r.N*wordStep + i*pageStep) & pageMask, 0} {
			before := le.Uint64(mem[base+word*8:])
			le.PutUint64(mem[base+word*8:], taken(x, before))
			x = before
		}
	}
	r.X = x
	r.N--
}

// What can be undone has come from one state alone: no two of them become one. In
// every 512th round at the latest a page's two words are the same.
func TestARoundCanBeUndone(t *testing.T) {
	for _, p := range []Params{{Pages: 1, Touch: 1, Seed: 1}, {Pages: 3, Touch: 3, Seed: 2}, {Pages: 20, Touch: 17, Seed: 3, TSCPerMille: 300}} {
		p = p.withDefaults()
		mem, regs := load(t, p)
		r := &regs[0]
		set := mem[p.setBase(0):]
		before := slices.Clone(set)
		for range 600 {
			was, tsc := *r, uint64(0)
			copy(before, set)
			first, _ := bits.Mul64(r.X, uint64(p.Pages))
			if _, err := Round(mem, r, func() uint64 { tsc = r.N<<20 | 1; return tsc }, nil); err != nil {
				t.Fatal(err)
			}
			after, again := *r, slices.Clone(set)
			undo(mem, r, p, first, was.Acc, tsc)
			if *r != was || !slices.Equal(set, before) {
				t.Fatalf("%+v: round %d undone leads to %+v, it came from %+v", p, after.N, *r, was)
			}
			*r = after
			copy(set, again)
		}
	}
}

// Whatever one bit differs in, before whichever round: the guests never agree again.
func TestTwoGuestsThatDifferNeverAgreeAgain(t *testing.T) {
	rounds := uint64(1100)
	if testing.Short() {
		rounds = 200
	}
	for _, p := range []Params{{Pages: 1, Touch: 1}, {Pages: 4, Touch: 4, Seed: 5}, {Pages: 2, Touch: 1, Seed: 6}} {
		m, err := NewModel(p, 0)
		if err != nil {
			t.Fatal(err)
		}
		for n := uint64(1); n <= rounds; n++ {
			first, _ := bits.Mul64(m.x, uint64(p.Pages))
			for what, change := range map[string]func(o *Model){
				"the running hash":              func(o *Model) { o.x ^= 1 << (n % 64) },
				"the integer":                   func(o *Model) { o.k ^= 1 << (n % 64) },
				"the accumulator":               func(o *Model) { o.acc = math.Float64frombits(math.Float64bits(o.acc) ^ 1) },
				"the first word of a page":      func(o *Model) { o.page(first)[0] ^= 1 << (n % 64) },
				"the word that the round takes": func(o *Model) { o.page(first)[n*wordStep%512] ^= 1 << (n % 64) },
			} {
				if what == "the running hash" && p.Pages > 1 {
					continue // it decides which pages are touched
				}
				o, same := m.Clone(), m.Clone()
				change(o)
				for i := range uint64(3) {
					_, a := same.Next(0)
					if _, b := o.Next(0); a == b {
						t.Fatalf("%+v: another bit of %s before round %d, and the hashes agree after round %d", p, what, n, n+i)
					}
				}
			}
			m.Next(0)
		}
	}
}
