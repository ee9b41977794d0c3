//go:build !replay

package protect

import "time"

// setDay returns false: the clock of the day is the time of the bubble, but where internal/replay has
// changed the runtime.
func setDay(time.Duration) bool { return false }
