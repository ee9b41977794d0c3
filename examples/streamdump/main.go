// Streamdump shows what is in a QEMU migration stream, without knowing its
// devices: a table for people, or one JSON object per record. See -h.
//
// To read it: dump.go walks a stream, or a whole COLO connection, and turns its
// records into lines; ram.go counts and extracts the guest's memory; verify.go
// compares what is written again with what was read; print.go is how it looks;
// progress.go is for those who wait.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() { os.Exit(streamdump(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

type options struct {
	json, colo, fields, verify bool
	returnPath                 bool
	extract                    string
	file                       string
}

const usage = `usage: streamdump [flags] FILE|-

Streamdump reads a QEMU migration stream and prints its records: a table with
totals per RAM block, or JSON lines. It needs no description of the machine but
the one at the end of the stream. Exit status: 0, 1 for a stream that is bad or
does not verify (what was decoded before is printed), 2 for a bad command line.

A stream is what QEMU's "migrate exec:cat>FILE" or "migrate file:FILE" writes.
With -colo, FILE has all bytes from a COLO primary to its secondary: the initial
migration and then every checkpoint.

What nothing describes is shown as bytes: devices of a stream without a
description (postcopy has none), devices that have changed their shape since, and
the keys of trees. Of live sections only memory is known; others pass by up to
what looks like their end, and are marked opaque.

`

func parseOptions(args []string, out io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("streamdump", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.BoolVar(&o.json, "json", false, "print one JSON object per record, and a summary at the end")
	f.BoolVar(&o.colo, "colo", false, "go on with the checkpoints of a COLO connection")
	f.BoolVar(&o.fields, "fields", false, "print the fields of devices and commands too")
	f.BoolVar(&o.verify, "verify", false, "write again what was decoded and compare byte for byte")
	f.BoolVar(&o.returnPath, "return-path", false, "FILE is the other direction: the answers of a destination")
	f.StringVar(&o.extract, "extract-ram", "", "write each RAM block's final contents to a file in `DIR`")
	err := f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(out, usage)
		f.SetOutput(out)
		f.PrintDefaults()
		return o, err
	case err != nil:
		return o, err
	case f.NArg() != 1:
		return o, errors.New("want one FILE, or - for standard input")
	case o.returnPath && (o.colo || o.extract != ""):
		return o, errors.New("-return-path has neither checkpoints nor memory")
	}
	o.file = f.Arg(0)
	return o, nil
}

// streamdump is the program; it returns its exit status.
func streamdump(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	o, err := parseOptions(args, stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "streamdump: %s (-h explains)\n", strings.TrimSpace(err.Error()))
		return 2
	}
	in := stdin
	if o.file != "-" {
		f, err := os.Open(o.file)
		if err != nil {
			fmt.Fprintln(stderr, "streamdump:", err)
			return 1
		}
		defer f.Close()
		in = f
	}
	if err := dump(o, in, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, "streamdump:", strings.ReplaceAll(err.Error(), "\n", " "))
		return 1
	}
	return 0
}
