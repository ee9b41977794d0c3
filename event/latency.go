package event

import (
	"math/bits"
	"time"
)

// latencyFine is the binary logarithm of how many classes there are between one
// power of two and the next: a class is a sixteenth wide.
const latencyFine = 4

// Latency counts durations, each exact to a sixteenth of its value, in memory that
// does not grow. The zero value has counted none. It belongs to one goroutine.
type Latency struct {
	count   [(37 - latencyFine) << latencyFine]uint64 // classes of microseconds up to 2^36
	n       uint64
	total   time.Duration
	longest time.Duration
}

// Add counts d; a negative d counts as zero. It allocates nothing.
func (l *Latency) Add(d time.Duration) {
	d = max(d, 0)
	l.count[latencyClass(uint64(d)/uint64(time.Microsecond))]++
	l.n++
	l.total = addDuration(l.total, d)
	l.longest = max(l.longest, d)
}

// addDuration adds what is not negative, up to the greatest duration.
func addDuration(a, b time.Duration) time.Duration {
	if sum := a + b; sum >= a {
		return sum
	}
	return 1<<63 - 1
}

// latencyClass returns the class of a number of microseconds: below 2^latencyFine each microsecond
// has one of its own, above that each sixteenth of a power of two.
func latencyClass(us uint64) int {
	shift := max(bits.Len64(us)-latencyFine-1, 0)
	i := shift<<latencyFine + int(us>>shift)
	return min(i, len(Latency{}.count)-1)
}

// N returns how many durations were counted.
func (l *Latency) N() uint64 { return l.n }

// Total returns the sum of the durations.
func (l *Latency) Total() time.Duration { return l.total }

// Max returns the longest duration.
func (l *Latency) Max() time.Duration { return l.longest }

// Quantile returns a duration that at least the share q of the counted durations does
// not exceed. It may be up to a sixteenth longer than the exact quantile. It is 0 if
// nothing was counted.
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

// Merge adds what another has counted.
func (l *Latency) Merge(other *Latency) {
	for i, k := range other.count {
		l.count[i] += k
	}
	l.n += other.n
	l.total = addDuration(l.total, other.total)
	l.longest = max(l.longest, other.longest)
}

// Since returns the durations that l has counted since the copy before of it was made. If
// before is no earlier copy, since the count has begun anew, it returns all of l. If the
// longest duration of l was counted earlier, Max of the result may be up to a sixteenth
// too long.
func (l *Latency) Since(before *Latency) Latency {
	if before.n > l.n || before.longest > l.longest || before.total > l.total {
		return *l
	}
	d := Latency{n: l.n - before.n, total: l.total - before.total}
	last := -1
	for i, k := range l.count {
		if k < before.count[i] {
			return *l
		}
		if d.count[i] = k - before.count[i]; d.count[i] > 0 {
			last = i
		}
	}
	switch {
	case l.longest > before.longest:
		d.longest = l.longest
	case last >= 0:
		d.longest = min(latencyEnd(last), l.longest)
	}
	return d
}

// Each calls fn for each class that has durations, the shortest first, with what they
// do not exceed and how many they are. For the last class of all the bound is Max.
func (l *Latency) Each(fn func(atMost time.Duration, n uint64)) {
	for i, k := range l.count {
		if k > 0 {
			atMost := latencyEnd(i)
			if i == len(l.count)-1 {
				atMost = max(atMost, l.longest)
			}
			fn(min(atMost, max(l.longest, 0)), k)
		}
	}
}

// latencyEnd returns the end of a class.
func latencyEnd(i int) time.Duration {
	if i < 2<<latencyFine {
		return time.Duration(i+1) * time.Microsecond
	}
	shift := i>>latencyFine - 1
	return time.Duration(uint64(i-shift<<latencyFine+1)<<shift) * time.Microsecond
}
