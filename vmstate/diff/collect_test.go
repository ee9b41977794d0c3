package diff_test

import (
	"os"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

func TestMain(m *testing.M) {
	require.SeldomCollect()
	os.Exit(m.Run())
}
