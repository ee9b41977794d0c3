package wait

import (
	"context"
	"sync"
)

// AtEnd calls f when ctx ends, on a goroutine of its own, until stop is called. When stop
// returns, f is not being called and will not be: what f closes is closed, and its goroutine has left
// nothing to do. stop reports whether f was called. (The function that context.AfterFunc returns
// does not wait.) It may be called from any goroutine but f's own.
func AtEnd(ctx context.Context, f func()) (stop func() (called bool)) {
	ended := make(chan struct{})
	off := context.AfterFunc(ctx, func() {
		defer close(ended)
		f()
	})
	return sync.OnceValue(func() bool {
		if off() {
			return false
		}
		<-ended
		return true
	})
}
