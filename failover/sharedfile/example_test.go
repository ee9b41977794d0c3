package sharedfile_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/sharedfile"
)

// The arbiter of one guest is a directory that both hosts reach.
func Example() {
	shared, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(shared)

	arbiter, err := sharedfile.New(filepath.Join(shared, "db1"))
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	grant, err := arbiter.Acquire(ctx, failover.Claim{Holder: "a", Token: failover.NewToken(), Term: failover.DefaultTerm})
	if err != nil {
		fmt.Println(err)
		return
	}
	record, err := arbiter.Record(ctx)
	fmt.Println(grant.Generation, record.Holder, err)
	// Output: 1 a <nil>
}
