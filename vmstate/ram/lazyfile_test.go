package ram

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
)

// inFile writes the memory of blocks to a file, from an offset on, and returns it.
func inFile(t testing.TB, at int64, blocks ...Block) *os.File {
	t.Helper()
	f := mappedFile(t)
	var list []BlockInfo
	for _, b := range blocks {
		list = append(list, BlockInfo{Name: b.Name, Length: b.used()})
	}
	m, err := CreateMapped(f, at, list)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		if err := m.WritePages(b.Name, 0, b.Host[:b.used()]); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Commit(); err != nil {
		t.Fatal(err)
	}
	return f
}

// random makes about half of the pages of a block something else than zeros, in runs.
func random(b Block, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	for i := 0; i < len(b.Host); {
		data := r.IntN(2) == 0
		for n := 1 + r.IntN(90); n > 0 && i < len(b.Host); n-- {
			if data {
				for j := range PageSize / 8 {
					b.Host[i+8*j] = byte(r.Uint32())
				}
			}
			i += PageSize
		}
	}
}

// gated is a file that gives large pieces only when it may.
type gated struct {
	io.ReaderAt
	open chan struct{}
}

func (g gated) ReadAt(p []byte, at int64) (int, error) {
	if len(p) > faultPiece {
		<-g.open
	}
	return g.ReaderAt.ReadAt(p, at)
}

func TestAGuestOfAFileHasWhatItTouchesBeforeTheRest(t *testing.T) {
	const at, n = 1234, 2000
	was := pages(t, "ram", n)
	random(was, 1)
	for i := n - 600; i < n; i++ { // there is a large piece at the end
		was.Host[i*PageSize] = 9
	}
	f := inFile(t, at, was, pages(t, "rom", 3))
	b, rom := pages(t, "ram", n), pages(t, "rom", 3)
	rom.Host[0], b.Host[5*PageSize] = 7, 7 // what is in memory before is nothing
	l := newLazy(t, b, rom)
	g := gated{f, make(chan struct{})}
	end, err := l.OpenMapped(f, at)
	if err != nil {
		t.Fatal(err)
	}
	l.from.f = g
	m, err := OpenMapped(f, at)
	if err != nil || m.End() != end {
		t.Fatalf("the body ends at %d, want %d (%v)", end, m.End(), err)
	}
	if err := l.Listen(); err != nil {
		t.Fatal(err)
	}
	filled := make(chan error, 1)
	go func() { filled <- l.Fill(context.Background()) }()
	var touch sync.WaitGroup
	for seed := range uint64(4) {
		touch.Go(func() {
			r := rand.New(rand.NewPCG(seed, 1))
			for range 200 {
				i := r.IntN(n - 1)
				if err := l.Ensure("ram", uint64(i)*PageSize, 2*PageSize); err != nil {
					t.Error(err)
				}
				if !bytes.Equal(b.Host[i*PageSize:][:2*PageSize], was.Host[i*PageSize:][:2*PageSize]) {
					t.Errorf("pages %d and %d are not what the file has", i, i+1)
				}
			}
		})
	}
	touch.Wait()
	if err := l.Ensure("ram", (n-1)*PageSize, PageSize); err != nil {
		t.Fatal(err)
	}
	b.Host[(n-1)*PageSize], was.Host[(n-1)*PageSize] = 200, 200 // the guest's
	select {
	case err := <-filled:
		t.Fatalf("Fill has returned: %v", err)
	default:
	}
	close(g.open)
	if err := <-filled; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Host, was.Host) || !bytes.Equal(rom.Host, make([]byte, 3*PageSize)) {
		t.Error("memory is not what the file has, and the guest has written")
	}
	if _, touched := l.Placed(); touched == 0 {
		t.Error("nobody has waited")
	}
}

func TestALargePageOfAFileIsPlacedWhole(t *testing.T) {
	const size = 4 * PageSize
	was := pages(t, "ram", 16)
	was.Host[5*PageSize], was.Host[15*PageSize] = 1, 2
	f := inFile(t, 0, was)
	m, err := OpenMapped(f, 0)
	if err != nil {
		t.Fatal(err)
	}
	// A page of zeros, of which the file has something else all the same.
	if _, places := m.Blocks(); true {
		if _, err := f.WriteAt(page(9), int64(places[0].Pages)+6*PageSize); err != nil {
			t.Fatal(err)
		}
	}
	raw := newMemory(t, 5*size)
	skip := -int(addressOf(raw)) & (size - 1)
	b := Block{Name: "ram", Host: raw[skip:][:4*size], HostPageSize: size}
	l := newLazy(t, b)
	if _, err := l.OpenMapped(f, 0); err != nil {
		t.Fatal(err)
	}
	if err := l.Listen(); err != nil {
		t.Fatal(err)
	}
	filled := make(chan error, 1)
	go func() { filled <- l.Fill(context.Background()) }()
	if err := errors.Join(l.Ensure("ram", 3*size/2, 1), <-filled); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Host, was.Host) {
		t.Error("memory is not what the file has")
	}
}

// broken is a file that cannot be read from an offset on.
type broken struct {
	io.ReaderAt
	from int64
	err  error
}

func (b broken) ReadAt(p []byte, at int64) (int, error) {
	if n := b.from - at; n < int64(len(p)) {
		n = max(0, n)
		if m, err := b.ReaderAt.ReadAt(p[:n], at); int64(m) < n {
			return m, err
		}
		return int(n), b.err
	}
	return b.ReaderAt.ReadAt(p, at)
}

func TestAFileThatCannotBeReadEndsFillAndLeavesWhoWaits(t *testing.T) {
	for name, why := range map[string]error{"an error of the disk": syscall.EIO, "the end of the file": io.EOF} {
		t.Run(name, func(t *testing.T) {
			was := pages(t, "ram", 100)
			for i := range 100 {
				was.Host[i*PageSize] = 1
			}
			f := inFile(t, 0, was)
			m, err := OpenMapped(f, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, places := m.Blocks()
			b := pages(t, "ram", 100)
			l := newLazy(t, b)
			if _, err := l.OpenMapped(f, 0); err != nil {
				t.Fatal(err)
			}
			l.from.f = broken{f, int64(places[0].Pages) + 50*PageSize, why}
			if err := l.Listen(); err != nil {
				t.Fatal(err)
			}
			waits := make(chan error, 1)
			go func() { waits <- l.Ensure("ram", 99*PageSize, 1) }()
			err = l.Fill(context.Background())
			var at *Error
			want := why
			if why == io.EOF {
				want = io.ErrUnexpectedEOF
			}
			if !errors.Is(err, want) || !errors.As(err, &at) || at.Block != "ram" {
				t.Errorf("%v", err)
			}
			select {
			case err := <-waits:
				t.Fatalf("it goes on: %v", err)
			default:
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if err := <-waits; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFillEndsWithItsContext(t *testing.T) {
	was := pages(t, "ram", 600)
	for i := range 600 {
		was.Host[i*PageSize] = 1
	}
	g := gated{inFile(t, 0, was), make(chan struct{})}
	l := newLazy(t, pages(t, "ram", 600))
	if err := l.Fill(t.Context()); err == nil {
		t.Error("Fill before Listen")
	}
	if _, err := l.OpenMapped(g.ReaderAt, 0); err != nil {
		t.Fatal(err)
	}
	l.from.f = g
	if err := l.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("an order")
	cancel(why)
	close(g.open)
	if err := l.Fill(ctx); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
}

func TestAFileOfAnotherGuestIsRefusedBeforeAnythingHasChanged(t *testing.T) {
	was := pages(t, "ram", 70)
	random(was, 3)
	f := inFile(t, 0, was)
	m, err := OpenMapped(f, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, places := m.Blocks()
	whole, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		blocks []Block
		change func(p []byte) []byte
		want   error
	}{
		"another block":          {[]Block{pages(t, "other", 70)}, nil, ErrUnknownBlock},
		"another length":         {[]Block{pages(t, "ram", 71)}, nil, ErrBlockList},
		"one block of two":       {[]Block{pages(t, "ram", 70), pages(t, "rom", 1)}, nil, ErrBlockList},
		"a page behind the end":  {nil, func(p []byte) []byte { p[places[0].Bitmap+15] = 0x80; return p }, ErrOffset},
		"large pages":            {nil, func(p []byte) []byte { p[8+1+3+8+4+5] = 0x20; p[8+1+3+8+4+6] = 0; return p }, ErrMapped},
		"the end in the list":    {nil, func(p []byte) []byte { return p[:15] }, io.ErrUnexpectedEOF},
		"the end in the bitmap":  {nil, func(p []byte) []byte { return p[:places[0].Bitmap+3] }, io.ErrUnexpectedEOF},
		"the end in the pages":   {nil, func(p []byte) []byte { return p[:places[0].Pages+3*PageSize] }, io.ErrUnexpectedEOF},
		"a bitmap over its list": {nil, func(p []byte) []byte { p[8+1+3+8+4+8+7] = 1; return p }, ErrMapped},
	} {
		if c.blocks == nil {
			c.blocks = []Block{pages(t, "ram", 70)}
		}
		p := bytes.Clone(whole)
		if c.change != nil {
			p = c.change(p)
		}
		l, err := NewLazy(c.blocks)
		if err != nil {
			t.Fatal(err)
		}
		var at *Error
		if _, err := l.OpenMapped(bytes.NewReader(p), 0); !errors.Is(err, c.want) || !errors.As(err, &at) {
			t.Errorf("%s: %v", name, err)
		}
		if l.from != nil {
			t.Errorf("%s: it is kept", name)
		}
	}
}
