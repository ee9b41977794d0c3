package ram

import (
	"runtime"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// On one CPU nobody helps to copy, whatever the host asks for and however many threads may
// run Go code: a helper would take the CPU from the goroutine that the paused guest waits for.
func TestOnOneCPUNobodyHelps(t *testing.T) {
	if !require.OneCPU(t) {
		return
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	for _, workers := range []int{0, 4} {
		g := newGuest(t, pages(t, "ram", 3000))
		_, many := together(t, g, SaverConfig{CaptureWorkers: workers})
		for range trialEvery + 2 { // now and then the dearer way is tried
			for i := range 1000 {
				g.write(0, i*PageSize, byte(i), 1)
			}
			if whole, err := many.Capture(); err != nil || !whole {
				t.Fatal(whole, err)
			}
			if many.batches.help != nil {
				t.Fatalf("CaptureWorkers %d: somebody was woken", workers)
			}
			complete(t, many)
		}
	}
}
