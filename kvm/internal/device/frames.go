package device

import (
	"encoding/binary"
	"errors"

	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/vmstate"
)

// frames is a queue of frames in one piece of memory: each is four bytes of length, big
// endian, a virtio-net header of vnetLen bytes, and the frame.
type frames struct {
	buf        []byte
	start, end uint32 // the frames are buf[start:end]
}

const (
	vnetLen = packet.VNetLen

	frameLen  = 4 // bytes of a length
	frameOver = frameLen + vnetLen
)

// In version 1 of a card's section a length has two bytes, and a frame has no
// virtio-net header.
const (
	oldFrameLen = 2
	oldQueued   = 512 << 10
)

func newFrames(n int) frames { return frames{buf: make([]byte, n)} }

// free returns for how many bytes there is room. A frame takes its own and frameOver more.
func (q *frames) free() int { return len(q.buf) - int(q.end-q.start) }

// add appends n bytes, header and frame, for the caller to fill; nil: there is no room.
func (q *frames) add(n int) []byte {
	need := frameLen + n
	if need > q.free() {
		return nil
	}
	if need > len(q.buf)-int(q.end) {
		q.end = uint32(copy(q.buf, q.buf[q.start:q.end]))
		q.start = 0
	}
	binary.BigEndian.PutUint32(q.buf[q.end:], uint32(n))
	b := q.buf[q.end+frameLen:][:n:n]
	q.end += uint32(need)
	return b
}

// first returns the header and the frame that were added first, valid until the next
// call; nil if there are none.
func (q *frames) first() []byte {
	if q.start == q.end {
		return nil
	}
	n := binary.BigEndian.Uint32(q.buf[q.start:])
	return q.buf[q.start+frameLen:][:n:n]
}

// drop removes what was added first.
func (q *frames) drop() {
	q.start += frameLen + binary.BigEndian.Uint32(q.buf[q.start:])
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
	if f.Loading() && f.DeviceVersion() < netVersion {
		old := make([]byte, f.Count(uint64(q.end), oldQueued))
		f.Bytes("waiting", old)
		if f.Err() == nil {
			end, err := q.convert(old)
			vmstate.Set(f, &q.end, end)
			f.Fail(err)
		}
		return
	}
	f.Bytes("waiting", vmstate.Elems(f, q.buf, uint64(q.end)))
	if f.Loading() && f.Err() == nil {
		f.Fail(q.check())
	}
}

// convert makes q hold the frames of version 1, and returns where they end.
func (q *frames) convert(old []byte) (end uint32, err error) {
	var to frames
	to.buf = q.buf
	for len(old) > 0 {
		if len(old) < oldFrameLen {
			return 0, errFrames
		}
		n := int(binary.BigEndian.Uint16(old))
		if n < MinFrame || n > len(old)-oldFrameLen {
			return 0, errFrames
		}
		b := to.add(vnetLen + n) // there is room: see netQueued
		clear(b[:vnetLen])
		copy(b[vnetLen:], old[oldFrameLen:])
		old = old[oldFrameLen+n:]
	}
	return to.end, nil
}

// check returns what is wrong with frames from a stream.
func (q *frames) check() error {
	for p := q.buf[:q.end]; len(p) > 0; {
		if len(p) < frameLen {
			return errFrames
		}
		n := uint64(binary.BigEndian.Uint32(p))
		if n < vnetLen+MinFrame || n > vnetLen+MaxBigFrame || n > uint64(len(p)-frameLen) {
			return errFrames
		}
		b := p[frameLen:][:n]
		var h [vnetLen]byte
		if copy(h[:], b); !honest(h[:], b[vnetLen:]) || [vnetLen]byte(b) != h {
			return errFrames
		}
		p = p[frameLen+n:]
	}
	return nil
}

var errFrames = errors.Join(vmstate.ErrValue, errors.New("waiting frames do not add up"))
