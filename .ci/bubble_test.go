package bubble

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Goroutines of one bubble receive from timers that have expired. It passes on one thread. Under the race
// detector on several, the detector stops itself where the runtime has the fault that .ci/detector
// tells of.
func TestTimersThatHaveExpired(t *testing.T) {
	synctest.Test(t, func(*testing.T) {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 50_000 {
					<-time.NewTimer(0).C
				}
			})
		}
		wg.Wait()
	})
}
