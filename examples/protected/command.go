package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/gocolo/lockstep/internal/usage"
)

const about = `usage: protected [-tls] [-mode mode]    both hosts on this machine: kills, stops and switches them
       protected -host name ...         one host of the two

Exit status: 0, 1 if something failed or the guest cannot go on here, 2 for a bad command line;
130, 143 or 129 if the demonstration was interrupted.

`

// errUsage means that the command line is wrong.
var errUsage = errors.New("bad command line")

// ofOneHost reports whether there is a flag that the demonstration does not have.
func ofOneHost(args []string) bool {
	for _, a := range args {
		name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if strings.HasPrefix(a, "-") && name != "tls" && name != "mode" {
			return true
		}
	}
	return false
}

// modeFlag adds the flag -mode, which says when lines leave.
func modeFlag(f *flag.FlagSet) *string {
	return f.String("mode", "continuous", "how the guest's lines leave: all with checkpoints (continuous), or when both guests have said them (compare)")
}

// parse reads a command line. For -h it prints the usage, and returns flag.ErrHelp.
func parse(f *flag.FlagSet, args []string, stdout io.Writer) error {
	f.SetOutput(io.Discard) // main says what is wrong, in one line
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		usage.Print(stdout, about, f)
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", errUsage, err)
	case f.NArg() > 0:
		return fmt.Errorf("%w: what is %q?", errUsage, f.Arg(0))
	}
	for _, name := range []string{"host", "listen", "dial"} {
		if needed := f.Lookup(name); needed != nil && needed.Value.String() == "" {
			return fmt.Errorf("%w: -%s is missing", errUsage, name)
		}
	}
	return nil
}

// statusOf prints an error, if there is one, and returns the exit status. It is no error of a
// host (service) that a signal has ended it; it is one of the demonstration.
func statusOf(err error, service bool) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp), service && errors.Is(err, context.Canceled):
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprintf(os.Stderr, "protected: %v (-h explains)\n", err)
		return 2
	}
	fmt.Fprintln(os.Stderr, "protected:", err)
	return 1
}
