package mapping

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLockedPagesAreReleasedOrStayAsTheyWere(t *testing.T) {
	page := os.Getpagesize()
	p, err := NewSparse(2 * page)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer Free(p)
	if err := unix.Mlock(p); err != nil {
		t.Skipf("memory may not be locked here: %v", err)
	}
	p[0], p[page] = 7, 8
	want := byte(0)
	if Release(p[:page]) != nil {
		want = 7
	}
	if p[0] != want || p[page] != 8 {
		t.Errorf("%d, %d; want %d, 8", p[0], p[page], want)
	}
}
