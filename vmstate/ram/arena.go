package ram

// chunkSize is how much captured memory one write passes on, and by how much
// the arena grows.
const chunkSize = 1 << 20

// arena holds captured records in the form in which they are sent. Its memory
// is ordinary Go memory: a writer may still refer to it when the Saver is gone.
type arena struct {
	limit  int // chunks there may be
	size   int // of a chunk, bytes
	chunks [][]byte
	used   []int // per chunk
	cur    int   // the chunk that is being filled
}

// newArena returns an arena of at most limit bytes, but at least one record.
func newArena(limit uint64) arena {
	size := uint64(chunkSize)
	if limit < size {
		size = max(limit, maxRecord)
	}
	return arena{limit: int(max(limit/size, 1)), size: int(size)}
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
	if len(a.chunks) >= a.limit {
		return false
	}
	chunk := make([]byte, a.size)
	// The operating system gives memory when it is first written: do that
	// here and not while a guest waits.
	for i := 0; i < len(chunk); i += PageSize {
		chunk[i] = 0
	}
	a.chunks = append(a.chunks, chunk)
	a.used = append(a.used, 0)
	return true
}

// prepare makes bytes of memory ready, as far as the limit allows.
func (a *arena) prepare(bytes int) {
	for len(a.chunks)*a.size < bytes && a.grow() {
	}
}

// bytes returns how much is captured.
func (a *arena) bytes() int {
	n := 0
	for _, u := range a.used {
		n += u
	}
	return n
}
