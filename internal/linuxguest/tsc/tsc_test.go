package tsc

import (
	"runtime"
	"testing"
)

func TestTheCounterCounts(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("there is no time-stamp counter")
	}
	for first := Read(); Read() == first; { // it ends
	}
}
