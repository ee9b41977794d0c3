package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A side is a guest on one host, with the network that it has there at present.
type side struct {
	guest   *colotest.VM
	out     func(p []byte) error // changed while the guest stands still
	state   *vmstate.Registry
	running sync.WaitGroup
}

func newSide(ctx context.Context) *side {
	s := &side{state: new(vmstate.Registry)}
	guest, err := colotest.NewVM(colotest.VMConfig{Interval: time.Millisecond, Output: func(p []byte) error { return s.out(p) }})
	if err != nil {
		log.Fatal(err)
	}
	s.guest = guest
	s.running.Go(func() { guest.Run(ctx) })
	return s
}

// follows makes s the secondary of a primary that is at the other end of conn. The session ends with a
// failover when the third checkpoint has been committed.
func (s *side) follows(conn net.Conn) (*proxy.Secondary, *colo.Secondary, *ram.Cache) {
	network := proxy.NewSecondary(proxy.SecondaryConfig{VM: s.guest, Deliver: func([]byte) error { return nil }})
	s.out = network.WritePacket
	events := new(event.Bus)
	cache, err1 := s.guest.RegisterSecondary(s.state, ram.CacheConfig{})
	err2 := s.state.Register(network.Entry(0), network)
	session, err3 := colo.NewSecondary(conn, colo.SecondaryConfig{
		VM: network, Net: network, State: s.state, RAM: cache, Events: events,
	})
	if err := errors.Join(err1, err2, err3); err != nil {
		log.Fatal(err)
	}
	event.Subscribe(events, func(c event.CheckpointCommit) {
		if c.Epoch == 3 {
			session.Failover()
		}
	})
	return network, session, cache
}

// leads makes s the primary of a secondary that is at the other end of conn. Its network is
// primary, of which the registry of the session is new: a session's registry lists what that side has.
func (s *side) leads(conn net.Conn, primary *proxy.Primary) *colo.Primary {
	s.out, s.state = primary.WritePacket, new(vmstate.Registry)
	_, err1 := s.guest.RegisterPrimary(s.state, ram.SaverConfig{})
	err2 := s.state.Register(primary.Entry(0), primary)
	session, err3 := colo.NewPrimary(conn, colo.PrimaryConfig{
		VM: primary, Net: primary, State: s.state, CheckpointDelay: 10 * time.Millisecond,
	})
	if err := errors.Join(err1, err2, err3); err != nil {
		log.Fatal(err)
	}
	return session
}

// A secondary that has taken over is protected by a third host, and that one takes over as well.
func ExampleSecondary_Promote() {
	ctx, stop := context.WithCancel(context.Background())
	a, b, c := newSide(ctx), newSide(ctx), newSide(ctx)

	// The first session: b follows a. Nothing is compared where the sides are not connected to each
	// other (Serve): packets then leave with the checkpoints.
	l, f := net.Pipe()
	aNetwork := proxy.NewPrimary(proxy.PrimaryConfig{VM: a.guest, Deliver: func([]byte) error { return nil }})
	aSession := a.leads(l, aNetwork)
	bNetwork, bSession, bCache := b.follows(f)

	// Each host has its uplink. Run closes it.
	uplink := func() *filter.Conn {
		here, there := net.Pipe()
		a.running.Go(func() { read(there, 1<<30) })
		return filter.NewConn(here, filter.ConnConfig{})
	}
	a.running.Go(func() { aNetwork.Run(ctx, uplink()) })
	bContext, endNetwork := context.WithCancel(ctx)
	var bRuns sync.WaitGroup
	bRuns.Go(func() { bNetwork.Run(bContext, uplink()) })
	a.running.Go(func() { aSession.Run(ctx) })
	fmt.Println("b:", bSession.Run(ctx), "at checkpoint", bSession.Info().Epoch)

	// b is made a primary while its guest stands still.
	err1 := bNetwork.Pause(ctx)
	err2 := bNetwork.Drain(ctx)
	endNetwork()
	bRuns.Wait()
	bPrimary, left := bNetwork.Promote(proxy.PrimaryConfig{})
	l, f = net.Pipe()
	session := b.leads(l, bPrimary)
	err3 := bCache.Close()
	b.running.Go(func() { bPrimary.Run(ctx, uplink()) })
	err4 := bPrimary.Resume(ctx)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		log.Fatal(err)
	}
	fmt.Println("connections that break at the next failover:", left)

	// The second session: c follows b.
	cNetwork, cSession, cCache := c.follows(f)
	c.running.Go(func() { cNetwork.Run(ctx, uplink()) })
	b.running.Go(func() { session.Run(ctx) })
	fmt.Println("c:", cSession.Run(ctx), "at checkpoint", cSession.Info().Epoch)
	fmt.Println("the guest runs at c:", !c.guest.Paused())

	stop()
	for _, s := range []*side{a, b, c} {
		s.running.Wait()
	}
	_ = errors.Join(cCache.Close(), a.guest.Close(), b.guest.Close(), c.guest.Close())

	// Output:
	// b: <nil> at checkpoint 3
	// connections that break at the next failover: 0
	// c: <nil> at checkpoint 3
	// the guest runs at c: true
}
