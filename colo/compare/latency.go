package compare

import "github.com/gocolo/lockstep/event"

// Latency counts durations by their class, exact to a sixteenth, in memory that
// does not grow.
type Latency = event.Latency
