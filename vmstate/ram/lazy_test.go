package ram

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/uffd"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// newLazy returns a Lazy of blocks, or skips the test.
func newLazy(t testing.TB, blocks ...Block) *Lazy {
	t.Helper()
	l, err := NewLazy(blocks)
	if err == nil {
		require.Granted(t, require.Userfaultfd, l.Probe())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// serve serves l until the test ends and returns what was asked for.
func serve(t *testing.T, l *Lazy) (asked func() []uint64) {
	t.Helper()
	var mu sync.Mutex
	var list []uint64
	done := make(chan error, 1)
	go func() {
		done <- l.Serve(func(block string, start uint64, length uint32) {
			mu.Lock()
			defer mu.Unlock()
			list = append(list, start)
		})
	}()
	t.Cleanup(func() {
		l.Interrupt()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func() []uint64 {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(list)
	}
}

// records returns a section body of pages of one block, in the order given.
func records(t testing.TB, block string, contents map[int]byte, order ...int) []byte {
	return body(t, func(w *qemufile.Writer) {
		for n, i := range order {
			word := uint64(i) * PageSize
			kind := uint64(flagPage)
			if contents[i] == 0 {
				kind = flagZero
			}
			if n == 0 {
				w.PutBE64(word | kind)
				w.PutCountedString(block)
			} else {
				w.PutBE64(word | kind | flagContinue)
			}
			if contents[i] == 0 {
				w.PutByte(0)
			} else {
				w.Write(page(contents[i]))
			}
		}
		w.PutBE64(flagEOS)
	})
}

func mustLoad(t testing.TB, l *Lazy, p []byte) {
	t.Helper()
	if err := l.LoadState(reader(p), Version); err != nil {
		t.Fatal(err)
	}
}

func TestWhatWasDiscardedIsMissingAndComesAgain(t *testing.T) {
	b := pages(t, "ram", 8)
	l := newLazy(t, b)
	if err := l.PostcopyAdvised(); err != nil {
		t.Fatal(err)
	}
	c := map[int]byte{0: 1, 1: 2, 2: 0, 3: 4, 4: 5, 5: 0, 6: 7, 7: 8}
	mustLoad(t, l, records(t, "ram", c, 0, 1, 2, 3, 4, 5, 6, 7))
	if err := l.Discard(vmstate.RAMDiscard{Block: "ram", Ranges: []vmstate.Range{{Start: PageSize, Length: PageSize}, {Start: 5 * PageSize, Length: 2 * PageSize}}}); err != nil {
		t.Fatal(err)
	}
	if err := l.Listen(); err != nil {
		t.Fatal(err)
	}
	asked := serve(t, l)
	if n := l.Missing(); n != 3 {
		t.Errorf("%d pages missing, want 3", n)
	}
	if err := l.Finish(); !errors.Is(err, ErrIncomplete) {
		t.Errorf("Finish: %v", err)
	}
	waited := make(chan error, 1)
	go func() { waited <- l.Ensure("ram", 6*PageSize+9, 1) }()
	for len(asked()) == 0 { // the page's wait is reported
		select {
		case err := <-waited:
			t.Fatalf("a missing page was there: %v", err)
		default:
		}
	}
	if got := asked(); !slices.Equal(got, []uint64{6 * PageSize}) {
		t.Errorf("asked for %#x", got)
	}
	var again []uint64
	l.Outstanding(func(_ string, start uint64, _ uint32) { again = append(again, start) })
	if !slices.Equal(again, []uint64{6 * PageSize}) {
		t.Errorf("outstanding: %#x", again)
	}
	mustLoad(t, l, records(t, "ram", map[int]byte{1: 9, 6: 77}, 6, 5, 1))
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	for i, want := range []byte{1, 9, 0, 4, 5, 0, 77, 8} {
		if !bytes.Equal(b.Host[i*PageSize:(i+1)*PageSize], page(want)) {
			t.Errorf("page %d begins with %d, want %d", i, b.Host[i*PageSize], want)
		}
	}
}

func TestAPageThatComesTwiceDoesNotUndoWhatTheGuestWrote(t *testing.T) {
	b := pages(t, "ram", 2)
	l := newLazy(t, b)
	if err := l.Listen(); err != nil {
		t.Fatal(err)
	}
	c := map[int]byte{0: 1, 1: 2}
	mustLoad(t, l, records(t, "ram", c, 0, 1))
	b.Host[0] = 99
	mustLoad(t, l, records(t, "ram", c, 0, 1))
	if b.Host[0] != 99 {
		t.Error("the guest's write is gone")
	}
	if placed, _ := l.Placed(); placed != 2 {
		t.Errorf("%d pages placed", placed)
	}
}

func TestALargePageIsPlacedWhole(t *testing.T) {
	const size = 4 * PageSize
	raw := newMemory(t, 5*size)
	skip := -int(addressOf(raw)) & (size - 1)
	b := Block{Name: "ram", Host: raw[skip:][:4*size], HostPageSize: size}
	l := newLazy(t, b)
	if err := l.Listen(); err != nil {
		t.Fatal(err)
	}
	c := map[int]byte{4: 1, 5: 2, 6: 0, 7: 3}
	mustLoad(t, l, records(t, "ram", c, 4, 5, 6, 7))
	if got := b.Host[size : 2*size]; !bytes.Equal(got[:PageSize], page(1)) || !bytes.Equal(got[3*PageSize:], page(3)) || got[2*PageSize] != 0 {
		t.Error("the page is not what came")
	}
	for name, order := range map[string][]int{"not from its beginning": {1, 2, 3}, "with a gap": {0, 2, 3}, "of two": {0, 9, 2, 3}, "cut off": {0, 1}} {
		l.NewSession()
		if err := l.LoadState(reader(records(t, "ram", c, order...)), Version); !errors.Is(err, ErrPartialPage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := l.Missing(); n != 12 {
		t.Errorf("%d pages missing, want 12", n)
	}
	l.NewSession()
	mustLoad(t, l, records(t, "ram", nil, 0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15))
	if err := l.Finish(); err != nil {
		t.Error(err)
	}
}

func TestWhatDoesNotFitTheGuestIsRefusedInPostcopy(t *testing.T) {
	b := pages(t, "ram", 4)
	l := newLazy(t, b)
	for _, r := range []vmstate.Range{{Start: 1, Length: PageSize}, {Start: 0, Length: 7}, {Start: 3 * PageSize, Length: 2 * PageSize}, {Start: ^uint64(0) - PageSize + 1, Length: 2 * PageSize}} {
		if err := l.Discard(vmstate.RAMDiscard{Block: "ram", Ranges: []vmstate.Range{r}}); !errors.Is(err, ErrOffset) {
			t.Errorf("discard %+v: %v", r, err)
		}
	}
	if err := l.Discard(vmstate.RAMDiscard{Block: "rom"}); !errors.Is(err, ErrUnknownBlock) {
		t.Errorf("discard of another block: %v", err)
	}
	if err := l.Listen(); err != nil {
		t.Fatal(err)
	}
	if err := l.Ensure("ram", 3*PageSize, PageSize+1); !errors.Is(err, ErrOffset) {
		t.Errorf("ensure: %v", err)
	}
	list := body(t, func(w *qemufile.Writer) {
		putBlockList(w, []BlockInfo{{Name: "ram", Length: 4 * PageSize}}, 4*PageSize, Format{})
		w.PutBE64(flagEOS)
	})
	delta := body(t, func(w *qemufile.Writer) {
		w.PutBE64(flagXBZRLE)
		w.PutCountedString("ram")
	})
	filled := body(t, func(w *qemufile.Writer) {
		w.PutBE64(flagZero)
		w.PutCountedString("ram")
		w.PutByte(7)
	})
	for name, x := range map[string]struct {
		p  []byte
		is error
	}{
		"another block":   {records(t, "rom", nil, 0), ErrUnknownBlock},
		"behind its end":  {records(t, "ram", nil, 4), ErrOffset},
		"a block list":    {list, ErrBlockList},
		"a difference":    {delta, ErrFlags},
		"another filling": {filled, ErrFill},
	} {
		l.NewSession()
		var where *Error
		if err := l.LoadState(reader(x.p), Version); !errors.Is(err, x.is) || !errors.As(err, &where) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if l.Missing() != 4 {
		t.Error("something of it was taken")
	}
}

func TestPlacingAPageOnDemandAllocatesNothing(t *testing.T) {
	const n = 300
	b := pages(t, "ram", n)
	l := newLazy(t, b)
	if err := l.Listen(); err != nil {
		t.Fatal(err)
	}
	var sections [][]byte
	for i := range n {
		sections = append(sections, records(t, "ram", map[int]byte{i: byte(i%3 + 1)}, i))
	}
	var r qemufile.Reader
	i := 0
	if got := testing.AllocsPerRun(n-2, func() {
		r.ResetBytes(sections[i])
		if err := l.LoadState(&r, Version); err != nil {
			t.Error(err)
		}
		i++
	}); got >= 1 { // the pool of requests gives some of its memory back at a collection
		t.Errorf("%v allocations a page", got)
	}
}

func TestAHostWithoutUserfaultfdSaysWhatIsMissing(t *testing.T) {
	l, err := NewLazy([]Block{pages(t, "ram", 1)})
	if err != nil {
		t.Fatal(err)
	}
	err = l.Probe()
	var feature *uffd.FeatureError
	if err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, os.ErrPermission) && !errors.As(err, &feature) {
		t.Errorf("%v", err)
	}
	if err := l.Serve(nil); err == nil {
		t.Error("Serve before Listen")
	}
}

// noHuge reports whether the kernel was told to use no huge pages for mem.
func noHuge(t *testing.T, mem []byte) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	at, inside := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))), false
	for line := range strings.Lines(string(text)) {
		var from, to uint64
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			inside = from <= at && at < to
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && inside {
			return slices.Contains(strings.Fields(flags), "nh")
		}
	}
	t.Skip("the kernel does not tell the flags of memory")
	return false
}

func TestAGuestHasHugePagesAgainWhenAllIsThere(t *testing.T) {
	for name, end := range map[string]func(*Lazy) error{
		"after postcopy": func(l *Lazy) error {
			mustLoad(t, l, records(t, "ram", map[int]byte{0: 1, 1: 2}, 0, 1))
			return errors.Join(l.Listen(), l.Finish())
		},
		"after precopy": (*Lazy).Close,
	} {
		t.Run(name, func(t *testing.T) {
			b := pages(t, "ram", 2)
			l := newLazy(t, b)
			if err := l.PostcopyAdvised(); err != nil {
				t.Fatal(err)
			}
			if !noHuge(t, b.Host) {
				t.Skip("a kernel without huge pages")
			}
			if err := end(l); err != nil {
				t.Fatal(err)
			}
			if noHuge(t, b.Host) {
				t.Error("it has not")
			}
		})
	}
}

// A page beside the stream would be written under a guest that may run.
func TestNoPageComesBesideTheStreamInPostcopy(t *testing.T) {
	b := pages(t, "ram", 4)
	l := newLazy(t, b)
	if err := l.StagePage("ram", 0, page(1)); err != nil {
		t.Fatal(err)
	}
	if err := l.Listen(); err != nil {
		t.Fatal(err)
	}
	var e *Error
	if err := l.StagePage("ram", 0, page(2)); !errors.As(err, &e) || e.Block != "ram" {
		t.Errorf("taken: %v", err)
	}
	if !bytes.Equal(b.Host[:PageSize], page(1)) {
		t.Error("the guest's memory has changed")
	}
}

// A page of the host that has begun in one block does not go on in another.
func TestAPartOfAnotherBlockIsOutOfTurn(t *testing.T) {
	const size = 4 * PageSize
	var blocks []Block
	for _, name := range []string{"ram", "rom"} {
		raw := newMemory(t, 3*size)
		skip := -int(addressOf(raw)) & (size - 1)
		blocks = append(blocks, Block{Name: name, Host: raw[skip:][:2*size], HostPageSize: size})
	}
	l := newLazy(t, blocks...)
	if err := l.Listen(); err != nil {
		t.Fatal(err)
	}
	err := l.LoadState(reader(body(t, func(w *qemufile.Writer) {
		for i, name := range []string{"ram", "ram", "rom"} {
			rec := Record{Kind: KindPage, Block: name, Offset: uint64(i) * PageSize, Data: page(1)}
			rec.Put(w, Format{})
		}
		w.PutBE64(flagEOS)
	})), Version)
	var e *Error
	if !errors.Is(err, ErrPartialPage) || !errors.As(err, &e) || e.Block != "rom" || e.Offset != 2*PageSize {
		t.Errorf("%v", err)
	}
	if placed, _ := l.Placed(); placed != 0 {
		t.Errorf("%d pages are placed", placed)
	}
}
