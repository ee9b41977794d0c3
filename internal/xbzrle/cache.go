package xbzrle

// chunkPages is how many pages one allocation of a Cache holds (1 MiB of
// 4 KiB pages).
const chunkPages = 256

// Cache holds pages as they were last sent, up to a number of bytes, and
// gives up the least recently used first. Its page memory is allocated as the
// cache fills; the index takes about 32 bytes per page beside it.
//
// The key of a page is the caller's choice. A Cache belongs to one goroutine.
type Cache struct {
	pageSize int
	chunks   [][]byte
	slots    []slot  // in use or free, addressed by slot number
	heads    []int32 // hash table: first slot of a bucket, -1: none
	limit    int     // how many slots there may be
	free     int32   // first unused slot below len(slots), chained by next, -1: none
	newest   int32   // ends of the list in order of use, -1: empty
	oldest   int32
}

// slot is the place of one page: in a bucket, and in the order of use.
type slot struct {
	key          uint64
	next         int32 // in the bucket or the free list
	newer, older int32
}

const none = -1

// NewCache returns an empty cache for pages of pageSize bytes that holds at
// most bytes of them, but at least one.
func NewCache(pageSize int, bytes int64) *Cache {
	limit := max(bytes/int64(pageSize), 1)
	limit = min(limit, 1<<30)
	buckets := 1
	for int64(buckets) < limit {
		buckets *= 2
	}
	c := &Cache{pageSize: pageSize, limit: int(limit), heads: make([]int32, buckets)}
	c.Reset()
	return c
}

// Reset empties the cache and keeps its memory.
func (c *Cache) Reset() {
	for i := range c.heads {
		c.heads[i] = none
	}
	c.slots = c.slots[:0]
	c.free, c.newest, c.oldest = none, none, none
}

// Len returns how many pages the cache holds.
func (c *Cache) Len() int {
	n := len(c.slots)
	for f := c.free; f != none; f = c.slots[f].next {
		n--
	}
	return n
}

// Get returns the page of key and makes it the most recently used, or nil. The
// page is the cache's own memory: the caller may change it, and must not keep
// it past the next Put, Drop or Reset.
func (c *Cache) Get(key uint64) []byte {
	i := c.find(key)
	if i == none {
		return nil
	}
	if c.newest != i {
		c.unlink(i)
		c.link(i)
	}
	return c.page(i)
}

// Put returns the page of key for the caller to fill, and makes it the most
// recently used. If key is new it takes the place of the least recently used
// page when the cache is full; the contents are then whatever was there.
func (c *Cache) Put(key uint64) []byte {
	if p := c.Get(key); p != nil {
		return p
	}
	var i int32
	switch {
	case c.free != none:
		i = c.free
		c.free = c.slots[i].next
	case len(c.slots) < c.limit:
		i = int32(len(c.slots))
		c.slots = append(c.slots, slot{})
		if int(i)/chunkPages == len(c.chunks) {
			c.chunks = append(c.chunks, make([]byte, min(chunkPages, c.limit-int(i))*c.pageSize))
		}
	default:
		i = c.oldest
		c.unlink(i)
		c.unhash(i)
	}
	s := &c.slots[i]
	s.key = key
	h := c.bucket(key)
	s.next = c.heads[h]
	c.heads[h] = i
	c.link(i)
	return c.page(i)
}

// Drop removes the page of key, if it is there.
func (c *Cache) Drop(key uint64) {
	i := c.find(key)
	if i == none {
		return
	}
	c.unlink(i)
	c.unhash(i)
	c.slots[i].next = c.free
	c.free = i
}

func (c *Cache) page(i int32) []byte {
	off := int(i) % chunkPages * c.pageSize
	return c.chunks[int(i)/chunkPages][off : off+c.pageSize : off+c.pageSize]
}

// bucket spreads keys by a multiplicative hash (by the golden ratio), and takes the upper
// bits, which are mixed best.
func (c *Cache) bucket(key uint64) int {
	return int(key*0x9e3779b97f4a7c15>>33) & (len(c.heads) - 1)
}

func (c *Cache) find(key uint64) int32 {
	i := c.heads[c.bucket(key)]
	for i != none && c.slots[i].key != key {
		i = c.slots[i].next
	}
	return i
}

// unhash takes slot i out of its bucket.
func (c *Cache) unhash(i int32) {
	p := &c.heads[c.bucket(c.slots[i].key)]
	for *p != i {
		p = &c.slots[*p].next
	}
	*p = c.slots[i].next
}

// link makes slot i the newest; unlink takes it out of the order of use.
func (c *Cache) link(i int32) {
	c.slots[i].newer, c.slots[i].older = none, c.newest
	if c.newest != none {
		c.slots[c.newest].newer = i
	} else {
		c.oldest = i
	}
	c.newest = i
}

func (c *Cache) unlink(i int32) {
	s := &c.slots[i]
	if s.newer != none {
		c.slots[s.newer].older = s.older
	} else {
		c.newest = s.older
	}
	if s.older != none {
		c.slots[s.older].newer = s.newer
	} else {
		c.oldest = s.newer
	}
}
