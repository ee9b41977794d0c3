package mapping

import (
	"errors"
	"os"
	"testing"
)

func TestReleasedPagesReadAsZerosAndTheRestStays(t *testing.T) {
	page := os.Getpagesize()
	p, err := NewSparse(4 * page)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := Free(p); err != nil {
			t.Error(err)
		}
	}()
	for i := range p {
		p[i] = 7
	}
	if err := Release(p[page : 3*page]); err != nil {
		t.Fatal(err)
	}
	for i, b := range p {
		want := byte(7)
		if i >= page && i < 3*page {
			want = 0
		}
		if b != want {
			t.Fatalf("byte %d is %d, want %d", i, b, want)
		}
	}
	p[page] = 1 // it is there again
	if err := Release(nil); err != nil {
		t.Errorf("nothing released: %v", err)
	}
}

func TestSparseMemoryOfNoSizeAndOfABadOne(t *testing.T) {
	if !sparse {
		t.Skip("no sparse memory here")
	}
	if p, err := NewSparse(0); p != nil || err != nil {
		t.Errorf("%v, %v", p, err)
	}
	if _, err := NewSparse(-1); err == nil {
		t.Error("a negative size was mapped")
	}
}

func TestOnlyPagesOfAGuestsSizeAreSparse(t *testing.T) {
	for _, size := range []int{16 << 10, 64 << 10} {
		if err := supported(size); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("pages of %d bytes: %v", size, err)
		}
	}
	if err := supported(4096); sparse && err != nil {
		t.Error(err)
	}
}
