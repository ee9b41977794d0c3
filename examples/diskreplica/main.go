// Command diskreplica keeps a disk image on two hosts (or in two terminals)
// that agree at every checkpoint, and shows what a failover leaves.
//
// Run it with -h for a walk through.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"

	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
)

const about = `diskreplica keeps a disk image in two copies that agree at every checkpoint.

  diskreplica secondary -image FILE -listen ADDR [-size BYTES] [-journal BASE] [-overwrite] [-json]
  diskreplica primary   -image FILE -secondary ADDR [-size BYTES] [-listen ADDR] [-overwrite] [-json]
  diskreplica status    FILE...
  diskreplica bind      FILE
  diskreplica hold      -generation N FILE...

The first two serve their guest's view of the disk over NBD, so that qemu-io, nbdcopy
or a VM can be the guest. ADDR is a host:port, or the path of a Unix socket. A secondary
serves NBD there, and takes checkpoints at the next port, or at the path with .control
after it. Only the user of the process may connect to a Unix socket.
Both read commands from standard input: "help" lists them.

A minute's trial, in three terminals:

  1$ diskreplica secondary -image /tmp/b.img -size 64M -listen /tmp/b
  2$ diskreplica primary -image /tmp/a.img -size 64M -secondary /tmp/b -listen /tmp/a
  3$ qemu-io -f raw -c 'write -P 0x22 0 1M' 'nbd+unix:///disk?socket=/tmp/a'

The secondary's guest still sees zeroes, for there was no checkpoint yet:

  3$ qemu-io -f raw -c 'read -P 0 0 1M' 'nbd+unix:///guest?socket=/tmp/b'

Type "checkpoint" in terminal 2, and it sees what the primary wrote:

  3$ qemu-io -f raw -c 'read -P 0x22 0 1M' 'nbd+unix:///guest?socket=/tmp/b'

Now let both guests write, and kill the primary (Ctrl-C in terminal 2):

  3$ qemu-io -f raw -c 'write -P 0x44 0 1M'  'nbd+unix:///disk?socket=/tmp/a'
  3$ qemu-io -f raw -c 'write -P 0x33 2M 1M' 'nbd+unix:///guest?socket=/tmp/b'

Type "failover" in terminal 1. The secondary's own write stays, and the
primary's since the checkpoint is undone, as its guest's memory would be:

  3$ qemu-io -f raw -c 'read -P 0x22 0 1M' -c 'read -P 0x33 2M 1M' 'nbd+unix:///guest?socket=/tmp/b'

With -journal the secondary's overlays are in BASE.hidden and BASE.active, and
its disk survives kill -9 or a power cut: the next start brings it back to the
last checkpoint, and so it does if a synchronisation was interrupted. Both are sparse
and twice as long as the image; they grow with it when they are clean.

An image grows while no process uses it, on both sides: truncate -s makes a file longer. Or it grows
while both run: say "grow SIZE" to the secondary, and then to the primary. Who uses the disk connects again to see it.

FILE.lockstep, beside each image, says whose copy it is, how far in its history,
and on a primary what its secondary may lack; "status" prints it, and which process uses
the image, also while it is in use. It prints the epoch of a copy that stands at a
checkpoint. A primary's copy is ahead of every checkpoint, and a copy that is being
written is inconsistent and has no epoch here: the command "status" of its own process
tells that, or after a crash the next start with the journal. With -journal "status"
prints what the journal says. A block device has no file beside it: its identity
is in the journal of a secondary, and else only in the process that uses it. A primary
overwrites a copy of its own disk that is older. A
blank image that the secondary has just made is overwritten too; any other only
with -overwrite, on either side. "bind" says that an image and the file beside it
still belong together, after both were moved or restored; all is compared then. An image or journal that another
process uses is refused.

"hold" is an operator's word about the disks of a guest that package protect kept: a
host gave the guest away in a switchover, and the host that was granted it is lost for
good. The images here are of the last checkpoint, of the generation before the one that
the arbiter's record has, and start nothing. With -generation N, that of the record, they
are said to be of it, and a job with Start goes on with them; what the lost host did is
forgotten. Give all the disks of the guest at once. An image that is not whole, or not of
the generation before N, is refused, and then none is changed.

Exit status: 0, 1 if something failed, 2 for a bad command line. A primary that was told to
verify or repair leaves with what the last of these came to: 3 if copies differ and were not repaired,
4 if parts are undecided, since the guest wrote them too often to be compared, and 1 if it failed.
A command that has failed otherwise says so, and does not change the status.

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), cli.Signals()...)
	context.AfterFunc(ctx, stop) // who interrupts it again does not wait for a disk that does not answer
	cli.OutliveReader()
	out := cli.NewOutput(os.Stdout)
	err := run(ctx, os.Args[1:], os.Stdin, out, cli.IsTerminal(os.Stdout))
	stop()
	os.Exit(out.Status(statusOf(err, os.Stderr), "diskreplica", os.Stderr))
}

// statusOf prints an error to out, if there is one, and returns the exit status.
func statusOf(err error, out io.Writer) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp), errors.Is(err, context.Canceled):
		return 0
	case errors.Is(err, cli.ErrWrong):
		return cli.Tell(out, "diskreplica", err)
	}
	fmt.Fprintln(out, "diskreplica:", err)
	var undecided *replication.UndecidedError
	switch {
	case errors.Is(err, errDiffer):
		return 3
	case errors.As(err, &undecided):
		return 4
	}
	return 1
}

// options has the command line.
type options struct {
	role                              string
	image, listen, secondary, journal string
	size                              int64
	generation                        uint64 // -generation of the command hold
	overwrite, json                   bool
	files                             []string // of status, bind and hold
}

// parse reads a command line. Help is printed where it is asked for (flag.ErrHelp); any other
// error is cli.ErrWrong and says what is wrong.
func parse(args []string, out io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("diskreplica", flag.ContinueOnError)
	fs.StringVar(&o.image, "image", "", "raw disk `file`; made if -size is given and it is not there")
	fs.Func("size", "`bytes` of the image, with K, M or G", func(s string) (err error) {
		o.size, err = parseSize(s)
		return err
	})
	fs.StringVar(&o.listen, "listen", "", "`address` to serve NBD on")
	fs.StringVar(&o.secondary, "secondary", "", "`address` of the secondary (primary only)")
	fs.StringVar(&o.journal, "journal", "", "keep overlays in the files `base`.hidden and .active (secondary, and status)")
	fs.BoolVar(&o.overwrite, "overwrite", false, "the secondary's copy may be overwritten whatever it is, and a primary may use one that is inconsistent or outdated")
	fs.BoolVar(&o.json, "json", false, "print events, and what commands return, as QMP does: a JSON object a line")
	fs.Uint64Var(&o.generation, "generation", 0, "the `number` of the generation in the arbiter's record (hold only)")
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		o.role, args = args[0], args[1:]
	}
	bad := func(format string, args ...any) (options, error) {
		return options{}, cli.Wrong(format, args...)
	}
	if err := cli.Parse(fs, about, args, out); err != nil {
		return o, err
	}
	switch {
	case o.generation > 0 && o.role != "hold":
		return bad("-generation is for hold")
	case o.role == "status" && fs.NArg() > 0, o.role == "bind" && fs.NArg() == 1:
		o.files = fs.Args()
		return o, nil
	case o.role == "hold" && fs.NArg() > 0 && o.generation > 0:
		o.files = fs.Args()
		return o, nil
	case o.role == "hold":
		return bad("hold wants -generation and the names of the guest's images")
	case o.role == "status" || o.role == "bind":
		return bad("%s wants the name of an image", o.role)
	case fs.NArg() > 0:
		return bad("unexpected argument %q", fs.Arg(0))
	case o.role != "primary" && o.role != "secondary":
		return bad("the first argument is primary, secondary, status, bind or hold")
	case o.image == "":
		return bad("-image is needed")
	case o.role == "primary" && o.secondary == "":
		return bad("a primary needs -secondary")
	case o.role == "primary" && o.journal != "":
		return bad("-journal is the secondary's")
	case o.role == "secondary" && o.listen == "":
		return bad("a secondary needs -listen")
	case o.role == "secondary" && o.secondary != "":
		return bad("-secondary is the primary's")
	}
	name, addr := "-listen", o.listen // of the secondary
	if o.role == "primary" {
		name, addr = "-secondary", o.secondary
	}
	if _, err := controlAddr(addr); err != nil {
		return bad("%s %s: %w", name, addr, err)
	}
	return o, nil
}

// run is the program, apart from what belongs to the process. It returns when
// ctx ends, or the commands say "quit".
func run(ctx context.Context, args []string, commands io.Reader, out io.Writer, terminal bool) error {
	o, err := parse(args, out)
	if err != nil {
		return err
	}
	p := &printer{out: out, json: o.json, terminal: terminal}
	switch o.role {
	case "primary":
		return runPrimary(ctx, o, commands, p)
	case "status":
		return printCopies(o.files, o.journal, p)
	case "bind":
		return bind(o.files[0])
	case "hold":
		return hold(o.files, o.generation, p)
	}
	return runSecondary(ctx, o, commands, p)
}

// maxImage bounds the size of an image that is made.
const maxImage = 1 << 50

func parseSize(s string) (int64, error) {
	var b cli.Bytes
	if err := b.Set(s); err != nil {
		return 0, err
	}
	if b == 0 || b > maxImage {
		return 0, fmt.Errorf("want 1 to %d bytes", int64(maxImage))
	}
	return int64(b), nil
}

// network tells a Unix socket from a host and port.
func network(addr string) string {
	if strings.Contains(addr, "/") {
		return "unix"
	}
	return "tcp"
}

// listen listens at addr. A Unix socket is for the user of this process alone, whatever the umask: who
// connects reads and writes the disk.
func listen(addr string) (net.Listener, error) { return socket.ListenPrivate(network(addr), addr) }
