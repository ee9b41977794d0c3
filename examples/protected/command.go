package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/gocolo/lockstep/examples/internal/usage"
)

const about = `usage: protected [-tls] [-mode mode]    both hosts on this machine: kills, stops and switches them
       protected -host name ...         one host of the two

Exit status: 0, 1 if the guest cannot go on here, 2 for a bad command line.
`

// errUsage says that the command line is wrong.
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

// modeFlag is how lines leave.
func modeFlag(f *flag.FlagSet) *string {
	return f.String("mode", "continuous", "how the guest's lines leave: all with checkpoints (continuous), or when both guests have said them (compare)")
}

// parse reads a command line, or says what there is to say.
func parse(f *flag.FlagSet, args []string) error {
	f.SetOutput(io.Discard) // main says what is wrong, in one line
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		usage.Print(os.Stdout, about, f)
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", errUsage, err)
	case f.NArg() > 0:
		return fmt.Errorf("%w: what is %q?", errUsage, f.Arg(0))
	}
	if host := f.Lookup("host"); host != nil && host.Value.String() == "" {
		return fmt.Errorf("%w: -host is missing", errUsage)
	}
	return nil
}
