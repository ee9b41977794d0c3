package failovertest_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// A store whose answer is lost: the claim was granted, and nobody knows. Asked
// again, it finds its own grant.
func ExampleStore() {
	lost := errors.New("the answer is lost")
	store := &failovertest.Store{After: func(_ context.Context, op string) error {
		if op == "swap" && lost != nil {
			err := lost
			lost = nil
			return err
		}
		return nil
	}}
	arbiter := failover.NewStoreArbiter(store)
	claim := failover.Claim{Holder: "a", Token: failover.NewToken(), Term: time.Second}
	_, err := arbiter.Acquire(context.Background(), claim)
	fmt.Println(err != nil, errors.Is(err, failover.ErrRefused))
	grant, err := arbiter.Acquire(context.Background(), claim)
	fmt.Println(grant.Generation, err)
	// Output:
	// true false
	// 1 <nil>
}
