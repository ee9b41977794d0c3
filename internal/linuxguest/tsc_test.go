package linuxguest

import "testing"

func TestTheRateOfTheTSCIsPlausible(t *testing.T) {
	if khz := tscKHz(); khz != 0 && (khz < 500_000 || khz > 10_000_000) {
		t.Errorf("%d kHz", khz)
	}
}
