package failover_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// A failover that is ordered in the middle of a load waits for the end of it.
func ExampleMachine() {
	m := failover.Machine{OnChange: func(s failover.Status) { fmt.Println(s) }}
	m.StartLoad()
	if err := m.Request(); err != nil {
		fmt.Println(err)
	}
	if _, err := m.Begin(); err != nil {
		fmt.Println(err)
	}
	if m.EndLoad(nil) {
		fmt.Println("take over now")
	}
	m.Complete()
	// Output:
	// require
	// relaunch
	// none
	// require
	// active
	// take over now
	// completed
}

// Two hosts, and an arbiter that gives the guest to one of them.
func ExampleKeeper() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	arbiter := failover.NewStoreArbiter(new(failovertest.Store)) // sharedfile.New, say
	a, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: arbiter, Holder: "a"})
	if err != nil {
		fmt.Println(err)
		return
	}
	done := make(chan error)
	go func() { done <- a.Run(ctx) }() // renews the grant

	generation, err := a.Acquire(ctx, 0)
	fmt.Println(generation, err, a.Gate().Open())

	// The gate is asked before each packet. It shuts before the guest is released.
	fmt.Println(a.Release(ctx, "maintenance"), a.Gate().Open())

	b, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: arbiter, Holder: "b"})
	if err != nil {
		fmt.Println(err)
		return
	}
	generation, err = b.Acquire(ctx, generation)
	fmt.Println(generation, err)

	// A host whose copy is of an older generation is refused, for good.
	_, err = a.Acquire(ctx, 1)
	fmt.Println(errors.Is(err, failover.ErrRefused))
	cancel()
	<-done
	// Output:
	// 1 <nil> true
	// <nil> false
	// 2 <nil>
	// true
}
