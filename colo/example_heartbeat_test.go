package colo_test

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
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover/heartbeat"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// Each side has a heartbeat beside its session, and both ask one arbiter. The
// primary's host falls silent: the secondary's heartbeat finds out, its session
// asks, and the twin goes on.
func Example_heartbeat() {
	guest, err1 := colotest.NewVM(colotest.VMConfig{Touch: 16})
	twin, err2 := colotest.NewVM(colotest.VMConfig{Touch: 16})
	var here, there vmstate.Registry
	_, err3 := guest.RegisterPrimary(&here, ram.SaverConfig{})
	cache, err4 := twin.RegisterSecondary(&there, ram.CacheConfig{})

	// In truth the arbiter is a service that both hosts can reach: it says yes to
	// one side only, for good.
	arbiter := &colotest.Witness{Deny: func(c colo.Claim) error {
		if c.Mode == event.ModePrimary {
			return errors.New("a dead host does not ask")
		}
		return nil
	}}
	a, b := net.Pipe()
	events := new(event.Bus)
	primary, err5 := colo.NewPrimary(a, colo.PrimaryConfig{
		VM: guest, State: &here, Arbiter: arbiter, CheckpointDelay: 5 * time.Millisecond,
	})
	secondary, err6 := colo.NewSecondary(b, colo.SecondaryConfig{
		VM: twin, State: &there, RAM: cache, Arbiter: arbiter, Events: events,
	})
	if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
		log.Fatal(err)
	}

	// A heartbeat that has ended in any way that its host did not ask for has lost
	// the peer, and the session hears of it at once.
	beat := func(ctx context.Context, conn net.Conn, lost func(error)) {
		err := heartbeat.Run(ctx, conn, 10*time.Millisecond, time.Second)
		if ctx.Err() == nil {
			lost(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	primarysHost, dies := context.WithCancel(ctx)
	c, d := net.Pipe()
	var running sync.WaitGroup
	running.Go(func() { guest.Run(ctx) })
	running.Go(func() { twin.Run(ctx) })
	running.Go(func() { beat(primarysHost, c, primary.Lost) })
	running.Go(func() { beat(ctx, d, secondary.Lost) })
	running.Go(func() { primary.Run(ctx) })
	event.Subscribe(events, func(c event.CheckpointCommit) {
		if c.Epoch == 3 {
			dies()
		}
	})
	err := secondary.Run(ctx)

	fmt.Println("error:", err)
	fmt.Println("the arbiter gave the guest to the", arbiter.Holder())
	fmt.Println("the twin is", secondary.Info().State)

	stop()
	running.Wait()
	_ = errors.Join(cache.Close(), guest.Close(), twin.Close())

	// Output:
	// error: <nil>
	// the arbiter gave the guest to the secondary
	// the twin is alone
}
