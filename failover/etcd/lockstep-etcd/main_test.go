package main

import (
	"bytes"
	"errors"
	"flag"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/cli"
)

func TestABadCommandLineIsToldFromAFailure(t *testing.T) {
	for _, args := range []string{
		"", "-nonsense", "-endpoints a:1", "-key k", "-endpoints a:1 -key k stray", "-endpoints a:1 -key k -timeout 1ms",
		"-endpoints https://a:1 -key k -cert c", "-endpoints a:1 -key k -cacert c", "-endpoints a -key k", "-endpoints a:1,https:// -key k",
	} {
		var out bytes.Buffer
		err := run(t.Context(), strings.Fields(args), strings.NewReader(""), &out)
		if !errors.Is(err, cli.ErrWrong) || strings.Contains(err.Error(), "\n") || out.Len() > 0 {
			t.Errorf("%q: %v, and %q; want a bad command line, in one line", args, err, &out)
		}
	}
	err := run(t.Context(), strings.Fields("-endpoints https://a:1 -key k -cert /no/such -cert-key /no/such"), strings.NewReader(""), new(bytes.Buffer))
	if err == nil || errors.Is(err, cli.ErrWrong) {
		t.Errorf("a certificate that is not there: %v, want a failure", err)
	}
}

func TestHelpIsWhatWasAskedFor(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-h"}, nil, &out); !errors.Is(err, flag.ErrHelp) {
		t.Error(err)
	}
	for _, want := range []string{"lockstep-etcd -endpoints", "-key KEY", "Exit status"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in:\n%s", want, &out)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestHelpThatCannotBeWrittenIsAFailure(t *testing.T) {
	var said bytes.Buffer
	if got := statusOf([]string{"-h"}, strings.NewReader(""), full{}, &said); got != 1 || said.String() != "lockstep-etcd: not all of the output was written: no space left\n" {
		t.Errorf("status %d, it said %q", got, &said)
	}
	said.Reset()
	if got := statusOf([]string{"-h"}, strings.NewReader(""), new(bytes.Buffer), &said); got != 0 || said.Len() > 0 {
		t.Errorf("status %d, it said %q", got, &said)
	}
}
