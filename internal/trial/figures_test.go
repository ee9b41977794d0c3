package trial

import (
	"math"
	"slices"
	"testing"
	"time"
)

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

func TestThePaceIsThatOfTheCheckpointsAfterASynchronisation(t *testing.T) {
	begun := time.Now()
	r := &Result{}
	for _, c := range []struct {
		epoch uint64
		ms    int
	}{{0, 0}, {1, 900}, {2, 901}, {3, 903}, {0, 1000}, {1, 1500}, {2, 1504}} {
		r.checkpoints = append(r.checkpoints, Checkpoint{Epoch: c.epoch, Start: begun.Add(time.Duration(c.ms) * time.Millisecond)})
	}
	s := Summarise(Config{}, "sim", []*Result{r}, 1)
	if want := 3 / 0.007; math.Abs(s.PerSecond-want) > 1 {
		t.Errorf("%v checkpoints a second, want %v", s.PerSecond, want)
	}
	if s := Summarise(Config{}, "sim", []*Result{{}}, 1); s.PerSecond != 0 {
		t.Errorf("%v checkpoints a second of none", s.PerSecond)
	}
}

func TestAPauseCountsForItsOwnCheckpoint(t *testing.T) {
	var list []Checkpoint
	for _, c := range []Checkpoint{
		{Epoch: 1, StoppedUS: 7}, {Epoch: 2, StoppedUS: 10, StoppedIn: 1}, {Epoch: 3, StoppedUS: 20, StoppedIn: 2}, {Epoch: 4, StoppedUS: 40, StoppedIn: 4},
	} {
		list = withStopped(list, c)
	}
	got := column(list, func(c Checkpoint) int64 { return c.StoppedUS })
	if want := []int64{10, 20, 0, 40}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
