package colo

import "time"

// Add adds a duration to a figure, as a checkpoint does.
func Add(f *Figure, d time.Duration) { f.add(d) }
