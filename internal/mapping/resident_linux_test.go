package mapping

import (
	"os"
	"testing"
)

func TestAPageIsResidentWhenItWasTouched(t *testing.T) {
	page := os.Getpagesize()
	p, err := NewSparse(64 * page)
	if err != nil {
		t.Fatal(err)
	}
	defer Free(p)
	for _, at := range []int{-1, 3, 40} {
		if at >= 0 {
			p[at*page] = 1
		}
		want := map[int]int{-1: 0, 3: 1, 40: 2}[at]
		if n, err := Resident(p); err != nil || n != want {
			t.Errorf("%d pages, not %d: %v", n, want, err)
		}
	}
	if n, err := Resident(nil); err != nil || n != 0 {
		t.Errorf("of nothing: %d, %v", n, err)
	}
}
