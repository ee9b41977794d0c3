// Command verdict reads what the tests of package linuxguest have printed, and says what
// their failures are. The script .ci/linux-hosts asks it.
//
//	verdict LOG             a line for each test that failed: its name, and spoilt, doubtful or failed
//	verdict -why NAME LOG   the last things that a failed test said, a line each
//
// LOG is the output of one go test -v. If it is not that of a whole run, in which each
// test that began has ended, verdict says so and its status is 1.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "verdict:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("verdict", flag.ContinueOnError)
	why := flags.String("why", "", "the `NAME` of a test: print what it said last")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return fmt.Errorf("one log is needed, and there are %d", flags.NArg())
	}
	f, err := os.Open(flags.Arg(0))
	if err != nil {
		return err
	}
	defer f.Close()
	l, err := read(f)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	if *why != "" {
		for _, line := range l.why(*why) {
			fmt.Fprintf(w, "=== %s: %s\n", *why, line)
		}
		return w.Flush()
	}
	if err := l.whole(); err != nil {
		return err
	}
	for _, name := range l.failures() {
		fmt.Fprintln(w, name, l.kind(name))
	}
	return w.Flush()
}
