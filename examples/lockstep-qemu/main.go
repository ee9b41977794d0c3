// Lockstep-qemu is the COLO peer of real QEMUs: it protects a stock QEMU's guest without
// a second running virtual machine, passes its checkpoints on, and says whether
// it can be protected. See -h.
//
// To read it: standby.go takes a guest in, standby_files.go writes it to files,
// standby_status.go says how it stands, disk.go keeps its disks, bringback.go starts it again,
// bringback_attend.go watches that QEMU meanwhile, rehearse.go tries it; arbitrate.go decides whether
// it may, with what standby_heard.go knows of the primary. reception.go takes connections in, certificates.go says whose, operator.go orders.
// relay.go passes it on to further secondaries: follower.go is one of them, relay_barrier.go waits
// for them, relay_status.go says how they are, promote.go lets one go on. check.go (commandline.go
// and domain.go say what a QEMU for the guest is started with) and protect.go (mirror.go for disks)
// are parts of the primary, and guardian.go stays with it: guardian_watch.go sees what becomes of
// the guest, guardian_protect.go protects it again, guardian_rescue.go has it run on alone,
// guardian_still.go keeps it stopped, guardian_fence.go has a QEMU ended that hangs, guardian_generation.go asks whose it is, guardian_control.go
// talks to the standby, guardian_end.go tells of its end. output_filters.go holds what it sends.
// page.go tells how it stands, and log.go logs; qemu_end.go says how a QEMU has ended,
// hanging_qemu.go that one does not answer, and interrupted.go that a signal has ended this
// program. drill.go shows all of it.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/gocolo/lockstep/internal/cli"
)

const about = `Lockstep-qemu is the other side of QEMU's COLO.

  lockstep-qemu standby -listen ADDR -state DIR [-- qemu-system-x86_64 ...]
      Keeps the guest of a QEMU primary in memory, checkpoint by checkpoint, and
      brings it back when the primary is lost.
  lockstep-qemu relay -listen ADDR -state DIR -to ADDR[,ADDR...] [-qmp ADDR[,ADDR...]]
      The same, and passes each checkpoint on to QEMU secondaries.
  lockstep-qemu check -qmp ADDR
      Says whether a running QEMU can be protected, and how.
  lockstep-qemu protect -qmp ADDR -to ADDR [-stay -control ADDR]
      Protects it: sets what has to be set and starts; with -stay stays with it,
      as its guardian.
  lockstep-qemu promote -standby DIR [-state DIR] [-- qemu-system-x86_64 ...]
      Orders a standby to go on with its guest.
  lockstep-qemu rehearse -standby DIR
      Has a standby try its QEMU with the guest, paused, and end it again.
  lockstep-qemu status -state DIR
      Says how it stands with a standby or a guardian.
  lockstep-qemu drill
      Shows all of it with a small guest, on this machine, in less than a minute.

An ADDR is tcp:HOST:PORT, unix:PATH, HOST:PORT or a path. -h after a command
explains it.

Exit status: 0 as wished, 1 failed, 2 wrong arguments, 3 the guest is the other
side's, or may be, 4 interrupted, 5 a QEMU that the guest was in has failed.
`

// The exit statuses.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitUnfenced
	exitInterrupted
	exitGuest
)

// terminal is where a program's words go.
type terminal struct {
	out, err io.Writer
	live     bool // out can rewrite a line
}

// command runs a command with its arguments and returns the exit status.
type command func(ctx context.Context, args []string, t terminal) int

var commands = map[string]command{
	"standby":  standbyCommand,
	"relay":    relayCommand,
	"check":    checkCommand,
	"protect":  protectCommand,
	"promote":  promoteCommand,
	"rehearse": rehearseCommand,
	"status":   statusCommand,
}

func main() {
	ctx, status := cli.Notify() // a second signal ends it the hard way
	cli.OutliveReader()
	out, t := output(os.Args[1:], os.Stdout, os.Stderr)
	own := run(ctx, os.Args[1:], t)
	os.Exit(out.Status(status(own), "lockstep-qemu", os.Stderr))
}

// output returns where a command prints. One on which a guest depends waits for no reader.
func output(args []string, stdout, stderr *os.File) (*cli.Output, terminal) {
	live := cli.IsTerminal(stdout)
	if len(args) > 0 && slices.Contains([]string{"standby", "relay", "protect", "drill"}, args[0]) {
		out, errs := cli.Detached(stdout, stderr)
		return out, terminal{out, errs, live}
	}
	out := cli.NewOutput(stdout)
	return out, terminal{out, stderr, live}
}

func run(ctx context.Context, args []string, t terminal) int {
	if len(args) == 0 {
		fmt.Fprint(t.err, about)
		return exitUsage
	}
	switch args[0] {
	case "-h", "-help", "--help", "help":
		fmt.Fprint(t.out, about)
		return exitOK
	}
	c := commands[args[0]]
	if args[0] == "drill" {
		c = drillCommand // it calls run itself
	}
	if c == nil {
		return cli.Tell(t.err, "lockstep-qemu", fmt.Errorf("no command %q", args[0]))
	}
	return c(ctx, args[1:], t)
}

// parse reads a command's flags; done means that the command ends with status.
func parse(f *flag.FlagSet, about string, args []string, t terminal, rest bool) (status int, done bool) {
	err := cli.Parse(f, about+"\n", args, t.out)
	if err == nil && f.NArg() > 0 && !rest {
		err = fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if err != nil {
		return t.wrong(f.Name(), err), true
	}
	return 0, false
}

// wrong says what is wrong with the arguments.
func (t terminal) wrong(command string, err error) int {
	return cli.Tell(t.err, "lockstep-qemu "+command, err)
}
