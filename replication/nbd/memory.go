package nbd

import (
	"math/bits"
	"sync"
)

// memory has buffers for the data of requests, for all connections of a server together,
// up to a limit. Requests that find no room wait, in order.
type memory struct {
	limit   int64
	largest int // capacity of the largest buffer

	mu      sync.Mutex
	used    int64      // the capacity of the buffers that are in use
	kept    int64      // the capacity of the buffers in free
	free    [][][]byte // buffers that are not in use, by class
	waiting []*memoryWait
}

// memoryWait is a request that waits for memory.
type memoryWait struct {
	size    int64
	granted chan struct{} // closed when there is room, which is counted in used already
}

const (
	smallest = 4 << 10  // capacity of the smallest buffers, those of class 0
	maxKept  = 16 << 20 // bytes in free
)

// newMemory returns a memory whose largest buffers have that length. The limit
// is at least that.
func newMemory(limit int64, largest uint32) *memory {
	m := &memory{limit: max(limit, int64(largest), smallest), largest: max(int(largest), smallest)}
	m.free = make([][][]byte, class(m.largest)+1)
	return m
}

// class returns the class of the buffers that n bytes fit in.
func class(n int) int {
	if n <= smallest {
		return 0
	}
	return bits.Len(uint(n-1)) - bits.Len(uint(smallest-1))
}

// size returns the capacity of the buffers of a class.
func (m *memory) size(class int) int { return min(smallest<<class, m.largest) }

// get returns a buffer of n bytes, at most largest, with undefined content. It returns
// false if gone was closed while it waited for room. The buffer is given back by put.
func (m *memory) get(n int, gone <-chan struct{}) ([]byte, bool) {
	if n == 0 {
		return nil, true
	}
	size := int64(m.size(class(n)))
	m.mu.Lock()
	if !m.enter(size) {
		w := &memoryWait{size, make(chan struct{})}
		m.waiting = append(m.waiting, w)
		m.mu.Unlock()
		select {
		case <-w.granted:
			m.mu.Lock()
		case <-gone:
			m.mu.Lock()
			m.leave(w)
			m.mu.Unlock()
			return nil, false
		}
	}
	defer m.mu.Unlock()
	return m.buffer(n), true
}

// try does what get does, but returns false if it would have to wait.
func (m *memory) try(n int) ([]byte, bool) {
	if n == 0 {
		return nil, true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.enter(int64(m.size(class(n)))) {
		return nil, false
	}
	return m.buffer(n), true
}

// enter counts a buffer as used, if there is room for it and nobody waits for room. The
// caller holds mu.
func (m *memory) enter(size int64) bool {
	if len(m.waiting) > 0 || m.used+size > m.limit {
		return false
	}
	m.used += size
	return true
}

// buffer returns n bytes, which are counted as used. The caller holds mu.
func (m *memory) buffer(n int) []byte {
	k := class(n)
	size := int64(m.size(k))
	if last := len(m.free[k]) - 1; last >= 0 {
		p := m.free[k][last]
		m.free[k][last] = nil
		m.free[k] = m.free[k][:last]
		m.kept -= size
		return p[:n]
	}
	for i := range m.free { // the limit includes buffers in free
		for len(m.free[i]) > 0 && m.used+m.kept > m.limit {
			last := len(m.free[i]) - 1
			m.free[i][last] = nil
			m.free[i] = m.free[i][:last]
			m.kept -= int64(m.size(i))
		}
	}
	return make([]byte, n, size)
}

// leave ends the wait of w, which may have been granted room meanwhile. The caller holds
// mu.
func (m *memory) leave(w *memoryWait) {
	for i, o := range m.waiting {
		if o == w {
			m.waiting = append(m.waiting[:i], m.waiting[i+1:]...)
			m.grant() // there may be room for those behind it
			return
		}
	}
	m.used -= w.size
	m.grant()
}

// grant gives room to the requests that wait, in order, as long as there is
// enough for the next one. The caller holds mu.
func (m *memory) grant() {
	for len(m.waiting) > 0 && m.used+m.waiting[0].size <= m.limit {
		w := m.waiting[0]
		m.waiting[0] = nil
		m.waiting = m.waiting[1:]
		m.used += w.size
		close(w.granted)
	}
	if len(m.waiting) == 0 {
		m.waiting = nil
	}
}

// put takes back a buffer that get has returned.
func (m *memory) put(p []byte) {
	if cap(p) == 0 {
		return
	}
	k := class(cap(p))
	size := int64(m.size(k))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used -= size
	if len(m.waiting) == 0 && m.kept+size <= maxKept && m.used+m.kept+size <= m.limit {
		m.free[k] = append(m.free[k], p)
		m.kept += size
	}
	m.grant()
}
