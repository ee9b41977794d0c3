package protect

import (
	"context"
	"sync"
	"sync/atomic"
)

const (
	// maxAbreast is how many connections of a pair are made at a time, at most. Each takes
	// some round trips, and hundreds at once would be too many for the port that they come
	// to.
	maxAbreast = 16
	// maxMore is how many connections the jobs of a port make at a time, all together, beside one
	// for each job. The jobs of many guests begin together when a link comes back, and with more
	// at a time the other port would end some of the connections, as the oldest of maxGreeting.
	maxMore = 64
)

// abreast calls do with each number below n, on this goroutine and on as many others as more
// has room for. It returns when all calls have returned. After one that fails
// none begins, the context of the others ends, and its error is returned.
func abreast(ctx context.Context, n int, more chan struct{}, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	work := func() {
		for ctx.Err() == nil {
			i := int(next.Add(1)) - 1
			if i >= n {
				return
			}
			if err := do(ctx, i); err != nil {
				cancel(err)
			}
		}
	}
	var group sync.WaitGroup
	for range min(n, maxAbreast) - 1 {
		select {
		case more <- struct{}{}:
			group.Go(func() {
				defer func() { <-more }()
				work()
			})
		default: // others make theirs
		}
	}
	work()
	group.Wait()
	return context.Cause(ctx)
}
