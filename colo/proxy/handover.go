package proxy

import "github.com/gocolo/lockstep/colo/filter"

// HandOver gives e the connections whose numbers this side translates, after it has
// taken over and before its guest is protected again. A host then does these things,
// in this order:
//
//   - It pauses the guest, by Pause, and waits until Stats says that nothing of Keep
//     is queued or inherited: that is on its way to the network.
//   - It ends Run, and calls HandOver.
//   - It makes a Primary for the guest, gives its Run the network behind e
//     ([filter.Edge.Network]), and registers e as a device of the guest, behind the
//     Primary. The new Secondary has an Edge of its own, in the same places and in
//     the Rewriter of its configuration.
//
// An Edge that this side has had itself, because it was a Secondary of such a pair,
// is the one to give: it keeps what it has. HandOver returns how many connections e
// had no room for; they break at the next failover. The Secondary is of no further
// use.
func (s *Secondary) HandOver(e *filter.Edge) (left int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.Adopt(s.rewriter)
}
