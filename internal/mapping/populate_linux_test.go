package mapping

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPopulatedMemoryIsResidentAndHoldsWhatItHeld(t *testing.T) {
	page := os.Getpagesize()
	p, err := NewSparse(64 * page)
	if err != nil {
		t.Fatal(err)
	}
	defer Free(p)
	if unix.Madvise(p[:page], unix.MADV_POPULATE_WRITE) != nil {
		t.Skip("a kernel before 5.14")
	}
	p[5*page] = 7
	Populate(p[4*page : 36*page])
	if n, err := Resident(p); err != nil || n != 33 || p[5*page] != 7 || p[6*page] != 0 {
		t.Errorf("%d pages are resident, not 33: %v; they hold %d and %d", n, err, p[5*page], p[6*page])
	}
	Populate(nil)
	Populate(make([]byte, 100)[1:]) // no page begins there: it is left to the faults
}
