package ram

import (
	"bytes"
	"errors"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
)

// kind is one of the two ways in which a Cache keeps the primary's memory. What
// one of them promises, the other promises too.
type kind struct {
	name string
	cfg  CacheConfig
}

// eachCache runs a test with each.
func eachCache(t *testing.T, test func(t *testing.T, k kind)) {
	for _, k := range []kind{
		{"a copy", CacheConfig{}},
		{"staged only", CacheConfig{StagedOnly: true}},
	} {
		t.Run(k.name, func(t *testing.T) { test(t, k) })
	}
}

// cache returns a cache of this kind for a guest.
func (k kind) cache(t testing.TB, g *guest, cfg CacheConfig) *Cache {
	t.Helper()
	cfg.StagedOnly = k.cfg.StagedOnly
	if _, err := NewCache(nil, nil, cfg); errors.Is(err, errors.ErrUnsupported) {
		require.Missing(t, require.SmallPages, err)
	}
	c := newCache(t, g, cfg)
	c.Resent()
	return c
}

// one returns a guest of n pages and its cache of this kind.
func (k kind) one(t testing.TB, n int, cfg CacheConfig) (*guest, *Cache) {
	g := newGuest(t, pages(t, "ram", n))
	return g, k.cache(t, g, cfg)
}

// begun brings a cache that keeps no copy into the first checkpoint of a session. Before
// that the guest's memory is void; a cache that keeps a copy need not be told.
func (k kind) begun(t testing.TB, c *Cache) {
	t.Helper()
	if k.cfg.StagedOnly {
		flush(t, c)
		dirtyList(t, c)
	}
}

// tell tells the saver what the secondary's guest wrote, as a session does at
// each checkpoint where the cache keeps no copy.
func tell(t testing.TB, c *Cache, s *Saver) {
	t.Helper()
	if c.KeepsCopy() {
		return
	}
	if err := s.LoadDirty(reader(dirtyList(t, c))); err != nil {
		t.Fatal(err)
	}
}

func dirtyList(t testing.TB, c *Cache) []byte {
	t.Helper()
	return body(t, func(w *qemufile.Writer) {
		if err := c.SaveDirty(w); err != nil {
			t.Fatal(err)
		}
	})
}

// received returns the page as it was received last.
func received(c *Cache, bi, i int) []byte {
	b := &c.blocks[bi]
	at := i * PageSize
	switch {
	case !c.only.on:
		return b.page[at : at+PageSize]
	case !b.staged.Has(i):
		return b.Host[at : at+PageSize]
	case !b.data.Has(i):
		return make([]byte, PageSize)
	}
	return bytes.Clone(b.page[at : at+PageSize])
}
