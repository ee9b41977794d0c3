package proxy

import (
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate"
)

// markPatience is how long the marker of an epoch may come after the secondary's guest has
// begun to run from it. If it takes longer, the connection has stalled.
const markPatience = time.Second

// attach begins a connection. If an epoch has begun without it, nothing is compared until the
// next one, since the secondary's guest has missed input, and its output so far is missing
// here.
func (p *Primary) attach() {
	p.mu.Lock()
	p.connected, p.inStep, p.stalled = true, false, false
	p.up.set(true)
	ask := false
	if p.active && p.comparer != nil {
		p.comparer.Deafen()
		ask, p.asked = true, true
	}
	p.mu.Unlock()
	if ask {
		p.ask(event.CauseDivergence)
	}
}

// detach ends a connection. Packets that wait for their twins, the same packets
// of the secondary's guest, will get none.
func (p *Primary) detach() {
	p.mu.Lock()
	p.connected, p.inStep, p.stalled = false, false, false
	p.up.set(false)
	_ = p.mirror.Failover() // nobody takes packets until the next mark
	ask := false
	if p.active && p.comparer != nil {
		p.comparer.Deafen()
		s, _ := p.comparer.Stats()
		ask = s.Held > 0 && !p.asked
		p.asked = p.asked || ask
	}
	p.mu.Unlock()
	if ask {
		p.ask(event.CauseDivergence)
	}
}

// secondaryMark is called for a marker in the secondary's stream.
func (p *Primary) secondaryMark(epoch uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.active || p.comparer == nil {
		return nil // it belongs to a session that is over
	}
	if err := p.comparer.SecondaryMark(epoch); err != nil {
		return err
	}
	if !p.comparer.Deaf() {
		p.stalled = false
	}
	return nil
}

// Mark ends an epoch: the guest is paused, and the packets that it has sent and been sent
// belong to epoch. From Mark(0) on output is held. If the guest was not paused through the
// Primary it returns [ErrRunning]; for an epoch out of order, compare.ErrEpoch or
// filter.ErrEpoch. (A colo.PrimaryNetwork.)
func (p *Primary) Mark(epoch uint64) error {
	if !p.gate.closed() {
		return ErrRunning
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.buffer != nil {
		if err := p.buffer.Mark(epoch); err != nil {
			return err
		}
		p.active, p.over = true, false
		return p.edge.Mark(epoch)
	}
	silent := epoch > 0 && p.inStep && p.comparer.Deaf() && p.cfg.Now().Sub(p.loaded) > markPatience
	if err := p.comparer.Mark(epoch); err != nil {
		return err
	}
	p.active, p.over, p.asked, p.sent = true, false, false, 0
	p.inStep, p.stalled = p.connected, silent
	if p.inStep {
		_ = p.mirror.Mark(epoch) // never fails
	}
	return p.edge.Mark(epoch)
}

// Received lets everything leave that was sent before the mark of epoch. (A
// colo.PrimaryNetwork.)
func (p *Primary) Received(epoch uint64) error {
	_ = p.edge.Received(epoch) // never fails
	if p.buffer != nil {
		return p.buffer.Received(epoch)
	}
	return p.comparer.Received(epoch)
}

// Loaded says that the secondary's guest runs epoch. (A colo.PrimaryNetwork.)
func (p *Primary) Loaded(epoch uint64) error {
	if p.buffer != nil {
		return p.buffer.Loaded(epoch)
	}
	p.mu.Lock()
	p.loaded = p.cfg.Now()
	p.mu.Unlock()
	return p.comparer.Loaded(epoch)
}

// Failover says that this side goes on alone: what is held leaves, in order, and
// packets pass from now on. It ends Serve. (A colo.PrimaryNetwork.)
func (p *Primary) Failover() error {
	p.mu.Lock()
	p.over, p.active, p.inStep = true, false, false
	_ = p.mirror.Failover()
	var err error
	if p.buffer != nil {
		err = p.buffer.Failover()
	} else {
		err = p.comparer.Failover()
	}
	_ = p.edge.Failover() // never fails
	p.mu.Unlock()
	p.slot.close()
	return err
}

// Entry returns the entry under which the Primary is registered in a vmstate.Registry.
// instance is the number of the NIC within the guest. The other side registers its
// Secondary with the same number.
func (p *Primary) Entry(instance uint32) vmstate.Entry { return entry(instance) }

// PreSave gathers the packets that the guest sent before the mark and that have not left,
// the guest's addresses, the connections that are translated, and the scales of the guest's
// windows. (A vmstate.PreSaver.)
func (p *Primary) PreSave() error {
	if p.buffer != nil {
		if err := p.buffer.PreSave(); err != nil {
			return err
		}
	} else {
		p.backlog.Reset()
		p.comparer.Unwritten(func(f compare.Frame) { p.backlog.Add(f.Data) })
		p.scales.gather(p.comparer.AppendScales)
	}
	return preSave(p.known, p.edge)
}

// VMState saves what PreSave has gathered. It does not load: a host that takes a guest
// back has a Secondary for that. (A vmstate.Device.)
func (p *Primary) VMState(f *vmstate.Fields) {
	switch {
	case f.Loading():
		f.Fail(&filter.Error{Op: "load a primary's network", Offset: -1, Err: vmstate.ErrValue})
		return
	case p.buffer != nil:
		p.buffer.VMState(f)
	default:
		p.backlog.Save(f)
	}
	stand(f, p.known, p.edge, &p.scales)
}

// HeldOutput returns the sum of the guest's output that waits for its twin or for its
// checkpoint, with virtio-net headers. It is less than Held of [PrimaryStats], which also
// counts packets of the secondary's guest. (A colo.OutputHolder.)
func (p *Primary) HeldOutput() event.HeldOutput {
	if p.buffer != nil {
		return p.buffer.HeldOutput()
	}
	return p.comparer.HeldOutput()
}

// OutputLatency returns how long the packets that have left were kept, from when the
// guest sent them until the network had taken them, whatever let them leave.
func (p *Primary) OutputLatency() event.Latency {
	if p.buffer != nil {
		return p.buffer.OutputLatency()
	}
	return p.comparer.OutputLatency()
}

// Neighbors returns the addresses under which the network knows the guest, as far as they
// were learned.
func (p *Primary) Neighbors() []Neighbor { return p.known.All() }

// Stats returns the present counts.
func (p *Primary) Stats() PrimaryStats {
	p.mu.Lock()
	s := PrimaryStats{
		Delivered: p.count.delivered, Refused: p.count.dropped, Mirrored: p.count.mirrored,
		Connected: p.connected,
	}
	p.mu.Unlock()
	s.Unsent = p.mirror.LostFrames()
	if p.buffer != nil {
		b := p.buffer.Stats()
		s.Buffer, s.Checkpoint = b, b.Written
		s.Held, s.HeldBytes, s.Queued = b.Held, b.HeldBytes, b.Queued
		return s
	}
	c, queued := p.comparer.Stats()
	s.Compare, s.Waits = c, p.comparer.Waits()
	s.Matched, s.Checkpoint, s.Passed, s.Recovered = c.Matched, c.Checkpoint, c.Passed, c.Recovered
	for r, n := range c.Diverged {
		if compare.Reason(r) != compare.ReasonPace {
			s.Diverged += n
		}
	}
	s.Held, s.HeldBytes, s.Queued = uint64(c.Held), uint64(c.HeldBytes), uint64(queued)
	return s
}
