//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package mapping

import (
	"math"
	"testing"
)

func TestMoreThanThereIsGivesAnError(t *testing.T) {
	for range 2 { // one process of 32 bits has room for the first
		p, err := New(math.MaxInt / 4096 * 4096)
		if err != nil {
			return
		}
		defer Free(p)
	}
	t.Error("the whole address space was mapped")
}
