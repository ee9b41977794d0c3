package linuxguest

import "time"

// rdtsc reads the time-stamp counter.
func rdtsc() uint64

// tscKHz measures the rate of this host's time-stamp counter, which is that of an
// emulated machine's. Two machines that measure it themselves, on a busy host,
// come to results so far apart that a guest's state of one is refused on the
// other.
func tscKHz() uint64 {
	const long = 100 * time.Millisecond
	begin, first := time.Now(), rdtsc()
	time.Sleep(long)
	took, ticks := time.Since(begin), rdtsc()-first
	return uint64(float64(ticks) / took.Seconds() / 1000)
}
