package protect

import (
	"context"
	"errors"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
)

// A nets is all networks of a guest; its methods call each of them.
type nets []Network

func (n nets) each(f func(Network) error) error {
	var errs []error
	for _, one := range n {
		errs = append(errs, f(one))
	}
	return errors.Join(errs...)
}

func (n nets) Mark(e uint64) error     { return n.each(func(o Network) error { return o.Mark(e) }) }
func (n nets) Received(e uint64) error { return n.each(func(o Network) error { return o.Received(e) }) }
func (n nets) Loaded(e uint64) error   { return n.each(func(o Network) error { return o.Loaded(e) }) }
func (n nets) Commit(e uint64) error   { return n.each(func(o Network) error { return o.Commit(e) }) }
func (n nets) Resumed(e uint64) error  { return n.each(func(o Network) error { return o.Resumed(e) }) }
func (n nets) Failover() error         { return n.each(Network.Failover) }

// leading is the networks of a primary, of which there may be none, in a session.
type leading struct {
	nets
	j *Job
	s *session
}

// Received implements colo.PrimaryNetwork. A switchover waits for its last checkpoint to be
// received, and for the output up to there to be let go.
func (l leading) Received(e uint64) error {
	err := l.nets.Received(e)
	if err != nil {
		return err
	}
	l.s.mu.Lock()
	last := e > 0 && e == l.s.last
	if last {
		l.s.received = e
	}
	l.s.mu.Unlock()
	if last {
		l.j.wake()
	}
	return nil
}

// HeldOutput implements colo.OutputHolder, for those that are one.
func (n nets) HeldOutput() (all colo.Held) {
	for _, one := range n {
		if o, ok := one.(colo.OutputHolder); ok {
			h := o.HeldOutput()
			all.Packets += h.Packets
			all.Bytes += h.Bytes
			all.Age = max(all.Age, h.Age)
		}
	}
	return all
}

// latencyCounter is a Network that counts how long the packets were kept that have
// left.
type latencyCounter interface{ OutputLatency() event.Latency }

// OutputLatency merges the latencies of the networks that count them; ok says
// whether one does.
func (n nets) OutputLatency() (all event.Latency, ok bool) {
	for _, one := range n {
		if c, counts := one.(latencyCounter); counts {
			l := c.OutputLatency()
			all.Merge(&l)
			ok = true
		}
	}
	return all, ok
}

func (n nets) Drain(ctx context.Context) error {
	return n.each(func(o Network) error { return o.Drain(ctx) })
}
