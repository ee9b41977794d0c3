package colo

import (
	"errors"
	"fmt"
	"testing"
)

// A guest that cannot be paused for a checkpoint can usually not be paused at the end of its session either. The reason of
// that end is told once, and what is new in the second error is told too.
func TestAPauseThatFailsTwiceIsToldOnce(t *testing.T) {
	boom := errors.New("boom")
	first, second := fmt.Errorf("pause: %w", boom), fmt.Errorf("pause: %w", boom)
	other := errors.New("pause: a vCPU is away")
	for _, c := range []struct {
		cause, stuck error
		want         string
	}{
		{first, second, "pause: boom"},
		{fmt.Errorf("colo: primary: checkpoint 3: %w", first), second, "colo: primary: checkpoint 3: pause: boom"},
		{first, other, "pause: boom\npause: a vCPU is away"},
		{first, nil, "pause: boom"},
		{nil, second, "pause: boom"},
	} {
		err := withStuck(c.cause, c.stuck)
		if err.Error() != c.want || c.cause != nil && !errors.Is(err, c.cause) || c.stuck != nil && !errors.Is(err, c.stuck) {
			t.Errorf("%v, then %v: %q, want %q", c.cause, c.stuck, err, c.want)
		}
	}
	if err := withStuck(nil, nil); err != nil {
		t.Error(err)
	}
}
