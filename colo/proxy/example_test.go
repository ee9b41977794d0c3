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

// A guest and its twin with a NIC each. What the guest sends leaves when the twin
// has said the same, long before the next checkpoint; then the guest's host is
// given up, and the twin has the network.
func Example() {
	// The networks: filter.Conns here, as between a host and its switch; a
	// tap.Device on a real one.
	here, switch1 := net.Pipe()
	there, switch2 := net.Pipe()

	// The guests' NICs send by the sides' networks, which are made with the guests.
	var primary *proxy.Primary
	var secondary *proxy.Secondary
	guest, err1 := colotest.NewVM(colotest.VMConfig{
		Interval: time.Millisecond, Output: func(p []byte) error { return primary.WritePacket(p) },
	})
	twin, err2 := colotest.NewVM(colotest.VMConfig{
		Interval: time.Millisecond, Output: func(p []byte) error { return secondary.WritePacket(p) },
	})
	if err := errors.Join(err1, err2); err != nil {
		log.Fatal(err)
	}
	var session *colo.Primary
	deaf := func([]byte) error { return nil } // this guest takes no input
	primary = proxy.NewPrimary(proxy.PrimaryConfig{
		VM: guest, Deliver: deaf, RequestCheckpoint: func(c event.Cause) { session.RequestCheckpoint(c) },
	})
	secondary = proxy.NewSecondary(proxy.SecondaryConfig{VM: twin, Deliver: deaf})

	// The session pauses the guests by way of their networks, tells these of its
	// steps, and carries what they hold.
	var hereState, thereState vmstate.Registry
	_, err1 = guest.RegisterPrimary(&hereState, ram.SaverConfig{})
	cache, err2 := twin.RegisterSecondary(&thereState, ram.CacheConfig{})
	err3 := hereState.Register(primary.Entry(0), primary)
	err4 := thereState.Register(secondary.Entry(0), secondary)
	a, b := net.Pipe()
	var err5, err6 error
	session, err5 = colo.NewPrimary(a, colo.PrimaryConfig{VM: primary, Net: primary, State: &hereState})
	follower, err6 := colo.NewSecondary(b, colo.SecondaryConfig{VM: secondary, Net: secondary, State: &thereState, RAM: cache})
	if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
		log.Fatal(err)
	}

	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	p, s := net.Pipe()
	running.Go(func() { primary.Serve(ctx, p) })
	running.Go(func() { secondary.Serve(ctx, s) })
	running.Go(func() { primary.Run(ctx, filter.NewConn(here, filter.ConnConfig{})) })
	running.Go(func() { secondary.Run(ctx, filter.NewConn(there, filter.ConnConfig{})) })
	running.Go(func() { guest.Run(ctx) })
	running.Go(func() { twin.Run(ctx) })
	if err := primary.Connected(ctx); err != nil {
		log.Fatal(err)
	}
	running.Go(func() { session.Run(ctx) })
	running.Go(func() {
		for n := read(switch1, 100); n > 0 && primary.Stats().Matched <= primary.Stats().Checkpoint; {
			n = read(switch1, 1) // a busy machine may have the first packets leave with the checkpoints
		}
		follower.Failover()
		read(switch1, 1<<30) // a dead host would say nothing more
	})
	err := follower.Run(ctx)

	fmt.Println("error:", err)
	fmt.Println("most packets left at a match:", primary.Stats().Matched > primary.Stats().Checkpoint)
	fmt.Println("packets of the twin's:", read(switch2, 100))

	stop()
	running.Wait()
	_ = errors.Join(switch1.Close(), switch2.Close(), cache.Close(), guest.Close(), twin.Close())

	// Output:
	// error: <nil>
	// most packets left at a match: true
	// packets of the twin's: 100
}

// read takes n packets from a connection, or as many as there are.
func read(c net.Conn, n int) int {
	in := filter.NewConn(c, filter.ConnConfig{})
	for i := range n {
		if _, err := in.ReadPacket(); err != nil {
			return i
		}
	}
	return n
}
