package filter

import "encoding/binary"

// A ring is a queue of frames in one piece of reused memory. A frame is stored
// without a break, behind its length, so that it can be handed out as it lies.
// The memory grows as needed up to a limit; a ring that runs empty begins at
// the front again and so stays in few cache lines.
type ring struct {
	limit int
	mem   []byte
	head  int // where the oldest frame is
	tail  int // the end of the youngest frame
	end   int // where the frames end that are at the end of mem, if they wrap around
	n     int // how many frames there are

	drafted bool // somebody writes into mem, behind the frames: see draft
	draftAt int  // where, if so
}

const ringMin = 4 << 10

// slot returns the memory that a frame of n bytes takes, in bytes.
func slot(n int) int { return (4 + n + 3) &^ 3 }

// place returns where need bytes are free, or -1 if they are only in a larger memory.
func (r *ring) place(need int) int {
	switch {
	case r.n == 0 && need <= len(r.mem):
		return 0
	case r.n == 0:
		return -1
	case r.tail > r.head && len(r.mem)-r.tail >= need:
		return r.tail
	case r.tail > r.head && r.head >= need:
		return 0
	case r.tail <= r.head && r.head-r.tail >= need:
		return r.tail
	}
	return -1
}

// used returns the number of bytes from the oldest to the youngest frame.
func (r *ring) used() int {
	switch {
	case r.n == 0:
		return 0
	case r.tail > r.head:
		return r.tail - r.head
	}
	return r.end - r.head + r.tail
}

// fits reports whether push of a frame of n bytes would succeed.
func (r *ring) fits(n int) bool {
	need := slot(n)
	return r.place(need) >= 0 || len(r.mem) < r.limit && r.used()+need <= r.limit
}

// push copies p to the end of the queue, or returns false if the limit forbids.
func (r *ring) push(p []byte) bool { return r.pushBehind(nil, p) }

// pushBehind does what push does, for a frame that is head followed by p.
func (r *ring) pushBehind(head, p []byte) bool {
	n := len(head) + len(p)
	at := r.room(n)
	if at < 0 {
		return false
	}
	copy(r.mem[at+4+copy(r.mem[at+4:], head):], p)
	r.put(at, n)
	return true
}

// room returns where there is room for a frame of n bytes, for which it may move the
// others, or -1 if the limit forbids.
func (r *ring) room(n int) int {
	need := slot(n)
	at := r.place(need)
	if at < 0 || r.drafted {
		if !r.fits(n) {
			return -1
		}
		r.drafted = false // the writer of the draft keeps the old memory
		r.grow(need)
		at = r.place(need)
	}
	return at
}

// put makes the n bytes behind at, where there is room, the youngest frame.
func (r *ring) put(at, n int) {
	switch {
	case r.n == 0:
		r.head = at
	case at == 0 && r.tail > r.head:
		r.end = r.tail
	}
	binary.NativeEndian.PutUint32(r.mem[at:], uint32(n))
	r.tail = at + slot(n)
	r.n++
}

// draft returns memory behind the frames, in which the caller makes a frame of n bytes, or nil
// if the limit forbids. The caller may write there, whatever happens to the ring, until it
// calls adopt or scrap. There is one draft at a time.
func (r *ring) draft(n int) []byte {
	at := r.room(n)
	if at < 0 {
		return nil
	}
	r.drafted, r.draftAt = true, at
	return r.mem[at+4 : at+4+n : at+4+n]
}

// adopt makes p, which draft has returned, the youngest frame, where it is if nothing was
// pushed meanwhile. It returns false, as push does, if that takes memory beyond the limit.
func (r *ring) adopt(p []byte) bool {
	if !r.drafted {
		return r.push(p)
	}
	r.drafted = false
	r.put(r.draftAt, len(p)) // frames may have left meanwhile, and the place is as it was
	return true
}

// scrap ends what draft began, without a frame.
func (r *ring) scrap() { r.drafted = false }

// grow moves the frames to the front of another memory, which is larger if need bytes are
// not free in this one. Frames that were handed out stay where they are, in the old one.
func (r *ring) grow(need int) {
	used := r.used()
	size := max(len(r.mem), ringMin)
	if r.place(need) < 0 {
		size = max(2*len(r.mem), ringMin)
	}
	for size < used+need {
		size *= 2
	}
	mem := make([]byte, min(size, r.limit))
	if r.n > 0 && r.tail <= r.head {
		k := copy(mem, r.mem[r.head:r.end])
		copy(mem[k:], r.mem[:r.tail])
	} else {
		copy(mem, r.mem[r.head:r.tail])
	}
	r.mem, r.head, r.tail = mem, 0, used
}

// front returns the oldest frame, in the ring's memory. The ring is not empty.
func (r *ring) front() []byte { return r.at(r.head) }

func (r *ring) at(i int) []byte {
	n := int(binary.NativeEndian.Uint32(r.mem[i:]))
	return r.mem[i+4 : i+4+n : i+4+n]
}

// pop removes the oldest frame. Its memory may be reused from now on.
func (r *ring) pop() {
	r.head += slot(len(r.front()))
	r.n--
	switch {
	case r.n == 0:
		r.head, r.tail = 0, 0
	case r.head == r.end && r.tail <= r.head:
		r.head = 0
	}
}

// each calls fn with the oldest n frames, in order.
func (r *ring) each(n int, fn func(p []byte)) {
	at, wrapped := r.head, r.n > 0 && r.tail <= r.head
	for range n {
		if wrapped && at == r.end {
			at, wrapped = 0, false
		}
		p := r.at(at)
		fn(p)
		at += slot(len(p))
	}
}

// clear forgets all frames. If keep, their memory is not used again, because
// somebody still reads one of them.
func (r *ring) clear(keep bool) {
	if keep {
		r.mem, r.drafted = nil, false
	}
	r.head, r.tail, r.n = 0, 0, 0
}
