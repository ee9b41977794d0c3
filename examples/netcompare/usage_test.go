package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/usage"
)

func TestABadCommandLineIsToldFromAFailure(t *testing.T) {
	for _, args := range [][]string{{}, {"-nonsense"}, {"one.pcap"}, {"a", "b", "c"}} {
		if err := run(context.Background(), args, io.Discard, io.Discard); !errors.Is(err, usage.ErrWrong) {
			t.Errorf("%q: %v, want a bad command line", args, err)
		}
	}
	if err := run(context.Background(), []string{"-vectors", "no-such-file"}, io.Discard, io.Discard); err == nil || errors.Is(err, usage.ErrWrong) {
		t.Errorf("a file that is not there: %v, want a failure", err)
	}
}

func TestHelpSaysEachFlagOnTheStandardOutput(t *testing.T) {
	var out bytes.Buffer
	if err := run(context.Background(), []string{"-h"}, &out, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
	for _, want := range []string{"usage: netcompare", "\n  -vlan ID ", "\n  -vnet "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("-h does not say %q", want)
		}
	}
}

func TestCapturesThatWereNotReadToTheirEndsAreNotFoundEqual(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	file := "testdata/a.pcap.gz"
	if err := run(ctx, []string{file, file}, io.Discard, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v, want context.Canceled", err)
	}
}
