// Package wait pauses a goroutine for a while, or until something is done, but no longer than its context lasts, and
// does something when that ends.
package wait

import (
	"context"
	"time"
)

// For returns nil after d, at once if d is not above 0. If ctx ends before that, it
// returns the cause.
func For(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
