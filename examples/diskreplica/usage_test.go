package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
)

func TestABadCommandLineIsToldFromAFailure(t *testing.T) {
	for _, args := range []string{"", "-nonsense", "primary", "tertiary -image x -listen y", "primary x", "secondary -image x",
		"secondary -image x -size 12x -listen y", "secondary -image x -listen y -secondary z", "primary -image x -secondary y -journal z",
		"secondary -image x -listen localhost:0", "secondary -image x -listen localhost:65535", "primary -image x -secondary localhost",
		"hold x", "hold -generation 2", "hold -generation -1 x", "status -generation 2 x"} {
		var out bytes.Buffer
		err := run(context.Background(), strings.Fields(args), strings.NewReader(""), &out, false)
		if !errors.Is(err, cli.ErrWrong) || strings.Contains(err.Error(), "\n") || out.Len() > 0 {
			t.Errorf("%q: %v, want a bad command line, in one line, and nothing on the standard output but %q", args, err, out.String())
		}
	}
	if err := run(context.Background(), []string{"secondary", "-image", "no/such", "-listen", "localhost:1"}, nil, io.Discard, false); !errors.Is(err, os.ErrNotExist) || errors.Is(err, cli.ErrWrong) || !strings.HasSuffix(err.Error(), "(-size makes it)") {
		t.Errorf("an image that is not there: %v, want a failure that says how it is made", err)
	}
}

func TestAPrimaryThatFindsNoSecondarySaysWhatToDo(t *testing.T) {
	dir := socket.Dir(t)
	none := filepath.Join(dir, "none")
	args := []string{"primary", "-image", filepath.Join(dir, "image"), "-size", "1M", "-secondary", none}
	err := run(t.Context(), args, strings.NewReader(""), io.Discard, false)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "no secondary answers at "+none+" (start it first, with -listen; checkpoints go to "+none+".control)") {
		t.Errorf("%v", err)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"512": 512, "4K": 4096, "64M": 64 << 20, "1G": 1 << 30} {
		if n, err := parseSize(text); n != want || err != nil {
			t.Errorf("size %s is %d, %v", text, n, err)
		}
	}
	for _, text := range []string{"", "0", "K", "12x", "x12", "1KK", "-1", "+1", " 1", "1.5G", "2000000G"} {
		if n, err := parseSize(text); err == nil {
			t.Errorf("size %q is taken for %d", text, n)
		}
	}
}

func TestHelpExplainsAll(t *testing.T) {
	var out bytes.Buffer
	if err := run(context.Background(), []string{"-h"}, nil, &out, false); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
	for _, want := range []string{"A minute's trial", "at the next port", "-journal", "-json"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("-h does not say %q", want)
		}
	}
}

// The test binary is the program, if told so.
func TestExitStatus(t *testing.T) {
	if os.Getenv("DISKREPLICA_ARGS") != "" {
		os.Args = append(os.Args[:1], strings.Fields(os.Getenv("DISKREPLICA_ARGS"))...)
		main()
		os.Exit(0)
	}
	require.Outside(t, require.Processes)
	for args, want := range map[string]int{"-h": 0, "primary -size 12x": 2, "nonsense": 2, "secondary -image no/such -listen localhost:7000": 1, "secondary -image no/such -listen x": 2} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestExitStatus$")
		cmd.Env = append(os.Environ(), "DISKREPLICA_ARGS="+args)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("%q: exit status %d, want %d", args, got, want)
		}
		if n := strings.Count(stderr.String(), "\n"); want != 0 && n != 1 {
			t.Errorf("%q: %d lines of error, want one: %s", args, n, stderr.String())
		}
	}
}
