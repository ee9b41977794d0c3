package compare

import (
	"math/bits"

	"github.com/gocolo/lockstep/internal/packet"
)

// A pkt is a packet that waits, or the one that has just come.
type pkt struct {
	Frame
	packet.Packet        // of Frame, without the virtio-net header
	id            uint64 // its place in the order of arrival
	at            instant
	turn          bool // it repeats what has left, and takes its turn behind what waits; see repetition_order.go
	class         int8 // the class of its memory in the pool; -1: Data belongs to the caller

	shape packet.Kind // holdPlain has set all fields in which plain segments of this kind are equal; 0: it has not

	owner *conn  // the connection in whose queue it is or was; of a segment, as long as it is held
	age   uint32 // the owner's age when the packet came

	segment
}

// A pool keeps the memory of packets that have left, by size.
type pool struct {
	free  [largeClass + 1][]*pkt // up to 1 GiB
	kept  int                    // the bytes of free
	limit int                    // what kept may be at most
	bytes int                    // the bytes of buffers that are in use
}

const poolMin = 7 // 128 bytes

// The memory of class c has 1<<(poolMin+c) bytes, and that of the last class 72 KiB: a reader of
// packets needs memory for the longest, which is one of 64 KiB with its headers.
const (
	largeClass = 24
	largeSize  = 72 << 10
)

func classOf(n int) int8 {
	if n > 1<<16 && n <= largeSize {
		return largeClass
	}
	return int8(max(bits.Len(uint(max(n, 1)-1)), poolMin) - poolMin)
}

// costOf returns how much memory the pool uses for a packet of n bytes.
func costOf(n int) int { return sizeOf(classOf(n)) }

// atMost returns an upper bound of costOf, which is quicker to compute. A plain
// segment is taken only if there is as much room.
func atMost(n int) int { return 2*n + 1<<poolMin }

// sizeOf returns how much memory the packets of a class have, which is not negative.
func sizeOf(class int8) int {
	if class == largeClass {
		return largeSize
	}
	return 1 << (poolMin + class&31)
}

// get returns a packet with memory for n bytes. Of its fields only class and Data are set.
func (o *pool) get(n int) *pkt {
	c := classOf(n)
	size := sizeOf(c)
	o.bytes += size
	if l := o.free[c]; len(l) > 0 {
		q := l[len(l)-1]
		o.free[c] = l[:len(l)-1]
		o.kept -= size
		q.Data = q.Data[:n]
		return q
	}
	return &pkt{Frame: Frame{Data: make([]byte, n, size)}, class: c}
}

// copy returns a copy of p that may be kept.
func (o *pool) copy(p *pkt) *pkt {
	q := o.get(len(p.Data))
	mem, c := q.Data, q.class
	*q = *p
	q.class, q.Data, q.turn = c, mem, false
	copy(mem, p.Data)
	q.Packet.Frame = nil
	if q.fits() {
		q.Packet.Frame = mem[q.VNetHdr:]
	}
	return q
}

func (o *pool) put(p *pkt) {
	if p.class < 0 {
		return
	}
	o.bytes -= sizeOf(p.class)
	o.keep(p)
}

// keep keeps the memory of a packet that does not count as in use. Beyond the limit it lets
// go of memory of other sizes: what has just been used is needed again soonest.
func (o *pool) keep(p *pkt) {
	o.free[p.class] = append(o.free[p.class], p)
	o.kept += sizeOf(p.class)
	if o.kept > o.limit {
		o.shrink(p.class)
	}
}

// shrink lets go of free memory until the limit is met, last of that of the class last.
func (o *pool) shrink(last int8) {
	drop := func(c int8) {
		l := o.free[c]
		for len(l) > 0 && o.kept > o.limit {
			l[len(l)-1] = nil
			l = l[:len(l)-1]
			o.kept -= sizeOf(c)
		}
		o.free[c] = l
	}
	for c := range int8(len(o.free)) {
		if c != last {
			drop(c)
		}
	}
	drop(last)
}

// A queue holds packets in order. Taking from the front is cheap. It is used where it lies
// and never copied, since its first memory is within it.
type queue struct {
	items []*pkt
	head  int
	one   [1]*pkt // the memory of items, as long as no two packets have waited
}

func (q *queue) len() int      { return len(q.items) - q.head }
func (q *queue) at(i int) *pkt { return q.items[q.head+i] }
func (q *queue) all() []*pkt   { return q.items[q.head:] }
func (q *queue) clear()        { clear(q.items); q.items, q.head = q.items[:0], 0 }

func (q *queue) push(p *pkt) {
	if q.items == nil {
		q.items = q.one[:0] // beside what else is known of the connection
	}
	if q.head > 0 && len(q.items) == cap(q.items) {
		q.close()
	}
	q.items = append(q.items, p)
}

// close moves the packets to the front of the queue's memory.
func (q *queue) close() {
	n := copy(q.items, q.items[q.head:])
	clear(q.items[n:])
	q.items, q.head = q.items[:n], 0
}

func (q *queue) insert(i int, p *pkt) {
	q.push(nil)
	s := q.items[q.head:]
	copy(s[i+1:], s[i:])
	s[i] = p
}

func (q *queue) remove(i int) *pkt {
	s := q.items[q.head:]
	p := s[i]
	if i == 0 {
		s[0] = nil
		q.head++
	} else {
		copy(s[i:], s[i+1:])
		s[len(s)-1] = nil
		q.items = q.items[:len(q.items)-1]
	}
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
	return p
}

// bySeq inserts p behind all packets that do not come after it in the stream.
func (q *queue) bySeq(p *pkt) {
	at := q.len()
	for i := at; i > 0 && (q.at(i-1).turn || after(q.at(i-1).seq, p.seq)); i-- {
		if !q.at(i - 1).turn {
			at = i - 1
		}
	}
	q.insert(at, p)
}

// after reports whether a comes after b in serial number arithmetic (RFC 1982).
func after(a, b uint32) bool { return int32(a-b) > 0 }
