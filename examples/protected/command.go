package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/gocolo/lockstep/internal/cli"
)

const about = `usage: protected [-tls] [-mode how]     both hosts on this machine: kills, stops and switches them
       protected -host name ...         one host of the two

Exit status: 0, 1 if something failed or the guest cannot go on here, 2 for a bad command line;
130, 143 or 129 if the demonstration was interrupted.

`

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
	return f.String("mode", "continuous", "`how` the guest's lines leave: all with checkpoints (continuous), or when both guests have said them (compare)")
}

// parse reads a command line. Help is printed where it is asked for (flag.ErrHelp); any other
// error is cli.ErrWrong and says what is wrong.
func parse(f *flag.FlagSet, args []string, stdout io.Writer) error {
	if f.Lookup("tls") == nil && slices.ContainsFunc(args, func(a string) bool { return a == "-tls" || a == "--tls" }) {
		return cli.Wrong("-tls is for both hosts on this machine: one host has -cert, -key, -ca and -peer")
	}
	if err := cli.Parse(f, about, args, stdout); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return cli.Wrong("unexpected argument %q", f.Arg(0))
	}
	if period := f.Lookup("period"); period != nil && period.Value.(flag.Getter).Get().(time.Duration) <= 0 {
		return cli.Wrong("-period %v: want more than 0", period.Value)
	}
	for _, name := range []string{"host", "listen", "dial"} {
		if needed := f.Lookup(name); needed != nil && needed.Value.String() == "" {
			return cli.Wrong("-%s is missing", name)
		}
	}
	for _, name := range []string{"listen", "dial"} {
		if address := f.Lookup(name); address != nil {
			if _, _, err := net.SplitHostPort(address.Value.String()); err != nil {
				return cli.Wrong("-%s %s: want [HOST]:PORT", name, address.Value)
			}
		}
	}
	if plain := f.Lookup("insecure"); plain != nil && plain.Value.String() == "true" {
		for _, name := range []string{"cert", "key", "ca"} {
			if f.Lookup(name).Value.String() != "" {
				return cli.Wrong("-%s and -insecure contradict each other", name)
			}
		}
	} else if plain != nil {
		for _, name := range []string{"cert", "key", "ca", "peer"} {
			if f.Lookup(name).Value.String() == "" {
				return cli.Wrong("-%s is missing: a host has -cert, -key, -ca and -peer, or -insecure", name)
			}
		}
	}
	if host, peer := f.Lookup("host"), f.Lookup("peer"); host != nil && peer != nil && host.Value.String() == peer.Value.String() {
		return cli.Wrong("-host and -peer are both %q: the two hosts have names of their own", host.Value.String())
	}
	return nil
}

// statusOf prints an error, if there is one, and returns the exit status. It is no error of a
// host (service) that a signal has ended it; it is one of the demonstration.
func statusOf(err error, service bool) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp), service && errors.Is(err, context.Canceled):
		return 0
	case errors.Is(err, cli.ErrWrong):
		return cli.Tell(os.Stderr, "protected", err)
	}
	fmt.Fprintln(os.Stderr, "protected:", err)
	return 1
}
