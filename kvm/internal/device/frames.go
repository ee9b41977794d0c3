package device

import (
	"encoding/binary"
	"errors"

	"github.com/gocolo/lockstep/vmstate"
)

// frames is a queue of frames in one piece of memory: each is two bytes of length,
// big endian, and the frame.
type frames struct {
	buf        []byte
	start, end uint32
}

func newFrames(n int) frames { return frames{buf: make([]byte, n)} }

// add appends a copy of a frame; false: there is no room.
func (q *frames) add(f []byte) bool {
	need := 2 + len(f)
	if need > len(q.buf)-int(q.end-q.start) {
		return false
	}
	if need > len(q.buf)-int(q.end) {
		q.end = uint32(copy(q.buf, q.buf[q.start:q.end]))
		q.start = 0
	}
	binary.BigEndian.PutUint16(q.buf[q.end:], uint16(len(f)))
	copy(q.buf[q.end+2:], f)
	q.end += uint32(need)
	return true
}

// first returns the frame that was added first, valid until the next call; nil if
// there is none.
func (q *frames) first() []byte {
	if q.start == q.end {
		return nil
	}
	n := uint32(binary.BigEndian.Uint16(q.buf[q.start:]))
	return q.buf[q.start+2:][:n:n]
}

// drop removes the first frame.
func (q *frames) drop() {
	q.start += 2 + uint32(binary.BigEndian.Uint16(q.buf[q.start:]))
	if q.start == q.end {
		q.start, q.end = 0, 0
	}
}

// copy makes q hold what o does.
func (q *frames) copy(o *frames) {
	q.start, q.end = 0, uint32(copy(q.buf, o.buf[o.start:o.end]))
}

// vmstate names the fields of a queue that begins at the start of its memory.
func (q *frames) vmstate(f *vmstate.Fields) {
	f.Uint32("waiting_bytes", &q.end)
	f.Bytes("waiting", vmstate.Elems(f, q.buf, uint64(q.end)))
	if f.Loading() && f.Err() == nil {
		f.Fail(q.check())
	}
}

// check returns what is wrong with frames from a stream.
func (q *frames) check() error {
	for p := q.buf[:q.end]; len(p) > 0; {
		if len(p) < 2 {
			return errFrames
		}
		n := int(binary.BigEndian.Uint16(p))
		if n < MinFrame || n > len(p)-2 {
			return errFrames
		}
		p = p[2+n:]
	}
	return nil
}

var errFrames = errors.Join(vmstate.ErrValue, errors.New("waiting frames do not add up"))
