package main

import (
	"context"
	"errors"
	"io"
	"testing"
)

func TestABadCommandLineIsToldFromAFailure(t *testing.T) {
	for _, args := range [][]string{{}, {"-nonsense"}, {"one.pcap"}, {"a", "b", "c"}} {
		if err := run(context.Background(), args, io.Discard, io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v, want a bad command line", args, err)
		}
	}
	if err := run(context.Background(), []string{"-vectors", "no-such-file"}, io.Discard, io.Discard); err == nil || errors.Is(err, errUsage) {
		t.Errorf("a file that is not there: %v, want a failure", err)
	}
}
