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
// writes a disk, and the survivor's must be what its memory says. See -h.
//
// To read it: options.go is the command line, run.go the plot of a run as the
// parent sees it, side.go what the primary and the secondary do, machine.go the
// guest, network.go and disk.go its network and disk, client.go and client_input.go who
// it talks to, oracle.go, oracle_input.go and oracle_disk.go the judgement.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/gocolo/lockstep/examples/internal/interrupt"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == sideArgument {
		signal.Ignore(os.Interrupt, syscall.SIGHUP) // the parent decides
		if err := sideMain(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, status := interrupt.Notify()
	os.Exit(status(lockstep(ctx, os.Args[1:], os.Stdout, os.Stderr, isTerminal(os.Stdout))))
}

// lockstep is the program; it returns its exit status.
func lockstep(ctx context.Context, args []string, stdout, stderr io.Writer, terminal bool) int {
	o, err := parseOptions(args, stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "lockstep: %s (-h explains)\n", strings.TrimSpace(err.Error()))
		return 2
	}
	backend, why, err := chooseBackend(o.backend)
	if err != nil {
		fmt.Fprintln(stderr, "lockstep:", err)
		return 1
	}
	p := &printer{w: stdout, terminal: terminal && !o.json, json: o.json, quiet: o.repeat > 1}
	p.start(o, backend, why)

	var done []*result
	ok := true
	for n := 1; n <= o.repeat && ctx.Err() == nil; n++ {
		seed := o.seed + uint64(n-1)
		o := o
		if o.killAt == atEach {
			o.killAt = steps[o.kill][(n-1)%len(steps[o.kill])]
		}
		r := newRun(o, backend, seed, p)
		err := r.do(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			fmt.Fprintf(stderr, "lockstep: run %d: %v\n", n, err)
		} else {
			p.verdict(n, r)
			done = append(done, &r.result)
		}
		if err != nil || !r.clean() {
			ok = false
			fmt.Fprintf(stderr, "lockstep: to try this again: go run ./examples/lockstep %s\n", o.again(backend, int(r.target), seed))
		}
	}
	if ctx.Err() != nil {
		fmt.Fprintln(stderr, "lockstep: interrupted")
		ok = false
	}
	s := newSummary(o, backend, done, o.repeat)
	if !o.json && len(done) > 0 {
		s.table(stdout)
	}
	if o.timeline != "" && len(done) > 0 {
		if err := writeTimeline(o.timeline, o, backend, done[0]); err != nil {
			fmt.Fprintln(stderr, "lockstep: -timeline:", err)
			ok = false
		} else {
			p.say("\ntimeline in %s", o.timeline)
		}
	}
	p.object(map[string]summary{"summary": s})
	if !ok {
		return 1
	}
	return 0
}
