package main

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/vmstate"
)

// outputLimit is how much output a side keeps, in bytes. Half of it asks for a
// checkpoint.
const outputLimit = 16 << 20

// maxApart is how many packets of one flow the guests may be apart: nobody tells
// them to keep pace with each other.
const maxApart = 1 << 16

// A network is the network of a side's guest: a proxy.Primary or a
// proxy.Secondary.
type network interface {
	colo.VM // the guest, as the session sees it
	vmstate.Device
	Entry(instance uint32) vmstate.Entry
	WritePacket(packet []byte) error
	Run(ctx context.Context, network proxy.Network) error
	Serve(ctx context.Context, conn io.ReadWriteCloser) error
	Connected(ctx context.Context) error
	OutputLatency() event.Latency

	waiting() uint64 // packets that are still to leave
}

// newNetwork makes the network of the side's guest. Machine and session come
// later: both are asked only when there is something to do for them.
func (s *side) newNetwork() network {
	deliver := func(packet []byte) error {
		packet, err := s.cfg.VLAN.Untag(packet)
		if err != nil {
			return nil // not for this guest
		}
		return s.machine.Deliver(packet)
	}
	continuous := s.cfg.Mode == trial.ModeContinuous
	if s.cfg.Side == trial.Secondary {
		n := &secondaryNetwork{side: s}
		var vm proxy.VM = lateVM{s}
		if continuous {
			n.standing = &standing{lateVM: lateVM{s}}
			vm = n.standing
		}
		n.Secondary = proxy.NewSecondary(proxy.SecondaryConfig{
			VM: vm, Deliver: deliver, Continuous: continuous, Limit: outputLimit,
		})
		return n
	}
	return &primaryNetwork{proxy.NewPrimary(proxy.PrimaryConfig{
		VM: lateVM{s}, Deliver: deliver, Continuous: continuous, Limit: outputLimit,
		Compare:           compare.Config{MaxQueue: maxApart},
		CompareAlways:     s.cfg.Mode == trial.ModeCompare,
		RequestCheckpoint: func(c event.Cause) { s.session.(*colo.Primary).RequestCheckpoint(c) },
		Events:            watched(s.cfg, &s.events),
	}), s}
}

// send takes a packet from the guest's NIC.
func (s *side) send(packet []byte) error { return s.net.WritePacket(s.cfg.VLAN.Tag(packet)) }

// lateVM is the side's machine, which is made after its network.
type lateVM struct{ s *side }

func (v lateVM) Pause(ctx context.Context) error  { return v.s.machine.Pause(ctx) }
func (v lateVM) Resume(ctx context.Context) error { return v.s.machine.Resume(ctx) }

// Throttle slows the guest down where its machine can.
func (v lateVM) Throttle(percent int) error {
	if m, ok := v.s.machine.(colo.Throttler); ok {
		return m.Throttle(percent)
	}
	return errors.ErrUnsupported
}

// Stopped returns how long the guest stood still in its last pause, 0 where its
// machine does not measure it.
func (v lateVM) Stopped() time.Duration {
	if m, ok := v.s.machine.(colo.Stopper); ok {
		return m.Stopped()
	}
	return 0
}

// primaryNetwork notes what waits at a mark, and tells the client when this side
// is alone.
type primaryNetwork struct {
	*proxy.Primary
	side *side
}

func (n *primaryNetwork) Mark(epoch uint64) error {
	n.side.held = n.Stats().Held
	return n.Primary.Mark(epoch)
}

func (n *primaryNetwork) Failover() error {
	return errors.Join(n.side.out.WritePacket([]byte(trial.TookOver)), n.Primary.Failover())
}

func (n *primaryNetwork) waiting() uint64 {
	s := n.Stats()
	return s.Held + s.Queued
}

// traffic is what the primary tells of its network.
func (n *primaryNetwork) traffic() *trial.Traffic { return trafficOf(n.Stats()) }

// trafficOf is what is told of a primary's network.
func trafficOf(s proxy.PrimaryStats) *trial.Traffic {
	return &trial.Traffic{
		Matched: s.Matched, AtCheckpoint: s.Checkpoint, Diverged: s.Diverged,
		LatencyP50US: s.Waits.Quantile(0.5).Microseconds(), LatencyP99US: s.Waits.Quantile(0.99).Microseconds(),
	}
}

// secondaryNetwork tells the client when this side is alone.
type secondaryNetwork struct {
	*proxy.Secondary
	side     *side
	standing *standing // nil: the guest runs
}

func (n *secondaryNetwork) Failover() error {
	if n.standing != nil {
		n.standing.failover()
	}
	return errors.Join(n.side.out.WritePacket([]byte(trial.TookOver)), n.Secondary.Failover())
}

func (n *secondaryNetwork) waiting() uint64 {
	k := n.Stats().Keep
	return k.Held + k.Queued + k.Inherited
}

// cable is the way to the client: one connection for what the guest sends, and
// one for what it is sent, so that what is unread of the one when a side dies does
// not reset the other.
type cable struct {
	out, in *filter.Conn
	conns   [2]net.Conn
}

func (c *cable) ReadPacket() ([]byte, error)     { return c.in.ReadPacket() }
func (c *cable) WritePacket(packet []byte) error { return c.out.WritePacket(packet) }
func (c *cable) Close() error                    { return errors.Join(c.conns[0].Close(), c.conns[1].Close()) }
