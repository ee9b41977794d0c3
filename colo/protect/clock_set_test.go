//go:build replay

package protect

import (
	"time"
	_ "unsafe" // for go:linkname
)

//go:linkname setBubbleDay runtime.setBubbleDay
func setBubbleDay(ahead int64)

// setDay sets by how much the clock of the day of this bubble is ahead of its time, and returns true.
func setDay(ahead time.Duration) bool { setBubbleDay(int64(ahead)); return true }
