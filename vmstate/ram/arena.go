package ram

import "math"

const (
	// chunkSize is how much captured memory one write passes on at most, and by how
	// much an arena grows at most, in bytes.
	chunkSize = 1 << 20
	// firstChunk is the size of the first chunk of an arena. It doubles until it grows by chunkSize: of
	// the guests of a host most are idle, and capture little.
	firstChunk = 128 << 10
)

// arena holds captured records in the form in which they are sent. Its memory
// is ordinary Go memory: a writer may still refer to it when the Saver is gone.
type arena struct {
	limit  int // bytes there may be
	held   int // bytes there are, in all chunks
	chunks [][]byte
	used   []int // per chunk
	cur    int   // the chunk that is being filled

	most     int // the most that one capture took of late
	captures int // captures since most was counted anew
}

// settleEvery is after how many captures the arena judges how much memory the
// guest's captures need.
const settleEvery = 64

// newArena returns an arena of at most limit bytes, but at least one record.
func newArena(limit uint64) arena {
	return arena{limit: int(min(max(limit, maxRecord), math.MaxInt))}
}

// reset empties the arena and keeps its memory.
func (a *arena) reset() {
	clear(a.used)
	a.cur = 0
}

// room returns memory for one record, or nil if the arena is full.
func (a *arena) room() []byte {
	if a.cur < len(a.chunks) {
		if p := a.chunks[a.cur][a.used[a.cur]:]; len(p) >= maxRecord {
			return p
		}
		a.cur++
	}
	if a.cur == len(a.chunks) && !a.grow() {
		a.cur--
		return nil
	}
	return a.chunks[a.cur]
}

// take keeps the first n bytes of what room returned.
func (a *arena) take(n int) { a.used[a.cur] += n }

func (a *arena) grow() bool {
	size := min(max(a.held, firstChunk), chunkSize, a.limit-a.held)
	if size < maxRecord {
		return false
	}
	chunk := make([]byte, size)
	// The operating system gives memory when it is first written: do that
	// here and not while a guest waits.
	for i := 0; i < len(chunk); i += PageSize {
		chunk[i] = 0
	}
	a.held += size
	a.chunks = append(a.chunks, chunk)
	a.used = append(a.used, 0)
	return true
}

// prepare makes bytes of memory ready, as far as the limit allows.
func (a *arena) prepare(bytes int) {
	for a.held < bytes && a.grow() {
	}
}

// settle makes memory ready for the next capture, which may be larger than the one just
// sent, of captured bytes. It frees memory that no capture has needed for long, as after
// a synchronisation, or when a guest that was busy has become idle.
func (a *arena) settle(captured int) {
	a.prepare(ready(captured))
	a.most = max(a.most, captured)
	if a.captures++; a.captures < settleEvery {
		return
	}
	n := len(a.chunks)
	for ; n > 1 && a.held-len(a.chunks[n-1]) >= ready(a.most); n-- {
		a.held -= len(a.chunks[n-1])
	}
	clear(a.chunks[n:])
	a.chunks, a.used = a.chunks[:n], a.used[:n]
	a.most, a.captures = 0, 0
}

// ready returns how many bytes of memory to hold for the next capture after one
// of captured bytes.
func ready(captured int) int { return 2*captured + min(4*captured+firstChunk, chunkSize) }

// bytes returns how many bytes are captured.
func (a *arena) bytes() int {
	n := 0
	for _, u := range a.used {
		n += u
	}
	return n
}
