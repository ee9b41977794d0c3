package ram

import (
	"bytes"
	"compress/zlib"
	"math/rand/v2"
	"testing"
)

// An inflater that has had other pages, whole and damaged ones, takes the next as a new one does.
func TestAnInflaterTakesAPageAsANewOneDoes(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var again inflater
	bad := 0
	for i := range 400 {
		page := bytes.Repeat([]byte{byte(i), byte(i >> 3)}, PageSize/2)
		for range rnd.IntN(2000) {
			page[rnd.IntN(len(page))] = byte(rnd.Uint32())
		}
		if rnd.IntN(6) == 0 {
			page = page[:rnd.IntN(len(page))]
		}
		var z bytes.Buffer
		w := zlib.NewWriter(&z)
		w.Write(page)
		w.Close()
		p := z.Bytes()
		switch rnd.IntN(4) {
		case 0:
			p[rnd.IntN(len(p))] ^= 1 << rnd.IntN(8)
		case 1:
			p = p[:rnd.IntN(len(p))]
		}
		var one inflater
		got, e := again.page(p)
		want, f := one.page(p)
		if !bytes.Equal(got, want) || (e == nil) != (f == nil) || e != nil && e.Error() != f.Error() {
			t.Fatalf("page %d: %d bytes, %v; of a new one %d, %v", i, len(got), e, len(want), f)
		}
		if e != nil {
			bad++
		}
	}
	if bad == 0 || bad == 400 {
		t.Errorf("%d of 400 pages were refused", bad)
	}
}
