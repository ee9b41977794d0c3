package device

import (
	"encoding/binary"
	"fmt"

	"github.com/gocolo/lockstep/vmstate"
)

// QueueSize is the number of descriptors of every queue. A legacy driver takes
// what it is given.
const QueueSize = 256

// A legacy virtqueue is one piece of memory: descriptors, the ring in which the
// driver makes chains of them available, and on the next page the ring in which
// the device returns them. (Virtio 1.1, sections 2.6.2 and 2.6.5 to 2.6.8.)
const (
	queueAlign = 4096
	availAt    = QueueSize * 16
	usedAt     = (availAt + 6 + 2*QueueSize + queueAlign - 1) / queueAlign * queueAlign
	queueBytes = usedAt + 6 + 8*QueueSize

	descNext     = 1 // flags of a descriptor
	descWrite    = 2
	descIndirect = 4

	availNoInterrupt = 1 // flag of the available ring
)

// queue is the device's end of a virtqueue. The fields up to begun are its state.
type queue struct {
	pfn    uint32  // page of the queue; 0: not set up
	last   uint16  // next entry of the available ring
	used   uint16  // next entry of the used ring
	broken bool    // the driver broke the rules: nothing is done until a reset
	begun  []begun // requests that were performed in part, and that nobody performs inside the gate

	parts    bool // the device performs requests in parts
	mem      *Memory
	segments [QueueSize]segment // of the chains that were looked at
	list     [QueueSize]room    // of rooms
}

// segment is a piece of memory that a descriptor names.
type segment struct {
	addr uint64
	n    uint32
}

// chain is a chain of descriptors that the driver made available: the device reads out and
// writes in. It is valid until the next peek.
type chain struct {
	head    uint16
	out, in []segment
}

// queueError says how a driver broke the rules.
type queueError struct{ what string }

func (e *queueError) Error() string { return "virtqueue: " + e.what }

// setup makes the queue empty, at a page; 0 switches it off.
func (q *queue) setup(pfn uint32) {
	q.pfn, q.last, q.used, q.broken, q.begun = pfn, 0, 0, false, q.begun[:0]
	if pfn != 0 && !q.fits() {
		q.broken = true
	}
}

func (q *queue) base() uint64 { return uint64(q.pfn) * queueAlign }
func (q *queue) fits() bool   { return q.mem.has(q.base(), queueBytes) }

// usable reports whether the rings may be looked at.
func (q *queue) usable() bool { return q.pfn != 0 && !q.broken }

// peek returns the next available chain and leaves it there. ok is false if there
// is none. An error breaks the queue.
func (q *queue) peek() (c chain, ok bool, err error) {
	if n, err := q.available(); n == 0 {
		return chain{}, false, err
	}
	c, err = q.chain(q.last, q.segments[:])
	return c, err == nil, err
}

// available returns how many chains there are to look at, none with an error, which
// breaks the queue.
func (q *queue) available() (uint16, error) {
	if !q.usable() {
		return 0, nil
	}
	n := uint16(q.mem.load(q.base()+availAt)>>16) - q.last
	if n > QueueSize {
		return 0, q.fail("the available index is ahead by %d", n)
	}
	return n, nil
}

// room is the part of a chain that the device may write.
type room struct {
	head uint16
	n    uint32 // the length of the buffers, bytes
}

// rooms looks at as many of the next available chains as are needed to hold n bytes, and
// leaves them there. It returns the room of each, and the segments of all of them in one
// list; none if the available chains are too small. Without merge the first chain must hold
// all n bytes. never says that waiting would not help: the first chain, or with merge the
// whole ring, is too small. The results are valid until the next call of rooms or peek. An
// error breaks the queue.
func (q *queue) rooms(n uint64, merge bool) (list []room, in []segment, never bool, err error) {
	avail, err := q.available()
	if err != nil {
		return nil, nil, false, err
	}
	most := uint16(QueueSize)
	if !merge {
		most = 1
	}
	// Chains that are available at once share no descriptors, so that all of them together have no
	// more than a ring.
	at, seen, total := 0, 0, uint64(0)
	for k := uint16(0); total < n; k++ {
		if k == most || k == avail {
			return nil, nil, k == most, nil
		}
		c, err := q.chain(q.last+k, q.segments[at:at+QueueSize-seen])
		if err != nil {
			return nil, nil, false, err
		}
		seen += len(c.out) + len(c.in)
		has := size(c.in)
		q.list[k] = room{c.head, uint32(has)}
		list = q.list[:k+1]
		at += copy(q.segments[at:], c.in)
		total += has
	}
	return list, q.segments[:at], false, nil
}

// chain returns the chain at entry pos of the available ring, and puts its descriptors into
// segments. A chain of more than len(segments) breaks the rules. An error breaks the queue.
func (q *queue) chain(pos uint16, segments []segment) (c chain, err error) {
	return q.walk(q.mem.uint16(q.base()+availAt+4+2*uint64(pos%QueueSize)), segments)
}

// walk does what chain does, for the chain that begins with a descriptor.
func (q *queue) walk(head uint16, segments []segment) (c chain, err error) {
	outs, total := 0, uint64(0)
	i, d := 0, head
	for {
		if d >= QueueSize {
			return chain{}, q.fail("descriptor %d", d)
		}
		if i == len(segments) {
			return chain{}, q.fail("more descriptors than a ring has: a chain that does not end, or chains that share some")
		}
		raw := q.mem.bytes(q.base()+16*uint64(d), 16)
		s := segment{binary.LittleEndian.Uint64(raw), binary.LittleEndian.Uint32(raw[8:])}
		flags, next := binary.LittleEndian.Uint16(raw[12:]), binary.LittleEndian.Uint16(raw[14:])
		switch {
		case flags&descIndirect != 0:
			return chain{}, q.fail("an indirect descriptor")
		case !q.mem.has(s.addr, uint64(s.n)):
			return chain{}, q.fail("%d bytes at %#x", s.n, s.addr)
		case flags&descWrite != 0:
		case outs < i:
			return chain{}, q.fail("a part to read behind one to write")
		default:
			outs++
		}
		segments[i] = s
		i++
		if total += uint64(s.n); total > 1<<32-1 {
			return chain{}, q.fail("a chain of %d bytes", total)
		}
		if flags&descNext == 0 {
			break
		}
		d = next
	}
	return chain{head, segments[:outs], segments[outs:i]}, nil
}

// more reports whether there is a chain to peek at, or the ring is broken in a way that
// peek finds.
func (q *queue) more() bool {
	return q.usable() && uint16(q.mem.load(q.base()+availAt)>>16) != q.last
}

func (q *queue) fail(format string, args ...any) error {
	q.broken = true
	return &queueError{fmt.Sprintf(format, args...)}
}

// pop takes the chain that was peeked at.
func (q *queue) pop() { q.last++ }

// push returns a chain with n bytes written.
func (q *queue) push(head uint16, n uint32) {
	q.put(head, n)
	q.publish()
}

// put writes down that a chain is returned, with n bytes written, which the driver sees
// when it is published.
func (q *queue) put(head uint16, n uint32) {
	var e [8]byte
	binary.LittleEndian.PutUint32(e[:], uint32(head))
	binary.LittleEndian.PutUint32(e[4:], n)
	q.mem.write(q.base()+usedAt+4+8*uint64(q.used%QueueSize), e[:])
	q.used++
}

// publish shows the driver all that was put, at once.
func (q *queue) publish() { q.mem.store(q.base()+usedAt, uint32(q.used)<<16) }

// interrupts reports whether the driver wants to be told of what was pushed. It is
// asked after the push, whose store is a barrier.
func (q *queue) interrupts() bool {
	return q.usable() && q.mem.load(q.base()+availAt)&availNoInterrupt == 0
}

// vmstate names the fields of a queue that is not at work, for a stream.
func (q *queue) vmstate(f *vmstate.Fields) {
	f.Uint32("pfn", &q.pfn)
	f.Uint16("last_avail_idx", &q.last)
	f.Uint16("used_idx", &q.used)
	f.Bool("broken", &q.broken)
	f.Check("queue in memory", q.pfn == 0 || q.broken || q.fits())
	if q.parts {
		q.begunState(f)
	}
}

// size returns how many bytes segments have.
func size(list []segment) (n uint64) {
	for _, s := range list {
		n += uint64(s.n)
	}
	return n
}

// gather copies from segments, from byte off on, and returns how many bytes p took.
func (m *Memory) gather(p []byte, list []segment, off uint64) (n int) {
	for _, s := range list {
		if off >= uint64(s.n) {
			off -= uint64(s.n)
			continue
		}
		n += copy(p[n:], m.bytes(s.addr+off, uint64(s.n)-off))
		if off = 0; n == len(p) {
			break
		}
	}
	return n
}

// scatter copies to segments, from byte off on, and returns how many bytes of p
// went.
func (m *Memory) scatter(p []byte, list []segment, off uint64) (n int) {
	for _, s := range list {
		if off >= uint64(s.n) {
			off -= uint64(s.n)
			continue
		}
		k := min(uint64(s.n)-off, uint64(len(p)-n))
		m.write(s.addr+off, p[n:n+int(k)])
		n += int(k)
		if off = 0; n == len(p) {
			break
		}
	}
	return n
}
