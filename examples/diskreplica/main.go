// Command diskreplica keeps a disk image on two hosts (or in two terminals)
// that agree at every checkpoint, and shows what a failover leaves.
//
// Run it with -h for a walk through.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
)

const usage = `diskreplica keeps a disk image in two copies that agree at every checkpoint.

  diskreplica secondary -image FILE -listen ADDR [-size BYTES] [-journal BASE]
  diskreplica primary   -image FILE -secondary ADDR [-size BYTES] [-listen ADDR]

Both serve their guest's view of the disk over NBD, so that qemu-io, nbdcopy
or a VM can be the guest. ADDR is a host:port, or the path of a Unix socket.
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
last checkpoint.

Options:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil && !errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "diskreplica:", err)
		os.Exit(1)
	}
}

// options are those of the command line.
type options struct {
	image, listen, secondary, journal string
	size                              int64
}

// run is the program, apart from what belongs to the process. It returns when
// ctx ends, or the commands say "quit".
func run(ctx context.Context, args []string, commands io.Reader, out io.Writer) error {
	var o options
	fs := flag.NewFlagSet("diskreplica", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.Usage = func() {
		fmt.Fprint(out, usage)
		fs.PrintDefaults()
	}
	fs.StringVar(&o.image, "image", "", "raw disk `file`; made if -size is given and it is not there")
	fs.Func("size", "`bytes` of the image, with K, M or G", func(s string) (err error) {
		o.size, err = parseSize(s)
		return err
	})
	fs.StringVar(&o.listen, "listen", "", "`address` to serve NBD on")
	fs.StringVar(&o.secondary, "secondary", "", "`address` of the secondary (primary only)")
	fs.StringVar(&o.journal, "journal", "", "keep overlays in the files `base`.hidden and .active (secondary only)")
	var role string
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		role, args = args[0], args[1:]
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	t := &terminal{out: out}
	switch {
	case role == "secondary" && o.image != "" && o.listen != "" && o.secondary == "":
		return runSecondary(ctx, o, commands, t)
	case role == "primary" && o.image != "" && o.secondary != "" && o.journal == "":
		return runPrimary(ctx, o, commands, t)
	}
	fs.Usage()
	return errors.New("want a role, primary or secondary, and its options")
}

func parseSize(s string) (int64, error) {
	unit := int64(1)
	switch {
	case strings.HasSuffix(s, "K"):
		unit = 1 << 10
	case strings.HasSuffix(s, "M"):
		unit = 1 << 20
	case strings.HasSuffix(s, "G"):
		unit = 1 << 30
	}
	var n int64
	if _, err := fmt.Sscanf(strings.TrimRight(s, "KMG"), "%d", &n); err != nil || n <= 0 || n > 1<<50/unit {
		return 0, fmt.Errorf("size %q", s)
	}
	return n * unit, nil
}

// network tells a Unix socket from a host and port.
func network(addr string) string {
	if strings.Contains(addr, "/") {
		return "unix"
	}
	return "tcp"
}

func listen(addr string) (net.Listener, error) {
	if network(addr) == "unix" {
		// One that a killed process left behind answers nobody.
		if c, err := net.Dial("unix", addr); err == nil {
			c.Close()
		} else if errors.Is(err, syscall.ECONNREFUSED) {
			os.Remove(addr)
		}
	}
	return net.Listen(network(addr), addr)
}

// terminal prints whole lines from any goroutine.
type terminal struct {
	mu  sync.Mutex
	out io.Writer
}

func (t *terminal) printf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.out, format+"\n", args...)
}

// lines returns a channel of the lines of r, closed at its end. Reading
// standard input cannot be interrupted, so its goroutine ends with the
// process, or with r.
func lines(ctx context.Context, r io.Reader) <-chan string {
	ch := make(chan string)
	go func() {
		defer close(ch)
		sc := bufio.NewScanner(r)
		for sc.Scan() {
			select {
			case ch <- strings.TrimSpace(sc.Text()):
			case <-ctx.Done():
				return
			}
		}
	}()
	return ch
}
