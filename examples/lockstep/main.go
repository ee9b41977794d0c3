// Lockstep protects a guest and kills its primary.
//
// It starts two processes of itself, a primary and a secondary, which run the
// same guest over TCP on loopback, and is itself the client that takes what the
// guest emits and tells it something, too. What the client says goes to both
// guests; what they both say leaves at once, and the rest when a checkpoint covers
// it. After some checkpoints the program kills one side with SIGKILL, sees the
// other go on, and checks every frame that ever left: that it follows from the
// guest's history, and that the survivor remembers it; and that it remembers what
// the guest has said to have been told. With -disk the guest also
// writes a disk, and the survivor's must be what its memory says. With -failovers or
// -switchover the two take the guest from each other again and again: the one that was
// killed comes back as a new process and protects the other. With -http each side has a page
// on which to watch it, and with -qmp a monitor. See -h.
//
// Each process is a host that has package protect: host.go is its life. guest.go and standing_guest.go
// are the guest as its job has it, network.go and disk.go its network and its disk, and monitor.go
// what it is steered and watched by. Both have the guest of machine.go, on KVM or in Go. options.go
// is the command line.
//
// What looks at the sides from the outside, and is no part of any host, is a test rig of its
// own: package internal/trial runs them, talks to the guest and kills,
// internal/killpoint stops a side at a place of a checkpoint, and internal/oracle
// judges.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/killpoint"
	"github.com/gocolo/lockstep/internal/trial"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == trial.SideArgument {
		signal.Ignore(os.Interrupt, syscall.SIGHUP) // the parent decides
		if err := sideMain(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, status := cli.Notify()
	cli.OutliveReader()
	out := cli.NewOutput(os.Stdout)
	own := lockstep(ctx, os.Args[1:], out, os.Stderr, cli.IsTerminal(os.Stdout))
	os.Exit(out.Status(status(own), "lockstep", os.Stderr))
}

// lockstep is the program; it returns its exit status.
func lockstep(ctx context.Context, args []string, stdout, stderr io.Writer, terminal bool) int {
	o, err := parseOptions(args, stdout)
	if err != nil {
		return cli.Tell(stderr, "lockstep", err)
	}
	backend, why, err := chooseBackend(o.backend)
	if err != nil {
		fmt.Fprintln(stderr, "lockstep:", err)
		return 1
	}
	if err := checkAddresses(&o.Config); err != nil {
		fmt.Fprintln(stderr, "lockstep:", err)
		return 1
	}
	var picture *os.File // where the timeline is drawn, opened before there is anything to lose; nil: nowhere
	if o.timeline != "" {
		if picture, err = os.Create(o.timeline); err != nil {
			fmt.Fprintln(stderr, "lockstep: -timeline:", err)
			return 1
		}
		defer picture.Close()
	}
	p := &trial.Printer{W: stdout, Terminal: terminal && !o.json, JSON: o.json, Quiet: o.Repeat > 1}
	p.Start(o.Config, backend, why)

	var done []*trial.Result
	ok := true
	for n := 1; n <= o.Repeat && ctx.Err() == nil; n++ {
		seed := o.Seed + uint64(n-1)
		o := o
		if o.KillAt == killpoint.AtEach {
			o.KillAt = killpoint.Steps[o.Kill][(n-1)%len(killpoint.Steps[o.Kill])]
		}
		r := newTrial(o, backend, seed, p)
		err := r.Do(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			fmt.Fprintf(stderr, "lockstep: run %d: %v\n", n, err)
		} else {
			p.Verdict(n, r.Results())
			done = append(done, r.Results())
		}
		if err != nil || !r.Results().Clean() {
			ok = false
			fmt.Fprintf(stderr, "lockstep: to try this again: go run ./examples/lockstep %s\n", o.again(backend, r.Results().Checkpoints(), seed))
		}
	}
	if ctx.Err() != nil {
		fmt.Fprintln(stderr, "lockstep: interrupted")
		ok = false
	}
	s := trial.Summarise(o.Config, backend, done, o.Repeat)
	if !o.json && len(done) > 0 {
		s.Table(stdout)
	}
	if picture != nil && len(done) > 0 {
		if err := errors.Join(trial.DrawTimeline(picture, o.Config, backend, done[0]), picture.Close()); err != nil {
			fmt.Fprintln(stderr, "lockstep: -timeline:", err)
			ok = false
		} else {
			p.Say("\ntimeline in %s", o.timeline)
		}
	}
	p.Object(map[string]trial.Summary{"summary": s})
	if !ok {
		return 1
	}
	return 0
}

// A runner is one run of a guest.
type runner interface {
	Do(context.Context) error
	Results() *trial.Result
}

// newTrial makes a run: one of whose hosts is lost, or in which they take the guest from each
// other.
func newTrial(o options, backend string, seed uint64, p *trial.Printer) runner {
	if o.Failovers+o.Switchovers > 0 {
		return trial.NewSeries(o.Config, backend, seed, p)
	}
	return trial.New(o.Config, backend, seed, p)
}
