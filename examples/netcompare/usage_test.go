package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/cli"
)

func TestABadCommandLineIsToldFromAFailure(t *testing.T) {
	for _, args := range [][]string{{}, {"-nonsense"}, {"one.pcap"}, {"a", "b", "c"}} {
		if err := run(context.Background(), args, io.Discard, io.Discard); !errors.Is(err, cli.ErrWrong) {
			t.Errorf("%q: %v, want a bad command line", args, err)
		}
	}
	if err := run(context.Background(), []string{"-vectors", "no-such-file"}, io.Discard, io.Discard); err == nil || errors.Is(err, cli.ErrWrong) {
		t.Errorf("a file that is not there: %v, want a failure", err)
	}
}

// A flag that would say nothing is refused, so that nobody takes it for looked at.
func TestAFlagThatSaysNothingOfWhatIsComparedIsRefused(t *testing.T) {
	const file = "testdata/a.pcap.gz"
	for _, args := range [][]string{
		{"-vnet", file, file}, {"-listen", file, file}, {file, file, "-strict"},
		{"-guest", "10.0.0.1", "tcp:127.0.0.1:1", "tcp:127.0.0.1:1"}, {"-vlan", "5", "unix:no-such", "unix:no-such"},
		{"-offset", "1s", "unix:no-such", "unix:no-such"},
	} {
		if err := run(context.Background(), args, io.Discard, io.Discard); !errors.Is(err, cli.ErrWrong) {
			t.Errorf("%q: %v, want a bad command line", args, err)
		}
	}
}

// Who names a guest that is in neither capture is told so, and not only that nothing differs.
func TestAGuestWhoIsNotInACaptureIsToldOf(t *testing.T) {
	const file = "testdata/a.pcap.gz"
	const note = file + ": no packet is of those that -guest and -vlan name"
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"-guest", "10.9.0.77", file, file}, 2}, {[]string{"-vlan", "9", file, file}, 2},
		{[]string{"-guest", "10.9.0.1", file, file}, 0}, {[]string{file, file}, 0},
	} {
		var out bytes.Buffer
		if err := run(context.Background(), c.args, &out, io.Discard); err != nil {
			t.Errorf("%q: %v", c.args, err)
		}
		if n := strings.Count(out.String(), note); n != c.want {
			t.Errorf("%q: it is said %d times, want %d:\n%s", c.args, n, c.want, out.String())
		}
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
