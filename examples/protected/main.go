// Protected is the shortest program that protects a guest: a VMM (machine.go) and
// what it takes to keep its guest running when its host dies (this file).
//
// On two hosts, or in two terminals of one, with a directory that both reach:
//
//	protected -host a -listen :7001 -dial localhost:7002 -arbiter /tmp/db1 -insecure -start
//	protected -host b -listen :7002 -dial localhost:7001 -arbiter /tmp/db1 -insecure
//
// The guest's lines come from one of the two. Kill that one, in any way, and they
// go on at the other; start it again, without -start, and it is protected again.
// With -cert, -key and -ca in place of -insecure the hosts show each other
// certificates, for the names given by -host. SIGUSR1 makes the host with the
// guest hand it over; so does job-complete on the monitor of -qmp, and a button of
// the page of -http, with -http-control.
//
// Without arguments it does all that by itself on this machine: it starts both,
// kills, stops and continues them, and checks every line (demo.go).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/colo/protect/control"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/examples/internal/usage"
	"github.com/gocolo/lockstep/failover/sharedfile"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	run := host
	if len(os.Args) == 1 || os.Args[1] == "-tls" {
		run = demo
	}
	switch err := run(ctx, os.Args[1:]); {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		fmt.Fprintf(os.Stderr, "protected: %v (-h explains)\n", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "protected:", err)
		os.Exit(1)
	}
}

const about = `usage: protected [-tls]    both hosts on this machine: kills, stops and switches them
       protected flags     one host of the two

Exit status: 0, 1 if the guest cannot go on here, 2 for a bad command line.
`

// errUsage says that the command line is wrong.
var errUsage = errors.New("bad command line")

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
	return nil
}

// host is one host of the two.
func host(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("protected", flag.ContinueOnError)
	name := f.String("host", "", "this host's `name`")
	peer := f.String("peer", "", "the other host's `name`, which its certificate is for")
	listen := f.String("listen", "", "`address` at which this host is reached")
	dial := f.String("dial", "", "`address` of the other host")
	arbiter := f.String("arbiter", "", "`directory` that both hosts reach; without one an operator decides")
	start := f.Bool("start", false, "this is the guest's first start")
	insecure := f.Bool("insecure", false, "no TLS")
	cert := f.String("cert", "", "this host's certificate, a PEM `file`")
	key := f.String("key", "", "its key")
	ca := f.String("ca", "", "the certificate of the authority that signed both hosts'")
	period := f.Duration("period", time.Millisecond, "`time` between two lines of the guest")
	term := f.Duration("term", time.Second, "`time` for which the arbiter grants the guest")
	beat := f.Duration("beat", 50*time.Millisecond, "`time` between two heartbeats")
	handles := control.Flags(f)
	if err := parse(f, args); err != nil {
		return err
	}

	m := newMachine(256, *period)
	nic, err := protect.NewNIC(protect.NICConfig{Uplink: newLines(os.Stdout)})
	if err != nil {
		return err
	}
	m.nic = nic
	cfg := protect.Config{
		Name: "demo", Host: *name, Guest: m, Network: []protect.Network{nic}, Start: *start,
		Peer:   protect.Peer{Listen: *listen, Dial: *dial, Name: *peer, PortConfig: protect.PortConfig{Insecure: *insecure}},
		Events: new(event.Bus), Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Term: *term, Beat: *beat, Lost: 5 * *beat, CheckpointDelay: 20 * time.Millisecond,
	}
	if *cert != "" {
		if cfg.Peer.TLS, err = protect.LoadTLS(*cert, *key, *ca); err != nil {
			return err
		}
	}
	if *arbiter != "" {
		if cfg.Arbiter, err = sharedfile.New(*arbiter); err != nil {
			return err
		}
	}
	job, err := protect.New(cfg)
	if err != nil {
		return err
	}

	ctx, end := context.WithCancel(ctx)
	defer end()
	go m.run(ctx)
	handOver := make(chan os.Signal, 1)
	signal.Notify(handOver, syscall.SIGUSR1)
	go func() {
		for range handOver {
			err := job.Switchover(ctx)
			cfg.Logger.Info("switchover", "error", err, "downtime", job.Query().Stats.Downtime)
		}
	}()
	return handles.Run(ctx, job, control.Config{Events: cfg.Events, Guest: m, CheckpointDelay: cfg.CheckpointDelay, Quit: end, Logger: cfg.Logger})
}

// lines is the guest's network: what it sends is written out, a line each.
type lines struct {
	w      io.Writer
	closed chan struct{}
}

func newLines(w io.Writer) *lines { return &lines{w, make(chan struct{})} }

func (l *lines) WritePacket(p []byte) error {
	_, err := l.w.Write(append(p[:len(p):len(p)], '\n'))
	return err
}

func (l *lines) ReadPacket() ([]byte, error) { <-l.closed; return nil, io.EOF }
func (l *lines) Close() error                { close(l.closed); return nil }
