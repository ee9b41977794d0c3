package linuxguest

import (
	"runtime"
	"testing"

	"github.com/gocolo/lockstep/internal/linuxguest/tsc"
)

func TestTheTSCCounts(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("there is no time-stamp counter")
	}
	for first := tsc.Read(); tsc.Read() == first; { // it ends
	}
}

func TestTheRateOfTheTSCIsPlausible(t *testing.T) {
	if khz := tscKHz(); khz != 0 && (khz < 500_000 || khz > 10_000_000) {
		t.Errorf("%d kHz", khz)
	}
}
