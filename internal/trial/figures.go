package trial

import (
	"math"
	"slices"
	"time"
)

// quantile returns the smallest value that at least the share q of values does
// not exceed, 0 of none.
func quantile[T int64 | uint64 | float64 | time.Duration](values []T, q float64) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

// column picks a figure of each record.
func column[R any, T any](records []R, pick func(R) T) []T {
	values := make([]T, len(records))
	for i, r := range records {
		values[i] = pick(r)
	}
	return values
}
