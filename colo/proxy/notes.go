package proxy

import (
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/event"
)

// notesRate is how many events of one kind about flows are published in a second at most.
const notesRate = 10

// notes publishes the comparison's notes about flows as events. It bounds their rate,
// since a guest may make as many flows as it likes.
type notes struct {
	bus *event.Bus
	now func() time.Time

	mu    sync.Mutex
	kinds [3]struct {
		second time.Time // when the present second began
		n      int       // events that were published in it
		left   uint64    // events that were left out since the last one that was published
	}
}

func (o *notes) put(n compare.Note) {
	if int(n.Kind) >= len(o.kinds) {
		return
	}
	o.mu.Lock()
	k := &o.kinds[n.Kind]
	if now := o.now(); now.Sub(k.second) >= time.Second {
		k.second, k.n = now, 0
	}
	if k.n >= notesRate {
		k.left++
		o.mu.Unlock()
		return
	}
	k.n++
	left := k.left
	k.left = 0
	o.mu.Unlock()
	flow := event.Flow{
		Source: n.Flow.Src.String(), Destination: n.Flow.Dst.String(),
		Protocol: n.Flow.Proto, VLAN: n.Flow.VLAN,
	}
	switch n.Kind {
	case compare.NoteDiverged:
		o.bus.Publish(event.NetworkDiverged{Flow: flow, Reason: n.Reason.String(), Omitted: left})
	case compare.NoteApart:
		o.bus.Publish(event.NetworkFlowApart{Flow: flow, Reason: n.Reason.String(), RetryNS: n.Retry.Nanoseconds(), Omitted: left})
	case compare.NoteTogether:
		o.bus.Publish(event.NetworkFlowTogether{Flow: flow, Omitted: left})
	}
}
