package colo

import (
	"math/bits"
	"time"
)

// Buckets is how many buckets a Histogram has.
const Buckets = 24

// bucket0 is the bound of the first bucket.
const bucket0 = 64 * time.Microsecond

// Histogram counts durations in buckets that double: bucket 0 has those below
// 64 µs, bucket i those below 64 µs << i, the last all others (from 268 s on).
type Histogram [Buckets]uint64

// BucketBound returns the upper bound of bucket i: all durations in it are shorter. The
// last bucket has no bound; the result for it is 0.
func BucketBound(i int) time.Duration {
	if i >= Buckets-1 {
		return 0
	}
	return bucket0 << i
}

func (h *Histogram) add(d time.Duration) {
	h[min(bits.Len64(uint64(max(0, d)/bucket0)), Buckets-1)]++
}

// Quantile returns a duration such that at least the share q (0 to 1) of the counted
// durations are shorter. It is the bound of a bucket, so at most twice the exact
// quantile. It is 0 if nothing was counted, or if the quantile is in the last bucket.
func (h *Histogram) Quantile(q float64) time.Duration {
	var n uint64
	for _, c := range h {
		n += c
	}
	if n == 0 {
		return 0
	}
	want, sum := q*float64(n), uint64(0)
	for i, c := range h {
		if sum += c; c > 0 && float64(sum) >= want {
			return BucketBound(i)
		}
	}
	return 0
}
