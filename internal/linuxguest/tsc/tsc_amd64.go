package tsc

// Read reads the time-stamp counter.
func Read() uint64
