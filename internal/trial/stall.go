package trial

import (
	"fmt"
	"time"
)

// stallTick is how often it is looked whether processes run.
const stallTick = 20 * time.Millisecond

// watchStalls watches whether this machine lets processes run, on a goroutine. end stops it,
// waits for the goroutine, and returns the longest time for which this process did not run.
func watchStalls(now func() time.Time) (end func() time.Duration) {
	done, longest := make(chan struct{}), make(chan time.Duration)
	last := now()
	go func() {
		tick := time.NewTicker(stallTick)
		defer tick.Stop()
		var gap time.Duration
		for ended := false; !ended; {
			select {
			case <-tick.C:
			case <-done:
				ended = true
			}
			at := now()
			gap, last = max(gap, at.Sub(last)), at
		}
		longest <- gap
	}()
	return func() time.Duration {
		close(done)
		return <-longest
	}
}

// stalled adds to the error of a run that the machine stood still for gap, if that is so long
// that, for want of a CPU, the hosts may have lost each other or something may have taken too
// long. Such a run says nothing about the hosts: .ci/run repeats it.
func stalled(err error, gap, lost time.Duration) error {
	if err == nil || gap < lost/2 {
		return err
	}
	return fmt.Errorf("%w (this machine stood still for %s)", err, round3(gap))
}
