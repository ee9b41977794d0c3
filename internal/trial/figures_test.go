package trial

import "testing"

func TestQuantilesAreValuesThatOccurred(t *testing.T) {
	values := []int64{5, 1, 4, 2, 3}
	for q, want := range map[float64]int64{0: 1, 0.2: 1, 0.5: 3, 0.99: 5, 1: 5} {
		if got := quantile(values, q); got != want {
			t.Errorf("quantile %v is %d, want %d", q, got, want)
		}
	}
	if quantile[int64](nil, 0.5) != 0 {
		t.Error("of nothing")
	}
}
