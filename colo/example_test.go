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
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A guest is protected by its twin on another host. After three checkpoints the
// primary's host is given up, and the twin goes on from the last of them.
func Example() {
	// What each host brings: a guest that can be paused and resumed, and a
	// registry of its devices and memory. These guests are written in Go; with
	// package kvm they are virtual machines.
	guest, err1 := colotest.NewVM(colotest.VMConfig{Touch: 16})
	twin, err2 := colotest.NewVM(colotest.VMConfig{Touch: 16})
	var here, there vmstate.Registry
	_, err3 := guest.RegisterPrimary(&here, ram.SaverConfig{})
	cache, err4 := twin.RegisterSecondary(&there, ram.CacheConfig{})

	// A session is one side of a connection, whichever it is.
	a, b := net.Pipe()
	events := new(event.Bus)
	primary, err5 := colo.NewPrimary(a, colo.PrimaryConfig{
		VM: guest, State: &here, CheckpointDelay: 5 * time.Millisecond,
	})
	secondary, err6 := colo.NewSecondary(b, colo.SecondaryConfig{
		VM: twin, State: &there, RAM: cache, Events: events,
	})
	if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
		log.Fatal(err)
	}

	// Failover is an order: it takes effect when the checkpoint is whole.
	event.Subscribe(events, func(c event.CheckpointCommit) {
		if c.Epoch == 3 {
			secondary.Failover()
		}
	})

	// Whoever calls Run owns the goroutine.
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { guest.Run(ctx) })
	running.Go(func() { twin.Run(ctx) })
	running.Go(func() { primary.Run(ctx) })
	err := secondary.Run(ctx)

	fmt.Println("error:", err)
	fmt.Println("took over from checkpoint", secondary.Info().Epoch)
	fmt.Println("the twin runs:", !twin.Paused())

	stop()
	running.Wait()
	_ = errors.Join(cache.Close(), guest.Close(), twin.Close())

	// Output:
	// error: <nil>
	// took over from checkpoint 3
	// the twin runs: true
}
