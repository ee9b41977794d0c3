package protect

import (
	"fmt"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

// counts adds up what the seeds have done, to show where their time goes.
type counts struct {
	clock                        atomic.Int64 // nanoseconds of the bubbles
	dials, messages, bytes       atomic.Int64
	checkpoints, synchronisation atomic.Int64
	frames, writes, swaps        atomic.Int64
	switches                     int64 // of goroutines when it began
}

func newCounts() *counts { return &counts{switches: switches()} }

// add counts what a host does, as its trace says it.
func (c *counts) add(what string, n int) {
	switch what {
	case "dials":
		c.dials.Add(1)
	case "sends":
		c.messages.Add(1)
		c.bytes.Add(int64(n))
	case "frame":
		c.frames.Add(1)
	case "disk":
		c.writes.Add(1)
	case "swap":
		c.swaps.Add(1)
	case "synchronises":
		c.synchronisation.Add(1)
	case "checkpoint":
		c.checkpoints.Add(1)
	}
}

// of returns what one of n seeds does on average.
func (c *counts) of(n int) string {
	per := func(v int64) float64 { return float64(v) / float64(n) }
	return fmt.Sprintf("a seed takes %v by its clock, in which goroutines are switched to %.0f times, %.0f connections are made and carry %.0f messages with %.0f KB, %.1f times a secondary is synchronised, %.0f checkpoints are made, %.0f frames leave, the guest writes to its disk %.0f times, the record changes %.0f times",
		time.Duration(per(c.clock.Load())).Round(time.Millisecond), per(switches()-c.switches), per(c.dials.Load()), per(c.messages.Load()), per(c.bytes.Load())/1000,
		per(c.synchronisation.Load()), per(c.checkpoints.Load()), per(c.frames.Load()), per(c.writes.Load()), per(c.swaps.Load()))
}

// switches returns how often a goroutine of this process has begun to run: the runtime
// notes one of eight.
func switches() (n int64) {
	s := []metrics.Sample{{Name: "/sched/latencies:seconds"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindFloat64Histogram {
		return 0
	}
	for _, v := range s[0].Value.Float64Histogram().Counts {
		n += int64(v)
	}
	return 8 * n
}
