package trial

import (
	"fmt"
	"time"
)

// stallTick is how often it is looked whether processes run.
const stallTick = 20 * time.Millisecond

// watchStalls looks whether this machine lets processes run: end stops that, and returns the
// longest time for which this process has not come to look. It waits for its goroutine.
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

// stalled adds to the error of a run that the machine stood still for so long that its hosts may
// have lost each other, or the time that something may take, for want of a CPU. Such a run
// says nothing of the hosts: .ci/run repeats it.
func stalled(err error, gap, lost time.Duration) error {
	if err == nil || gap < lost/2 {
		return err
	}
	return fmt.Errorf("%w (this machine stood still for %s)", err, round3(gap))
}
