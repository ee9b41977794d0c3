package protect

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/internal/wait"
)

// set changes what mu guards, and wakes who waits for it.
func (n *Proxy) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
	close(n.changed)
	n.changed = make(chan struct{})
}

// Input implements Network. What comes while the guest stands still for a moment
// waits; what comes to a host that follows is dropped, since the other has it too.
func (n *Proxy) Input(on bool) {
	if on {
		n.set(func() { n.faces = true })
	}
}

// Runs implements Sided.
func (n *Proxy) Runs(on bool) {
	n.set(func() { n.runs = on })
	change := func(s interface {
		Pause(context.Context) error
		Resume(context.Context) error
	}) error {
		if on {
			return s.Resume(context.Background())
		}
		return s.Pause(context.Background())
	}
	n.onSide(func(p *proxy.Primary) error { return change(p) }, func(s *proxy.Secondary) error { return change(s) }) // neither fails
}

// Lead implements Sided. After a takeover what this side still translates is handed
// over, when nothing is on its way between the guest and the network. An error that is
// the cause of the end of ctx leaves all to the next call, of Lead or of Follow.
func (n *Proxy) Lead(ctx context.Context) error {
	_, s := n.side()
	if s == nil {
		return nil
	}
	if err := n.await(ctx, func() bool { return n.spawn != nil }); err != nil {
		return err
	}
	select {
	case n.giving <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	n.sending.Lock() // whoever gives or sends a packet after this has seen swaps
	n.set(func() { n.swaps = true })
	n.sending.Unlock()
	<-n.giving
	if !n.lane.over.Load() { // otherwise an earlier call has ended the lane, when it was quiet
		if err := n.quiet(ctx, s); err != nil {
			n.set(func() { n.swaps = false })
			n.tellRoom()
			return err
		}
	}
	if err := n.end(ctx); err != nil {
		return err // swaps stays set, since nobody would send a packet that is taken now
	}
	s.HandOver(&n.edge) // a connection for which there is no room breaks in the next takeover, as it would have anyway
	n.set(func() {
		n.keepLatency()
		n.first, n.second, n.swaps = n.newPrimary(), nil, false
		s.HandOverScales(n.first)
		n.begin()
	})
	n.tellRoom()
	return nil
}

// quiet waits until nothing is on its way, while nothing new comes.
func (n *Proxy) quiet(ctx context.Context, s *proxy.Secondary) error {
	for {
		if err := n.lane.settled(ctx); err != nil {
			return err
		}
		k := s.Stats().Keep
		if k.Queued+k.Held+k.Inherited == 0 {
			return nil
		}
		if err := wait.For(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}

// Follow implements Sided. It returns when the side that there was has ended, which a
// write to the uplink may delay, or with the cause of the end of ctx.
func (n *Proxy) Follow(ctx context.Context) error {
	if err := n.await(ctx, func() bool { return n.spawn != nil }); err != nil {
		return err
	}
	if err := n.end(ctx); err != nil {
		return err
	}
	n.set(func() {
		n.keepLatency()
		n.second, n.faces, n.swaps = n.newSecondary(), false, false
		n.begin()
	})
	n.tellRoom()
	return nil
}

// Serve implements Sided.
func (n *Proxy) Serve(ctx context.Context, conn net.Conn) {
	// Without the connection nothing can be compared, and output leaves with its
	// checkpoints.
	n.onSide(func(p *proxy.Primary) error { return p.Serve(ctx, conn) }, func(s *proxy.Secondary) error { return s.Serve(ctx, conn) })
}

// Connected returns when Serve has a connection whose other end has greeted. A
// session waits for that for a moment before it begins.
func (n *Proxy) Connected(ctx context.Context) error {
	return n.onSide(func(p *proxy.Primary) error { return p.Connected(ctx) }, func(s *proxy.Secondary) error { return s.Connected(ctx) })
}

// await waits for something that mu guards.
func (n *Proxy) await(ctx context.Context, done func() bool) error {
	for {
		n.mu.RLock()
		ok, changed := done(), n.changed
		n.mu.RUnlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// begin runs the present side, if Run still runs. n.mu is held for writing.
func (n *Proxy) begin() {
	if n.spawn == nil {
		return
	}
	n.lane = newLane()
	n.lane.out = &n.out
	side := n.edge.Network(n.lane, n.cfg.VNetHdr)
	l, ended := n.lane, make(chan struct{})
	n.ended = ended
	ctx, cancel := context.WithCancelCause(n.ctx)
	n.stop = func() { cancel(errLane) }
	run, room := n.first.Run, n.first.Room()
	if n.second != nil {
		run, room = n.second.Run, n.second.Room()
	}
	n.spawn(func() {
		defer close(ended)
		defer cancel(nil)
		if err := run(ctx, side); !l.over.Load() {
			n.fail(err)
		}
	})
	n.spawn(func() {
		for {
			select {
			case <-room:
				n.tellRoom()
			case <-ended:
				return
			}
		}
	})
}

// end ends the run of the present side, unless ctx ends before a write to the uplink
// returns: only Run ends that, which closes the uplink. Then it is called again.
func (n *Proxy) end(ctx context.Context) error {
	n.mu.RLock()
	l, ended, stop := n.lane, n.ended, n.stop
	n.mu.RUnlock()
	l.over.Store(true)
	l.Close()
	stop() // a secondary's waits for its takeover, not for the lane
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Run implements Network. It closes the uplink.
func (n *Proxy) Run(ctx context.Context, h NetworkHost) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	n.set(func() {
		n.host, n.ctx, n.fail = h, ctx, cancel
		n.spawn = func(f func()) { group.Go(f) }
		close(n.started)
		n.begin()
	})
	closed := make(chan struct{})
	context.AfterFunc(ctx, func() { defer close(closed); n.cfg.Uplink.Close() })
	cancel(n.read(ctx))
	<-closed
	n.set(func() { n.spawn = nil })
	group.Wait()
	return context.Cause(ctx)
}

// read brings packets from the uplink to the present side.
func (n *Proxy) read(ctx context.Context) error {
	for {
		p, err := n.cfg.Uplink.ReadPacket()
		if err != nil {
			return err
		}
		for given := false; !given; {
			if err := n.await(ctx, func() bool { return !n.swaps || !n.faces }); err != nil {
				return err
			}
			if given, err = n.give(ctx, p); err != nil {
				return err
			}
		}
	}
}

// give gives a packet to the present side, or drops it where the guest is not the
// one that it is for. It reports false if it is to be tried again.
func (n *Proxy) give(ctx context.Context, p []byte) (bool, error) {
	select {
	case n.giving <- struct{}{}:
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	defer func() { <-n.giving }()
	n.mu.RLock()
	l, faces, swaps := n.lane, n.faces, n.swaps
	n.mu.RUnlock()
	switch {
	case !faces:
		return true, nil
	case swaps:
		return false, nil
	}
	n.neighbors.ToGuest(p, n.cfg.VNetHdr)
	err := l.give(ctx, p)
	if err == errLane {
		return false, nil // another side is about to take the packets
	}
	return true, err
}
