package proof

import (
	"errors"
	"runtime"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

func TestThatHolds(t *testing.T) {
	if testing.Short() && runtime.NumCPU() > 1 {
		t.Skip("short")
	}
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere")
	}
	require.Outside(t, require.KVM)
	fail(t)
}

func TestThatCannotFail(t *testing.T) { t.Log(errors.New("fine").Error()) }

func TestThatMaySkip(t *testing.T) {
	t.Run("inside", func(t *testing.T) { perhaps(t) })
	fail(t)
}

func TestThatSkipsIfNotShort(t *testing.T) {
	if testing.Short() || runtime.NumCPU() == 1 {
		t.Skip("one processor")
	}
	if testing.Short() {
		fail(t)
	} else {
		t.SkipNow()
	}
}

func TestThatNeedsWhatCIHasNot(t *testing.T) {
	require.Outside(t, "a printer")
	fail(t)
}

func ThatIsNone(t *testing.T) { fail(t) }

func TestOfAMethod(t *testing.T) {
	var x steps
	x.first(t)
}

type steps struct{}

func (steps) first(t *testing.T) { fail(t); perhaps(t) }

func fail(t *testing.T) { t.Fatal("failed") }

func perhaps(t *testing.T) {
	if runtime.NumCPU() == 1 {
		t.Skip("one processor")
	}
}
