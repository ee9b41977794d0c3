package watch

import (
	"testing"

	"github.com/gocolo/lockstep/internal/leaks"
)

func TestAPageForWhichThereIsNoDescriptorLeavesNoneOpen(t *testing.T) {
	n := leaks.Starve(t, func() error {
		l, err := Listen("127.0.0.1:0")
		if err != nil {
			return err
		}
		return l.Close()
	}, t.TempDir())
	if n == 0 {
		t.Error("it needs no descriptor")
	}
}
