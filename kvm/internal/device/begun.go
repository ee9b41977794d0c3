package device

import (
	"slices"

	"github.com/gocolo/lockstep/vmstate"
)

// begun is a request that a device has taken out of the available ring and performed in part. The
// driver still owns neither its descriptors nor its memory, so that the chain is read from the
// ring again for each part.
type begun struct {
	head uint16
	done uint64 // bytes of it that have been performed, whole sectors

	by *blkServer // waits for the backend to be flushed for it; not part of the state
}

// waiting returns the place of the request that was begun first and that nobody waits for, or -1.
func (q *queue) waiting() int {
	return slices.IndexFunc(q.begun, func(r begun) bool { return r.by == nil })
}

// takeBegun takes a request out of those that were begun.
func (q *queue) takeBegun(i int) (r begun) {
	r = q.begun[i]
	q.begun = slices.Delete(q.begun, i, i+1)
	return r
}

// next returns the request with which a device goes on: the one that was begun first, or else the
// next one of the available ring, which is taken. It finds none while a call waits for the device.
// mu is held.
func (v *virtio) next(q int) (r begun, c chain, ok bool) {
	b := &v.queues[q]
	if v.held > 0 || !b.usable() {
		return r, c, false
	}
	i := b.waiting()
	if i < 0 {
		if c, ok = v.peek(q); ok {
			b.pop()
		}
		return begun{head: c.head}, c, ok
	}
	r = b.takeBegun(i)
	c, err := b.walk(r.head, b.segments[:])
	v.broke(q, err)
	return r, c, err == nil
}

// begunState names the requests that were begun, for a stream. A stream without any has nothing
// of them, which is what other versions of this package take.
func (q *queue) begunState(f *vmstate.Fields) {
	if f.Loading() {
		q.begun = q.begun[:0]
	}
	f.Subsection("virtqueue/begun", 1, len(q.begun) > 0, func(f *vmstate.Fields) {
		n := uint16(len(q.begun))
		f.Uint16("count", &n)
		k := f.Count(uint64(n), QueueSize)
		f.Check("some requests", k > 0)
		if f.Loading() {
			q.begun = make([]begun, k)
		}
		f.StructArray("requests", "virtqueue_request", 1, k, func(i int, f *vmstate.Fields) {
			r := &q.begun[i]
			f.Uint16("head", &r.head)
			f.Uint64("done", &r.done)
			f.Check("a descriptor of the ring", r.head < QueueSize)
			f.Check("less than a chain has", r.done < 1<<32)
			f.Check("whole sectors, as the backend is asked for", r.done%SectorSize == 0)
		})
	})
}
