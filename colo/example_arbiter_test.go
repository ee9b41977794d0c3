package colo_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// A session asks the keeper of its host, which claims the guest after the generation
// that the host has held or followed. The host asks Keeper.Gate before anything of the
// guest leaves, and tells its secondary of which generation the session is.
func ExampleArbiterFunc() {
	store := failover.NewStoreArbiter(new(failovertest.Store)) // sharedfile.New, say
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	keep := func(host string) *failover.Keeper {
		k, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: store, Holder: host})
		if err != nil {
			log.Fatal(err)
		}
		go func() { ended <- k.Run(ctx) }() // renews the grant
		return k
	}
	arbiter := func(k *failover.Keeper, generation uint64) colo.Arbiter {
		return colo.ArbiterFunc(func(ctx context.Context, _ colo.Claim) error {
			g, err := k.Acquire(ctx, generation)
			if err == nil {
				generation = g
			}
			return err
		})
	}
	a, b := keep("a"), keep("b")
	generation, err := a.Acquire(ctx, 0) // before the first session
	fmt.Println("a has generation", generation, err)

	// The two lose each other: one of them goes on, in a generation of its own.
	err = arbiter(a, generation).Arbitrate(ctx, colo.Claim{Mode: event.ModePrimary})
	fmt.Println("a has generation", a.Generation(), err)
	err = arbiter(b, generation).Arbitrate(ctx, colo.Claim{Mode: event.ModeSecondary})
	fmt.Println("b is refused:", errors.Is(err, colo.ErrRefused))

	stop()
	<-ended
	<-ended
	// Output:
	// a has generation 1 <nil>
	// a has generation 2 <nil>
	// b is refused: true
}
