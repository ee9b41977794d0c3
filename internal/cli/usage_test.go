package cli

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"testing"
)

func TestEachFlagHasALineWithItsDefault(t *testing.T) {
	f := flag.NewFlagSet("program", flag.ContinueOnError)
	f.Int("n", 3, "`number` of runs")
	f.Bool("json", false, "print JSON")
	f.String("qmp", "", "serve a monitor at `unix:PATH|HOST:PORT`")
	var got bytes.Buffer
	PrintUsage(&got, "Program does something.\n\n", f)
	const want = `Program does something.

  -json                     print JSON
  -n number                 number of runs (default 3)
  -qmp unix:PATH|HOST:PORT  serve a monitor at unix:PATH|HOST:PORT
`
	if got.String() != want {
		t.Errorf("%s\nwant\n%s", got.String(), want)
	}
}

func TestAWrongCommandLineIsToldInOneLineThatNamesHelp(t *testing.T) {
	f := flag.NewFlagSet("program", flag.ContinueOnError)
	f.Int("n", 3, "`number` of runs")
	for _, c := range []struct {
		err  error
		want string
	}{
		{Parse(f, "", []string{"-nonsense"}, io.Discard), "program: flag provided but not defined: -nonsense (-h explains)\n"},
		{Parse(f, "", []string{"-n", "many"}, io.Discard), "program: invalid value \"many\" for flag -n: parse error (-h explains)\n"},
		{fmt.Errorf("disk 1: %w", Wrong("-size %d:\n%w", 0, io.ErrUnexpectedEOF)), "program: disk 1: -size 0: unexpected EOF (-h explains)\n"},
	} {
		var got bytes.Buffer
		if status := Tell(&got, "program", c.err); status != 2 || got.String() != c.want || !errors.Is(c.err, ErrWrong) {
			t.Errorf("%v: exit status %d, a wrong command line %v, and it says %q, want %q", c.err, status, errors.Is(c.err, ErrWrong), &got, c.want)
		}
	}
	if err := Wrong("%w", io.ErrUnexpectedEOF); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v does not wrap its cause", err)
	}
}

func TestHelpIsPrintedWhereItIsAskedForAndIsNoFailure(t *testing.T) {
	f := flag.NewFlagSet("program", flag.ContinueOnError)
	f.Int("n", 3, "`number` of runs")
	var got, stderr bytes.Buffer
	err := Parse(f, "Program does something.\n\n", []string{"-h"}, &got)
	if !errors.Is(err, flag.ErrHelp) || errors.Is(err, ErrWrong) || got.String() != "Program does something.\n\n  -n number  number of runs (default 3)\n" {
		t.Errorf("-h: %v, and %q", err, &got)
	}
	if status := Tell(&stderr, "program", err); status != 0 || stderr.Len() > 0 {
		t.Errorf("-h: exit status %d, and %q", status, &stderr)
	}
	if err := Parse(f, "", []string{"-n", "4", "rest"}, &got); err != nil || f.Arg(0) != "rest" {
		t.Errorf("a command line that is right: %v, and %q is left", err, f.Args())
	}
}
