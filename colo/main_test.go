package colo_test

import (
	"flag"
	"testing"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/internal/require"
)

var (
	update = flag.Bool("update", false, "rewrite the transcripts in testdata")
	every  = flag.Bool("every", false, "cut at every byte, not only at a sample of those inside pages")
)

func TestMain(m *testing.M) {
	require.SeldomCollect()
	goleak.VerifyTestMain(m)
}
