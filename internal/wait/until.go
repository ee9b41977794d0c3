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

// Until returns nil when done has returned true. It calls done at once, then soon, and ever less often, up to once in a
// millisecond: a guest may stand still for the wait, which is over soon as a rule, and sometimes lasts. If ctx ends
// before that, Until returns the cause.
func Until(ctx context.Context, done func() bool) error {
	for pause := firstLook; !done(); pause = min(2*pause, longestLook) {
		if err := For(ctx, pause); err != nil {
			return err
		}
	}
	return nil
}
