// Lockstep-gokvm runs a Linux guest on KVM, alone or protected by a second host.
//
// The guest's machine is that of github.com/bobuhiro11/gokvm, by way of package
// kvm/gokvmhost. As a primary it is kept in step with a secondary on another
// host: memory, devices, disk and network. When one host dies the guest goes on
// on the other. See -h for a set-up of two hosts.
//
// To read it: options.go is the command line; protect.go is a guest that two hosts
// keep running, and boot.go one without protection; arbiter.go and decide.go are who
// goes on when they part, command.go asks somebody else, and watch.go tells a person;
// save.go puts a guest in a file. move.go is a guest that moves without protection:
// moveout.go is where it leaves, movein.go where it arrives, movelink.go the connections
// between, and movedisk.go its disk. unprotected.go is what all guests without protection have.
// guest.go is the guest of this host, hardware.go what it runs on; disk.go and console.go
// are devices of it. report.go is what is printed.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/plain"
)

func main() {
	ctx, status := cli.Notify()
	cli.OutliveReader()
	out, std := streams(os.Stdin, os.Stdout, os.Stderr)
	own := gokvm(ctx, os.Args[1:], std)
	os.Exit(out.Status(status(own), "lockstep-gokvm", os.Stderr))
}

// stdio has the standard streams of the program. A terminal is an *os.File.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// streams returns what the program reads and writes. No write waits for a reader: a vCPU that waits to write
// to the console cannot be paused, nor a checkpoint made that waits to be told of.
func streams(stdin, stdout, stderr *os.File) (*cli.Output, stdio) {
	out, errs := cli.Detached(stdout, stderr)
	return out, stdio{stdin, out, errs}
}

// gokvm is the program; it returns its exit status: 0 when the guest has ended
// itself, or the other side has it; 1 when something failed; 2 for a bad
// command line.
func gokvm(ctx context.Context, args []string, std stdio) int {
	o, err := parseOptions(args, std.out)
	if err != nil {
		return cli.Tell(std.err, "lockstep-gokvm", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	terminal := newConsole(std, o.json, func() { cancel(errEscape) })
	p := newPrinter(o, std, terminal)
	switch o.mode {
	case modeBoot:
		err = boot(ctx, o, terminal, p)
	case modeMigrate, modeReceive:
		err = runRoaming(ctx, o, terminal, p)
	case modePrimary, modeSecondary:
		err = runProtected(ctx, o, terminal, p)
	}
	terminal.close()
	if ctx.Err() != nil && (errors.Is(err, context.Cause(ctx)) || errors.Is(err, context.Canceled)) {
		err = nil // that was the order
	}
	p.end(err)
	if err != nil {
		fmt.Fprintf(std.err, "lockstep-gokvm: %s\n", oneLine(err))
		return 1
	}
	return 0
}

// errEscape ends the program at the user's wish, as a signal does.
var errEscape = errors.New("ended from the console")

// oneLine returns the text of an error as one line.
func oneLine(err error) string {
	return plain.Line(err.Error())
}
