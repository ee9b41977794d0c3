// Netcompare replays what two guests have said through the packet comparison of
// COLO, and shows what would have left, and where and why the guests diverged.
//
//	netcompare [-strict] [-json] PRIMARY.pcap SECONDARY.pcap
//	netcompare [-strict] [-json] [-listen] [-vnet] tcp:HOST:PORT unix:PATH
//	netcompare [-strict] -vectors FILE
//	netcompare [-strict] -rewriter FILE
//
// The first form merges two captures by their time stamps. A divergence makes a
// checkpoint on the spot, as it would in a session. The second form compares two
// streams as they come, in the framing of QEMU's filters, the primary's first:
// the outdev of a filter-mirror or filter-redirector on each side. With -listen
// QEMU connects, with -vnet it says vnet_hdr_support=on. It ends with both
// streams, or when it is interrupted, with a summary. The other two run files of
// packets and expectations (see colo/compare/testdata/compare.json and
// colo/filter/testdata/rewriter.json), and exit with 1 if any case fails: with
// -strict the expectation is what QEMU 7.2 did, otherwise what is recommended,
// where there is a recommendation.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "netcompare:", err, "(-h explains)")
		os.Exit(2)
	case errors.Is(err, errFailed):
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, "netcompare:", err)
		os.Exit(1)
	}
}

const usage = `usage: netcompare [flags] PRIMARY SECONDARY
       netcompare -vectors FILE [-strict]
       netcompare -rewriter FILE [-strict]

Netcompare feeds what two guests sent to the comparison, prints what would have
left of the primary's, and where and why the two parted. PRIMARY and SECONDARY
are pcap files, or streams in QEMU's framing: tcp:HOST:PORT or unix:PATH. Exit
status: 0, 1 if something failed, 2 for a bad command line.

`

// errUsage is for a bad command line.
var errUsage = errors.New("bad command line")

// errFailed is for an exit status, after the output has said it all.
var errFailed = errors.New("failed")

// run is the command; progress is where people look on.
func run(ctx context.Context, args []string, out, progress io.Writer) error {
	flags := flag.NewFlagSet("netcompare", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // one line says what is wrong
	strict := flags.Bool("strict", false, "do what QEMU 7.2 does")
	asJSON := flags.Bool("json", false, "print one JSON object a line")
	vectors := flags.String("vectors", "", "run the cases of a `file` for the comparison")
	rewriter := flags.String("rewriter", "", "run the cases of a `file` for the rewriter")
	patient := flags.Bool("patient", false, "let agreeing data wait for the secondary's acknowledgment, and repeated data leave at once")
	wait := flags.Bool("listen", false, "wait for connections in the place of making them")
	vnet := flags.Bool("vnet", false, "streams have the length of a virtio-net header with each frame")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		flags.SetOutput(progress)
		fmt.Fprint(progress, usage)
		flags.PrintDefaults()
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	switch {
	case *vectors != "":
		return runCases(out, *vectors, *strict, compareCase)
	case *rewriter != "":
		return runCases(out, *rewriter, *strict, rewriterCase)
	case flags.NArg() != 2:
		return fmt.Errorf("%w: two captures or streams are needed", errUsage)
	}
	r := &replay{
		engine:   compare.NewEngine(compare.Config{Strict: *strict, PatientAcks: *patient, ReleaseRetransmits: *patient}),
		out:      out,
		progress: progress,
		json:     *asJSON,
		shown:    time.Now(),
	}
	if _, _, ok := splitStream(flags.Arg(0)); ok {
		conns, err := openStreams(ctx, *wait, flags.Args()...)
		if err != nil {
			return err
		}
		return r.live(ctx, conns, *vnet)
	}
	p, err := openCapture(flags.Arg(0))
	if err != nil {
		return err
	}
	defer p.Close()
	s, err := openCapture(flags.Arg(1))
	if err != nil {
		return err
	}
	defer s.Close()
	return r.run(p, s)
}

// A replay feeds an engine from two captures.
type replay struct {
	engine   *compare.Engine
	out      io.Writer
	progress io.Writer
	json     bool

	start, shown       time.Time
	primary, secondary int
	epoch              uint64
	left               int
}

func (r *replay) run(p, s *capture) error {
	pf, perr := p.next()
	sf, serr := s.next()
	for perr == nil || serr == nil {
		// Of equal times the primary's is the first.
		if serr != nil || perr == nil && !sf.at.Before(pf.at) {
			r.take(true, compare.Frame{Data: pf.data}, pf.at)
			pf, perr = p.next()
		} else {
			r.take(false, compare.Frame{Data: sf.data}, sf.at)
			sf, serr = s.next()
		}
		r.report(time.Now())
	}
	if perr != io.EOF {
		return fmt.Errorf("primary: %w", perr)
	}
	if serr != io.EOF {
		return fmt.Errorf("secondary: %w", serr)
	}
	return r.summary()
}

// take compares one packet.
func (r *replay) take(primary bool, f compare.Frame, at time.Time) {
	r.tick(at)
	if primary {
		r.primary++
		r.show(at, "primary", r.primary, r.engine.Primary(f, at))
	} else {
		r.secondary++
		r.show(at, "secondary", r.secondary, r.engine.Secondary(f, at))
	}
}

// report says now and then how far it has come.
func (r *replay) report(now time.Time) {
	if now.Sub(r.shown) > time.Second {
		r.shown = now
		fmt.Fprintf(r.progress, "%d packets of the primary, %d of the secondary, %d left, %d checkpoints\n", r.primary, r.secondary, r.left, r.epoch)
	}
}

func (r *replay) tick(now time.Time) {
	if r.start.IsZero() {
		r.start = now
	}
	if res := r.engine.Tick(now); res.Diverged {
		r.show(now, "timer", 0, res)
	}
}

// line is what is said of one packet.
type line struct {
	Time    float64 `json:"time"` // seconds since the first packet
	Side    string  `json:"side"`
	Packet  int     `json:"packet"` // counted from 1 in its capture
	Left    int     `json:"left"`   // packets of the primary's that leave now
	Diverge string  `json:"diverged,omitempty"`
	Flow    string  `json:"flow,omitempty"`
}

func (r *replay) show(at time.Time, side string, n int, res compare.Result) {
	r.left += len(res.Release)
	if len(res.Release) == 0 && !res.Diverged {
		return
	}
	l := line{Time: at.Sub(r.start).Seconds(), Side: side, Packet: n, Left: len(res.Release)}
	if res.Diverged {
		l.Diverge, l.Flow = res.Reason.String(), res.Flow.String()
	}
	r.print(l, func() {
		fmt.Fprintf(r.out, "%12.6f %-9s %6d", l.Time, l.Side, l.Packet)
		if l.Left > 0 {
			fmt.Fprintf(r.out, "  left %d", l.Left)
		}
		if l.Diverge != "" {
			fmt.Fprintf(r.out, "  diverged: %s, %s", l.Diverge, l.Flow)
		}
		fmt.Fprintln(r.out)
	})
	if res.Diverged {
		r.checkpoint(at)
	}
}

func (r *replay) checkpoint(at time.Time) {
	if err := r.engine.Mark(r.epoch); err != nil {
		return
	}
	res, err := r.engine.Received(r.epoch)
	if err == nil {
		err = r.engine.Loaded(r.epoch)
	}
	if err != nil {
		return
	}
	r.epoch++
	r.show(at, "checkpoint", int(r.epoch), res)
}

func (r *replay) print(v any, text func()) {
	if r.json {
		json.NewEncoder(r.out).Encode(v)
		return
	}
	text()
}

func (r *replay) summary() error {
	s := r.engine.Stats()
	sum := struct {
		Primary     int    `json:"primary"`
		Secondary   int    `json:"secondary"`
		Matched     uint64 `json:"matched"`
		Uncompared  uint64 `json:"uncompared"`
		Checkpoint  uint64 `json:"left_at_checkpoints"`
		Checkpoints uint64 `json:"checkpoints"`
		Waiting     int    `json:"waiting"`
	}{r.primary, r.secondary, s.Matched, s.Passed, s.Checkpoint, r.epoch, s.Held}
	r.print(map[string]any{"summary": sum}, func() {
		fmt.Fprintf(r.out, "%d packets of the primary, %d of the secondary: %d matched, %d uncompared, %d at %d checkpoints, %d wait\n",
			sum.Primary, sum.Secondary, sum.Matched, sum.Uncompared, sum.Checkpoint, sum.Checkpoints, sum.Waiting)
	})
	return nil
}
