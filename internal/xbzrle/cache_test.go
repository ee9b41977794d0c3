package xbzrle

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestCacheGivesUpTheLeastRecentlyUsed(t *testing.T) {
	c := NewCache(pageSize, 3*pageSize)
	for key := range uint64(3) {
		c.Put(key)[0] = byte(key)
	}
	c.Get(0)
	c.Put(3)[0] = 3
	if c.Get(1) != nil {
		t.Error("page 1 was used longest ago and is still there")
	}
	for _, key := range []uint64{0, 2, 3} {
		if p := c.Get(key); p == nil || p[0] != byte(key) {
			t.Errorf("page %d: %v", key, p != nil)
		}
	}
}

// TestCacheAgainstAList drives the cache and a plain list with the same random
// operations.
func TestCacheAgainstAList(t *testing.T) {
	const size, limit = 16, 40
	r := rand.New(rand.NewPCG(5, 6))
	c := NewCache(size, limit*size)
	type entry struct {
		key  uint64
		page []byte
	}
	var list []entry // most recently used last
	use := func(key uint64) *entry {
		i := slices.IndexFunc(list, func(e entry) bool { return e.key == key })
		if i < 0 {
			return nil
		}
		e := list[i]
		list = append(slices.Delete(list, i, i+1), e)
		return &list[len(list)-1]
	}
	for step := range 50000 {
		key := r.Uint64N(100) << (8 * r.IntN(3))
		switch r.IntN(10) {
		default:
			p := c.Put(key)
			binary.LittleEndian.PutUint64(p, uint64(step))
			if use(key) == nil {
				if len(list) == limit {
					list = list[1:]
				}
				list = append(list, entry{key: key})
			}
			list[len(list)-1].page = bytes.Clone(p)
		case 0, 1, 2, 3:
			e, p := use(key), c.Get(key)
			if (e == nil) != (p == nil) || e != nil && !bytes.Equal(e.page, p) {
				t.Fatalf("step %d: page %d: cache and list differ", step, key)
			}
		case 4:
			c.Drop(key)
			list = slices.DeleteFunc(list, func(e entry) bool { return e.key == key })
		case 5:
			if r.IntN(500) == 0 {
				c.Reset()
				list = nil
			}
		}
		if c.Len() != len(list) {
			t.Fatalf("step %d: %d pages, want %d", step, c.Len(), len(list))
		}
	}
}

func TestCacheHoldsAtLeastOnePageAndNoMoreThanItsBytes(t *testing.T) {
	for _, x := range []struct {
		bytes int64
		want  int
	}{{0, 1}, {pageSize - 1, 1}, {5*pageSize + 1, 5}, {300 * pageSize, 300}} {
		c := NewCache(pageSize, x.bytes)
		for key := range uint64(1000) {
			c.Put(key)
		}
		mem := 0
		for _, chunk := range c.chunks {
			mem += len(chunk)
		}
		if c.Len() != x.want || mem != x.want*pageSize {
			t.Errorf("%d bytes: %d pages in %d bytes, want %d pages", x.bytes, c.Len(), mem, x.want)
		}
	}
}
