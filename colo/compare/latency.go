package compare

import (
	"math/bits"
	"time"
)

// latencyFine is the binary logarithm of the number of classes between one power of two
// and the next. With 16 of them a class is exact to a sixteenth.
const latencyFine = 4

// Latency counts durations by their class, exact to a sixteenth, in memory that
// does not grow. The zero value has none.
type Latency struct {
	count   [(37 - latencyFine) << latencyFine]uint64 // classes of microseconds up to 2^36
	n       uint64
	longest time.Duration
}

// Add counts d. What is negative counts as zero.
func (l *Latency) Add(d time.Duration) {
	us := uint64(max(d, 0) / time.Microsecond)
	l.count[latencyClass(us)]++
	l.n++
	l.longest = max(l.longest, d)
}

// latencyClass: below 2^fine each microsecond has a class, above each sixteenth
// of a power of two.
func latencyClass(us uint64) int {
	shift := max(bits.Len64(us)-latencyFine-1, 0)
	i := shift<<latencyFine + int(us>>shift)
	return min(i, len(Latency{}.count)-1)
}

// N returns how many durations were counted.
func (l *Latency) N() uint64 { return l.n }

// Max returns the longest duration.
func (l *Latency) Max() time.Duration { return l.longest }

// Quantile returns a duration that at least the share q of those counted does not exceed.
// It is the upper end of a class, and so up to a sixteenth too long. If none was counted
// it is 0.
func (l *Latency) Quantile(q float64) time.Duration {
	want := max(uint64(q*float64(l.n)+0.999999), 1)
	seen := uint64(0)
	for i, k := range l.count {
		if seen += k; k > 0 && seen >= want {
			return min(latencyEnd(i), max(l.longest, 0))
		}
	}
	return 0
}

// latencyEnd returns the end of a class.
func latencyEnd(i int) time.Duration {
	if i < 2<<latencyFine {
		return time.Duration(i+1) * time.Microsecond
	}
	shift := i>>latencyFine - 1
	return time.Duration(uint64(i-shift<<latencyFine+1)<<shift) * time.Microsecond
}
