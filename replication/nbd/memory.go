package nbd

import (
	"math/bits"
	"sync"
)

// memory hands out buffers for the data of requests, over all connections of
// a server, within a bound. Who finds no room waits, in order.
type memory struct {
	limit   int64
	largest int // capacity of the largest buffer

	mu      sync.Mutex
	used    int64      // capacity of what is handed out
	kept    int64      // and of free
	free    [][][]byte // by class
	waiting []*memoryWait
}

type memoryWait struct {
	size    int64
	granted chan struct{} // closed when used has size
}

const (
	smallest = 4 << 10  // capacity of the smallest buffers, those of class 0
	maxKept  = 16 << 20 // in free
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

// get returns a buffer of n bytes, at most largest, with any content, or false
// if gone was closed while it waited for room. It is for put to take back.
func (m *memory) get(n int, gone <-chan struct{}) ([]byte, bool) {
	if n == 0 {
		return nil, true
	}
	k := class(n)
	size := int64(m.size(k))
	m.mu.Lock()
	if len(m.waiting) == 0 && m.used+size <= m.limit {
		m.used += size
	} else {
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
	if last := len(m.free[k]) - 1; last >= 0 {
		p := m.free[k][last]
		m.free[k][last] = nil
		m.free[k] = m.free[k][:last]
		m.kept -= size
		return p[:n], true
	}
	for i := range m.free { // what is kept is inside of the limit too
		for len(m.free[i]) > 0 && m.used+m.kept > m.limit {
			last := len(m.free[i]) - 1
			m.free[i][last] = nil
			m.free[i] = m.free[i][:last]
			m.kept -= int64(m.size(i))
		}
	}
	return make([]byte, n, size), true
}

// leave ends the wait of w, which may have been granted meanwhile. The caller
// holds mu.
func (m *memory) leave(w *memoryWait) {
	for i, o := range m.waiting {
		if o == w {
			m.waiting = append(m.waiting[:i], m.waiting[i+1:]...)
			m.grant() // those behind may fit
			return
		}
	}
	m.used -= w.size
	m.grant()
}

// grant lets those in who fit, in order. The caller holds mu.
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

// put takes back what get has returned.
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
