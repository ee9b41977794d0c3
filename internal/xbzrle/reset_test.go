package xbzrle

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// A cache that was emptied keeps, gives up and finds pages as a new one does.
func TestACacheThatWasEmptiedIsAsANewOne(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	again := NewCache(64, 10*64)
	for round := range 100 {
		again.Reset()
		one := NewCache(64, 10*64)
		for range rnd.IntN(100) {
			key := rnd.Uint64N(30)
			switch rnd.IntN(4) {
			case 0, 1:
				fill := bytes.Repeat([]byte{byte(rnd.Uint32())}, 64)
				copy(again.Put(key), fill)
				copy(one.Put(key), fill)
			case 2:
				if got, want := again.Get(key), one.Get(key); !bytes.Equal(got, want) || (got == nil) != (want == nil) {
					t.Fatalf("round %d: page %d is %x, in a new one %x", round, key, got, want)
				}
			case 3:
				again.Drop(key)
				one.Drop(key)
			}
			if again.Len() != one.Len() {
				t.Fatalf("round %d: %d pages, in a new one %d", round, again.Len(), one.Len())
			}
		}
	}
}
