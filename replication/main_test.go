package replication

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/internal/require"
)

func TestMain(m *testing.M) {
	require.SeldomCollect()
	goleak.VerifyTestMain(m)
}
