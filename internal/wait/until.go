package wait

import (
	"context"
	"time"
)

// The time between two looks of Until: the first and the longest.
const (
	firstLook   = 20 * time.Microsecond
	longestLook = time.Millisecond
)

// Until returns nil when done has returned true. It looks at once, then soon, and ever less often, up to once in a
// millisecond: what somebody waits for here while a guest stands still is usually done before a millisecond is over,
// and may also wait for long for something else. If ctx ends before that, Until returns the cause.
func Until(ctx context.Context, done func() bool) error {
	for pause := firstLook; !done(); pause = min(2*pause, longestLook) {
		if err := For(ctx, pause); err != nil {
			return err
		}
	}
	return nil
}
