//go:build linux && (amd64 || arm64)

package uffd

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/require"
)

// openScan opens what a scan needs, with mem registered and protected.
func openScan(t testing.TB, mem []byte) *Pagemap {
	t.Helper()
	f := openFD(t, WPAsync|WPUnpopulated|WPHugetlbfsShmem)
	p, err := OpenPagemap()
	if errors.Is(err, errors.ErrUnsupported) {
		require.Missing(t, require.Userfaultfd, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := f.Register(mem, ModeWriteProtect); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteProtect(mem, true); err != nil {
		t.Fatal(err)
	}
	return p
}

// written returns the pages that a scan reports.
func written(t testing.TB, p *Pagemap, mem []byte) (pages []int) {
	t.Helper()
	base := uintptr(unsafe.Pointer(&mem[0]))
	if err := p.Scan(mem, func(r Region) {
		for a := r.Start; a < r.End; a += uintptr(pageSize) {
			pages = append(pages, int(a-base)/pageSize)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return pages
}

func TestAScanReportsEachWrittenPageOnce(t *testing.T) {
	mem := mapPages(t, 300)
	mem[5*pageSize] = 1 // before the log begins
	p := openScan(t, mem)
	if got := written(t, p, mem); got != nil {
		t.Errorf("before any write: %v", got)
	}
	for _, i := range []int{0, 5, 6, 299} {
		mem[i*pageSize+i] = 2
	}
	_ = mem[100*pageSize] // a read is none
	if got, want := written(t, p, mem), []int{0, 5, 6, 299}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := written(t, p, mem); got != nil {
		t.Errorf("once more: %v", got)
	}
	mem[5*pageSize] = 3
	if got, want := written(t, p, mem), []int{5}; !slices.Equal(got, want) {
		t.Errorf("written again: got %v, want %v", got, want)
	}
}

func TestAScanReportsMoreRunsThanFitIntoOneRequest(t *testing.T) {
	const pages = 5000
	mem := mapPages(t, pages)
	p := openScan(t, mem)
	var want []int
	for i := 0; i < pages; i += 2 {
		mem[i*pageSize] = 1
		want = append(want, i)
	}
	if len(want) <= len(p.vec) {
		t.Fatalf("%d runs fit into one request", len(want))
	}
	if got := written(t, p, mem); !slices.Equal(got, want) {
		t.Errorf("%d pages, want %d", len(got), len(want))
	}
}

func TestAScanAllocatesNothing(t *testing.T) {
	mem := mapPages(t, 64)
	p := openScan(t, mem)
	n := 0
	count := func(Region) { n++ }
	if got := testing.AllocsPerRun(50, func() {
		mem[7*pageSize]++
		if err := p.Scan(mem, count); err != nil {
			t.Error(err)
		}
	}); got != 0 {
		t.Errorf("%v allocations", got)
	}
	if n == 0 {
		t.Error("nothing was reported")
	}
}

func TestAScanOfMemoryThatIsNotRegisteredSaysSo(t *testing.T) {
	mem := mapPages(t, 4)
	p := openScan(t, mem[:2*pageSize])
	mem[0] = 1
	err := p.Scan(mem, func(Region) {})
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "not all registered") {
		t.Errorf("%v", err)
	}
}

func TestAKernelThatCannotScanIsNamed(t *testing.T) {
	p, err := openPagemap(&fakeKernel{scan: unix.ENOTTY})
	if p != nil || !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "PAGEMAP_SCAN (Linux 6.7)") {
		t.Errorf("%v, %v", p, err)
	}
}

func TestAScanThatGoesNowhereEnds(t *testing.T) {
	p, err := openPagemap(&fakeKernel{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Scan(mapPages(t, 1), func(Region) {}); err == nil || !strings.Contains(err.Error(), "does not advance") {
		t.Errorf("%v", err)
	}
	p.Close()
	if err := p.Scan(mapPages(t, 1), func(Region) {}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
