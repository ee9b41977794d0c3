package standby_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/internal/require"
)

func TestMain(m *testing.M) {
	if err := require.Parallel(4); err != nil { // they wait for a QEMU that was stopped
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}
