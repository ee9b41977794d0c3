package ram

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/internal/mapping"
	"github.com/gocolo/lockstep/qemufile"
)

// newMemory returns memory that no race detector tracks: a migration reads a
// guest that goes on writing.
func newMemory(t testing.TB, size int) []byte {
	t.Helper()
	p, err := mapping.New(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mapping.Free(p); err != nil {
			t.Error(err)
		}
	})
	return p
}

// A guest has RAM blocks and a dirty log, which can be switched off.
type guest struct {
	blocks []Block
	dirty  map[string]Bitmap
	on     bool
	fail   error // what ReadDirty returns
	reads  int
}

func newGuest(t testing.TB, blocks ...Block) *guest {
	t.Helper()
	g := &guest{blocks: blocks, dirty: make(map[string]Bitmap)}
	for i := range blocks {
		g.dirty[blocks[i].Name] = NewBitmap(len(blocks[i].Host) / PageSize)
	}
	return g
}

// pages returns a block of n pages.
func pages(t testing.TB, name string, n int) Block {
	return Block{Name: name, Host: newMemory(t, n*PageSize)}
}

// twin returns a guest with blocks like g's.
func (g *guest) twin(t testing.TB) *guest {
	t.Helper()
	blocks := make([]Block, len(g.blocks))
	for i, b := range g.blocks {
		blocks[i] = b
		blocks[i].Host = newMemory(t, len(b.Host))
	}
	return newGuest(t, blocks...)
}

func (g *guest) ReadDirty(block string, bitmap []uint64) error {
	g.reads++
	if g.fail != nil {
		return g.fail
	}
	d, ok := g.dirty[block]
	if !ok || len(d) != len(bitmap) {
		return fmt.Errorf("log asked for block %q with %d words", block, len(bitmap))
	}
	Bitmap(bitmap).Or(d)
	clear(d)
	return nil
}

func (g *guest) StartDirtyLog() error { g.on = true; return nil }
func (g *guest) StopDirtyLog() error  { g.on = false; return nil }

// write is a write by the guest: it is logged.
func (g *guest) write(block int, off int, p ...byte) {
	b := &g.blocks[block]
	copy(b.Host[off:], p)
	for i := off / PageSize; i <= (off+len(p)-1)/PageSize; i++ {
		g.dirty[b.Name].Set(i)
	}
}

// scribble makes n random writes: a few bytes, a whole page, or a page of
// zeros.
func (g *guest) scribble(r *rand.Rand, n int) {
	for range n {
		bi := r.IntN(len(g.blocks))
		host := g.blocks[bi].Host
		i := r.IntN(len(host) / PageSize)
		switch r.IntN(4) {
		case 0:
			g.write(bi, i*PageSize, randomPage(r)...)
		case 1:
			g.write(bi, i*PageSize, make([]byte, PageSize)...)
		default:
			at := r.IntN(PageSize - 20)
			p := make([]byte, 1+r.IntN(20))
			for j := range p {
				p[j] = byte(r.Uint32())
			}
			g.write(bi, i*PageSize+at, p...)
		}
	}
}

func randomPage(r *rand.Rand) []byte {
	p := make([]byte, PageSize)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64())
	}
	return p
}

// remember overwrites an old snapshot with a new one, for tests that need many.
func (g *guest) remember(snapshot [][]byte) {
	for i, b := range g.blocks {
		copy(snapshot[i], b.Host)
	}
}

func (g *guest) snapshot() [][]byte {
	var s [][]byte
	for _, b := range g.blocks {
		s = append(s, bytes.Clone(b.Host))
	}
	return s
}

// wantSame asserts that the memory of g is that of another guest, as it is now.
func wantSame(t testing.TB, why string, g, as *guest) {
	t.Helper()
	want := make([][]byte, len(as.blocks))
	for i, b := range as.blocks {
		want[i] = b.Host
	}
	wantMemory(t, why, g, want)
}

func wantMemory(t testing.TB, why string, g *guest, want [][]byte) {
	t.Helper()
	for bi, b := range g.blocks {
		for off := 0; off < len(b.Host); off += PageSize {
			if !bytes.Equal(b.Host[off:off+PageSize], want[bi][off:off+PageSize]) {
				t.Fatalf("%s: block %q differs at %#x", why, b.Name, off)
			}
		}
	}
}

// link carries RAM section bodies from a Saver to a Cache, as a connection
// does: one writer and one reader for all of them.
type link struct {
	t   testing.TB
	buf bytes.Buffer
	w   *qemufile.Writer
	r   *qemufile.Reader
}

func newLink(t testing.TB) *link {
	l := &link{t: t}
	l.w, l.r = qemufile.NewWriter(&l.buf), qemufile.NewReader(neverEnds{&l.buf})
	return l
}

// neverEnds makes a reader of a buffer that is filled again after it was empty.
type neverEnds struct{ buf *bytes.Buffer }

var errEmpty = errors.New("read beyond what was sent")

func (n neverEnds) Read(p []byte) (int, error) {
	if n.buf.Len() == 0 {
		return 0, errEmpty
	}
	return n.buf.Read(p)
}

func (l *link) setup(s *Saver) {
	l.t.Helper()
	if err := s.SaveSetup(l.w); err != nil {
		l.t.Fatal(err)
	}
}

func (l *link) iterate(s *Saver) (done bool) {
	l.t.Helper()
	done, err := s.SaveIterate(l.w)
	if err != nil {
		l.t.Fatal(err)
	}
	return done
}

func (l *link) complete(s *Saver) {
	l.t.Helper()
	if err := s.SaveComplete(l.w); err != nil {
		l.t.Fatal(err)
	}
}

// load gives what was sent to the cache, section by section.
func (l *link) load(c *Cache) {
	l.t.Helper()
	if err := l.w.Flush(); err != nil {
		l.t.Fatal(err)
	}
	for l.r.Buffered() > 0 || l.buf.Len() > 0 {
		if err := c.LoadState(l.r, Version); err != nil {
			l.t.Fatal(err)
		}
	}
}

// sync brings the cache's guest to the state of the saver's for the first time.
func (l *link) sync(s *Saver, c *Cache) {
	l.t.Helper()
	l.setup(s)
	for !l.iterate(s) {
	}
	l.complete(s)
	l.load(c)
	flush(l.t, c)
}

func flush(t testing.TB, c *Cache) {
	t.Helper()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

func capture(t testing.TB, s *Saver) (whole bool) {
	t.Helper()
	whole, err := s.Capture()
	if err != nil {
		t.Fatal(err)
	}
	return whole
}

func newCache(t testing.TB, g *guest, cfg CacheConfig) *Cache {
	t.Helper()
	c, err := NewCache(g.blocks, g, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// body returns what fn writes.
func body(t testing.TB, fn func(w *qemufile.Writer)) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := qemufile.NewWriter(&buf)
	fn(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// loadBytes loads one section's body.
func loadBytes(c *Cache, p []byte) error {
	return c.LoadState(reader(p), Version)
}

// reader returns a reader of p without a buffer.
func reader(p []byte) *qemufile.Reader {
	var r qemufile.Reader
	r.ResetBytes(p)
	return &r
}

// page returns a page that tells its number.
func page(n byte) []byte { return bytes.Repeat([]byte{n}, PageSize) }
