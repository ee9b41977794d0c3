package protect

import (
	"sync"
	"time"
)

// A diskOp is something that is asked of a disk, and may take long.
type diskOp uint8

const (
	opRead diskOp = iota
	opWrite
	opFlush
	opZero
	opTrim
	opPrepare
	opMark
	opLoaded
	opCheckpoint
	opStart
	opStop
	opGeneration
	opGrow
)

// diskOpNames are the words of event.DiskStalled.
var diskOpNames = [...]string{
	"read", "write", "flush", "zero", "trim", "prepare", "mark", "loaded", "checkpoint", "start", "stop", "generation", "grow",
}

// gated reports whether the answer to the guest waits for the job's gate, so that it is not the disk
// that is late.
func (op diskOp) gated() bool { return op >= opWrite && op <= opTrim }

// diskWaits keeps account of what has been asked of a disk and has not been answered. It allocates
// nothing once it has seen as many requests at a time as there are. The zero value is ready; its
// methods may be called from any goroutine.
type diskWaits struct {
	mu   sync.Mutex
	all  []diskWait
	free []int // those of all that are over
}

// A diskWait is one of them.
type diskWait struct {
	op    diskOp
	since time.Time // zero: it is over
}

// begin notes that something is asked for; end is called with what it returns.
func (w *diskWaits) begin(op diskOp) (i int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.free); n > 0 {
		i = w.free[n-1]
		w.free = w.free[:n-1]
	} else {
		i = len(w.all)
		w.all = append(w.all, diskWait{})
	}
	w.all[i] = diskWait{op, time.Now()}
	return i
}

// end notes that it has been answered.
func (w *diskWaits) end(i int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all[i] = diskWait{}
	w.free = append(w.free, i)
}

// oldest returns which request has been waited for longest, and since when. What waits for the gate
// counts from shut, when that was last seen shut.
func (w *diskWaits) oldest(shut time.Time) (i int, o diskWait, from time.Time, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, c := range w.all {
		if c.since.IsZero() {
			continue
		}
		since := c.since
		if c.op.gated() && since.Before(shut) {
			since = shut
		}
		if !ok || since.Before(from) {
			i, o, from, ok = k, c, since, true
		}
	}
	return i, o, from, ok
}

// still reports whether a request has not been answered yet.
func (w *diskWaits) still(i int, o diskWait) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all[i] == o
}
