package proxy

import (
	"context"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/wait"
)

// Promote returns the Primary of a guest that has been taken over, which is to be
// protected again. It translates the connections that this side translates, knows
// the guest's addresses, and goes on with an announcement that is not finished. A
// host does these things, in this order:
//
//   - It pauses the guest, by Pause, and calls Drain.
//   - It ends Run, which closes the network if that has a Close, and calls Promote.
//   - It gives the Primary's Run a network that is opened again, or whose end of a read the
//     host has seen to itself, registers the Primary with a registry of the next session,
//     and gives it to that session.
//
// VM, Deliver, Limit and Gate are taken from the Secondary where cfg has none, and
// VNetHdr always is. The guest is still paused; Resume of the Primary resumes it. The
// other side has a new Secondary. Promote returns how many connections there was no
// room for (filter.MaxEdge); they break at the next failover. The Secondary must not
// be used afterwards.
func (s *Secondary) Promote(cfg PrimaryConfig) (p *Primary, left int) {
	if cfg.VM == nil {
		cfg.VM = s.cfg.VM
	}
	if cfg.Deliver == nil {
		cfg.Deliver = s.cfg.Deliver
	}
	if cfg.Limit == 0 {
		cfg.Limit = s.cfg.Limit
	}
	if cfg.Gate == nil {
		cfg.Gate = s.cfg.Gate
	}
	cfg.VNetHdr = s.cfg.VNetHdr
	p = NewPrimary(cfg)
	p.known, p.edge, p.announce = s.known, s.edge, s.announce
	p.edge.Checkpoint = p.mirror.Lost
	p.gate.open = !s.gate.closed()
	s.HandOverScales(p)
	return p, s.HandOver(s.edge)
}

// HandOver gives e the connections whose numbers this side translates, after it has
// taken over and before its guest is protected again, for a host that puts an Edge
// around its network itself; [Secondary.Promote] does all this with one of its own. A
// host then does these things, in this order:
//
//   - It pauses the guest, by Pause, and calls Drain.
//   - It ends Run, and calls HandOver.
//   - It makes a Primary for the guest, gives its Run the network behind e
//     ([filter.Edge.Network]), and registers e as a device of the guest, behind the
//     Primary. The session's Mark, Received and Failover go to e too, and e.Checkpoint
//     asks for a checkpoint. The new Secondary has an Edge of its own, in the same places
//     and in the Rewriter of its configuration.
//   - It calls HandOverScales.
//
// If this side has an Edge already, because it was a Secondary of such a pair, give
// that one: it keeps its connections. HandOver returns how many connections e had no
// room for; they break at the next failover. The Secondary must not be used
// afterwards.
func (s *Secondary) HandOver(e *filter.Edge) (left int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.Adopt(s.rewriter)
}

// HandOverScales gives p what this side knows of the windows of its guest's connections, which
// the comparison of p cannot learn any more: by how much each is scaled. It is called after
// HandOver, and before a session with p begins or the guest sends anything by way of p.
func (s *Secondary) HandOverScales(p *Primary) {
	if p.comparer == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.comparer.AdoptScales(s.scales)
}

// Drain returns when all packets that may leave have been written to the network, or with
// the cause of the end of ctx. Run writes them, as far as the gate is open. The guest must
// be paused, or new packets may come without end.
func (p *Primary) Drain(ctx context.Context) error {
	return wait.Until(ctx, func() bool { return p.Stats().Queued == 0 })
}

// Drain is for a side that has taken over. It returns when the packets that its guest has
// inherited and sent have been written to the network, or with the cause of the end of
// ctx. Run writes them, as far as the gate is open. The guest must be paused, or new
// packets may come without end.
func (s *Secondary) Drain(ctx context.Context) error {
	return wait.Until(ctx, func() bool {
		k := s.keep.Stats()
		return k.Queued+k.Inherited == 0
	})
}
