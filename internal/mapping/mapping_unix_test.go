//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package mapping

import (
	"math"
	"testing"
)

func TestMoreThanThereIsGivesAnError(t *testing.T) {
	if _, err := New(math.MaxInt / 4096 * 4096); err == nil {
		t.Error("the whole address space was mapped")
	}
}
