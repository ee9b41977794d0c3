package compare

import (
	"math/rand/v2"
	"testing"
)

// Whatever is added and removed in whatever order, the index has what a map has. Few
// hashes make many meet.
func TestAnIndexFindsWhatAMapDoes(t *testing.T) {
	for _, few := range []uint64{1, 7, 1 << 62} {
		rnd := rand.New(rand.NewPCG(few, 1))
		x, want := newIndex(), make(map[connKey]*conn)
		hash := func(k *connKey) uint64 { return x.hash(k) % few }
		for step := range 20000 {
			k := connKey{kind: kind(rnd.IntN(3))}
			k.Ports = rnd.Uint32N(200)
			k.Src[15] = byte(rnd.IntN(2))
			c := want[k]
			if got := x.find(hash(&k), &k); got != c {
				t.Fatalf("step %d: found %p, want %p", step, got, c)
			}
			switch {
			case c == nil && (len(want) < 300 || few > 7):
				c = &conn{key: k, hash: hash(&k)}
				x.add(c)
				want[k] = c
			case c != nil && rnd.IntN(2) == 0:
				x.remove(c)
				delete(want, k)
			}
			if x.n != len(want) {
				t.Fatalf("step %d: %d, want %d", step, x.n, len(want))
			}
		}
		for k, c := range want {
			if x.find(hash(&k), &k) != c {
				t.Fatalf("%v is missing", k)
			}
		}
	}
}

func TestEachPartOfAKeyChangesItsHash(t *testing.T) {
	x := newIndex()
	var none connKey
	for i, change := range []func(k *connKey){
		func(k *connKey) { k.Src[0] = 1 }, func(k *connKey) { k.Src[15] = 1 },
		func(k *connKey) { k.Dst[0] = 1 }, func(k *connKey) { k.Dst[15] = 1 },
		func(k *connKey) { k.Ports = 1 }, func(k *connKey) { k.Ports = 1 << 31 },
		func(k *connKey) { k.Proto = 1 }, func(k *connKey) { k.Kind = 1 }, func(k *connKey) { k.Layers = 1 },
		func(k *connKey) { k.VLAN = 1 }, func(k *connKey) { k.Outer = 1 }, func(k *connKey) { k.kind = 1 },
	} {
		k := none
		change(&k)
		if x.hash(&k) == x.hash(&none) || k.is(&none) || none.is(&k) || !k.is(&k) {
			t.Errorf("change %d", i)
		}
	}
}

func TestASlotHasTheNumberOfTheLastConnectionThatMayBe(t *testing.T) {
	const hash = 0xa5<<56 | 1
	if n := (Config{MaxConns: maxConns + 1}).withDefaults().MaxConns; n != maxConns {
		t.Errorf("%d connections may be, %d can be numbered", n, maxConns)
	}
	for _, n := range []int{0, 1, maxConns - 1} {
		s := slotOf(hash, n)
		if s == 0 || s.number() != n || !s.may(hash) || s.may(hash+1<<56) {
			t.Errorf("number %d: slot %#x has %d", n, s, s.number())
		}
	}
}
