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
// With -mode compare the guests of both hosts run in step, and a line leaves as soon
// as both have said it, without waiting for a checkpoint (compare.go). The log says
// how many do. It is the same on both hosts.
//
// Without -host it does all that by itself on this machine: it starts both,
// kills, stops and continues them, and checks every line (demo.go).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/colo/protect/control"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover/sharedfile"
	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/signals"
)

func main() {
	ctx, status := cli.Notify()
	cli.OutliveReader()
	run, service := demo, ofOneHost(os.Args[1:])
	if service {
		run = host
	}
	out := cli.NewOutput(os.Stdout)
	own := statusOf(run(ctx, os.Args[1:], out, os.Stderr), service)
	os.Exit(out.Status(status(own), "protected", os.Stderr))
}

// host runs one host of the two.
func host(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("protected", flag.ContinueOnError)
	name := f.String("host", "", "this host's `name`")
	peer := f.String("peer", "", "the other host's `name`, which its certificate is for")
	listen := f.String("listen", "", "`address` at which this host is reached")
	dial := f.String("dial", "", "`address` of the other host")
	arbiter := f.String("arbiter", "", "`directory` that both hosts reach; without one an operator decides")
	start := f.Bool("start", false, "this is the guest's first start")
	insecure := f.Bool("insecure", false, "no TLS")
	cert := f.String("cert", "", "this host's certificate, a PEM `file`")
	key := f.String("key", "", "key of -cert, a PEM `file`")
	ca := f.String("ca", "", "certificate of the authority that has signed those of both hosts, a PEM `file`")
	channels := f.Int("channels", 0, "`number` of connections for the memory of checkpoints, beside that of the session; the smaller number of the two hosts counts")
	mode := modeFlag(f)
	period := f.Duration("period", time.Millisecond, "`time` between two lines of the guest")
	term := f.Duration("term", time.Second, "`time` for which the arbiter grants the guest")
	beat := f.Duration("beat", 50*time.Millisecond, "`time` between two heartbeats")
	handles := control.Flags(f)
	if err := parse(f, args, stdout); err != nil {
		return err
	}

	if err := handles.Validate(); err != nil {
		return cli.Wrong("%w", err)
	}

	m := newMachine(256, *period)
	cfg := protect.Config{
		Name: "demo", Host: *name, Guest: m, Start: *start,
		Peer:   protect.Peer{Listen: *listen, Dial: *dial, Name: *peer, PortConfig: protect.PortConfig{Insecure: *insecure}},
		Events: new(event.Bus), Logger: slog.New(slog.NewTextHandler(stderr, nil)),
		Term: *term, Beat: *beat, Lost: 5 * *beat, CheckpointDelay: 20 * time.Millisecond,
		Channels: protect.Channels{Count: *channels},
	}
	var group sync.WaitGroup
	defer group.Wait()
	ctx, end := context.WithCancel(ctx)
	defer end()
	var err error
	switch *mode {
	case "continuous":
		nic, err := protect.NewNIC(protect.NICConfig{Uplink: newLines(stdout)})
		if err != nil {
			return err
		}
		m.nic, cfg.Network = nic, []protect.Network{nic}
	case "compare":
		nic, err := newCompared(m, stdout)
		if err != nil {
			return err
		}
		cfg.Network, cfg.CheckpointDelay = []protect.Network{nic}, time.Second
		group.Go(func() { report(ctx, nic, cfg.Logger) })
	default:
		return cli.Wrong("-mode %s: want continuous or compare", *mode)
	}
	if *cert != "" {
		if cfg.Peer.TLS, err = protect.LoadTLS(*cert, *key, *ca); err != nil {
			return err
		}
	}
	if *arbiter != "" {
		if cfg.Arbiter, err = sharedfile.New(*arbiter); err != nil {
			return fmt.Errorf("-arbiter: %w", err)
		}
	}
	job, err := protect.New(cfg)
	if err != nil {
		return cli.Wrong("%w", err) // the rest of cfg suits it
	}

	group.Go(func() { m.run(ctx) })
	handOver := make(chan os.Signal, 1)
	signal.Notify(handOver, signals.User1)
	defer func() { signal.Stop(handOver); close(handOver) }()
	go func() {
		for range handOver {
			err := job.Switchover(ctx)
			cfg.Logger.Info("switchover", "error", err, "downtime", job.Query().Stats.Downtime)
		}
	}()
	err = handles.Run(ctx, job, control.Config{Events: cfg.Events, Guest: m, CheckpointDelay: cfg.CheckpointDelay, Quit: end, Logger: cfg.Logger})
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "listen" && !strings.HasPrefix(err.Error(), "control: ") {
		return cli.Listening("-listen", err)
	}
	return err
}

// lines is the network of the guest: each packet is written out as a line.
type lines struct {
	w      io.Writer
	header int // bytes before the line
	closed chan struct{}
}

func newLines(w io.Writer) *lines { return &lines{w: w, closed: make(chan struct{})} }

func (l *lines) WritePacket(p []byte) error {
	_, err := l.w.Write(append(p[l.header:len(p):len(p)], '\n'))
	return err
}

func (l *lines) ReadPacket() ([]byte, error) { <-l.closed; return nil, io.EOF }
func (l *lines) Close() error                { close(l.closed); return nil }
