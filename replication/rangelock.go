package replication

import "sync"

// rangeLock locks ranges of a disk. Requests whose ranges conflict are served
// in the order in which they came, those that do not conflict at the same
// time. The zero value is ready. It allocates only until it has as many
// entries as requests were ever outstanding at once.
type rangeLock struct {
	mu    sync.Mutex
	queue []*rangeHold // granted and waiting, in order of arrival
	free  []*rangeHold
}

// rangeHold is one request, until it is unlocked.
type rangeHold struct {
	off, end int64
	shared   bool
	waits    int // how many conflicting requests came before and are not unlocked
	ready    chan struct{}
}

func (h *rangeHold) conflicts(o *rangeHold) bool {
	return h.off < o.end && o.off < h.end && !(h.shared && o.shared)
}

// lock waits until [off, off+n) is free for shared or exclusive use. An empty
// range conflicts with nothing.
func (l *rangeLock) lock(off, n int64, shared bool) *rangeHold {
	l.mu.Lock()
	var h *rangeHold
	if k := len(l.free); k > 0 {
		h, l.free = l.free[k-1], l.free[:k-1]
	} else {
		h = &rangeHold{ready: make(chan struct{}, 1)}
	}
	h.off, h.end, h.shared, h.waits = off, off+n, shared, 0
	for _, o := range l.queue {
		if h.conflicts(o) {
			h.waits++
		}
	}
	blocked := h.waits > 0
	l.queue = append(l.queue, h)
	l.mu.Unlock()
	if blocked {
		<-h.ready
	}
	return h
}

// unlock ends what lock began; h must not be used after.
func (l *rangeLock) unlock(h *rangeHold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := 0
	for l.queue[at] != h {
		at++
	}
	for _, o := range l.queue[at+1:] {
		if !h.conflicts(o) {
			continue
		}
		if o.waits--; o.waits == 0 {
			o.ready <- struct{}{}
		}
	}
	copy(l.queue[at:], l.queue[at+1:])
	l.queue[len(l.queue)-1] = nil
	l.queue = l.queue[:len(l.queue)-1]
	l.free = append(l.free, h)
}
