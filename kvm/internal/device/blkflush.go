package device

import (
	"context"
	"slices"
)

// finish has the backend flushed for the request that the last step has left, if it has left one,
// and answers it. It is called outside the gate, so that no pause waits for the backend, which may
// take long. The request is among those that were begun meanwhile, as a state has it. If it is not
// when the backend has answered, since the driver has taken the queue away or the guest was put
// back, nobody waits for the answer: if the backend has failed, the next flush fails for it, since a
// backend may tell of a failure once only.
func (b *blkServer) finish(ctx context.Context, gate *Gate) {
	if !b.flush {
		return
	}
	b.flush = false
	status := b.answer("sync", b.backend.Sync())
	in := gate.Enter(ctx) || gate.TryEnter() // the guest's last flush is answered though ctx has ended
	if in {
		defer gate.Leave()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.untold {
		status = blkIOErr
	}
	b.untold = status != blkOK // until it is told
	q := &b.queues[0]
	i := slices.IndexFunc(q.begun, func(r begun) bool { return r.by == b })
	switch {
	case i < 0:
		return
	case !in: // whoever runs next has it flushed again
		q.begun[i].by = nil
		return
	}
	r := q.takeBegun(i)
	if !q.usable() {
		return
	}
	c, err := q.walk(r.head, q.segments[:])
	b.broke(0, err)
	if err != nil {
		return
	}
	if n := size(c.in); n > 0 { // the guest may have changed the chain
		b.mem.scatter([]byte{status}, c.in, n-1)
		b.untold = false
	}
	q.push(r.head, 1)
	b.interrupt(0)
}
