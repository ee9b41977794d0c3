// Netcompare replays what two guests have said through the packet comparison of
// COLO, and shows what would have left, and where and why the guests diverged.
//
//	netcompare [flags] PRIMARY SECONDARY
//	netcompare [flags] [-listen] [-vnet] tcp:HOST:PORT unix:PATH
//	netcompare [-strict] -vectors FILE
//	netcompare [-strict] -rewriter FILE
//
// The first form merges two captures by their times: pcap or pcapng, compressed by
// gzip or not, of Ethernet, SLL, SLL2, PPP, a loopback or bare IP; - is the standard
// input. A capture may have the packets of both directions: -guest names the guest by
// its MAC or IP addresses, and -vlan the network. The two guests, and those who talked
// to them, had initial sequence numbers, timestamps and clocks of their own: each
// connection that begins in both captures gets the primary's, and the secondary's
// clock is set by the connections, or by -offset. So does each flow get the hardware
// addresses, and the session of PPP over Ethernet, that the primary's begins with; a VLAN
// or a session that only one capture has is taken off. Of packets that were cut, what was
// captured is compared; a file that ends in a packet is read up to there. What is in no
// packet of a capture, since whoever captured has dropped it, is told of. A divergence
// shows its offset in the stream and both sides' bytes, and makes a checkpoint on the
// spot, as it would in a session; but the guests that were captured had none, and may
// differ from there on.
//
// The second form compares two streams as they come, in the framing of QEMU's
// filters, the primary's first: the outdev of a filter-mirror or filter-redirector
// on each side. With -listen QEMU connects, with -vnet it says vnet_hdr_support=on.
// It ends with both streams, or when it is interrupted, with a summary. The other two
// run files of packets and expectations (see colo/compare/testdata/compare.json and
// colo/filter/testdata/rewriter.json): with -strict the expectation is what QEMU 7.2
// did, otherwise what is recommended, where there is a recommendation.
//
// The exit status is 0, 1 if the guests diverged or a case failed, 2 for a bad
// command line or a capture that cannot be read, and 128 and the number of the signal
// that kept it from reading captures to their ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/cli"
)

func main() {
	ctx, status := cli.Notify()
	out := cli.NewOutput(os.Stdout)
	own := statusOf(run(ctx, os.Args[1:], out, os.Stderr), status(1))
	os.Exit(out.Status(own, "netcompare", os.Stderr))
}

// statusOf prints an error that has not been printed, and returns the exit status.
func statusOf(err error, interrupted int) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, context.Canceled):
		return interrupted
	case errors.Is(err, errDiverged), errors.Is(err, errFailed):
		return 1
	case errors.Is(err, cli.ErrWrong):
		return cli.Tell(os.Stderr, "netcompare", err)
	}
	fmt.Fprintln(os.Stderr, "netcompare:", err)
	return 2
}

const about = `usage: netcompare [flags] PRIMARY SECONDARY
       netcompare -vectors FILE [-strict]
       netcompare -rewriter FILE [-strict]

Netcompare feeds what two guests sent to the comparison, prints what would have
left of the primary's, and where and why the two parted. PRIMARY and SECONDARY
are captures (pcap, pcapng, gzip; - is the standard input), or streams in QEMU's
framing: tcp:HOST:PORT or unix:PATH. Exit status: 0, 1 if the guests diverged or a case failed, 2 for a bad
command line or what cannot be read.

`

// These are for an exit status, after the output has said it all.
var (
	errFailed   = errors.New("failed")
	errDiverged = errors.New("the guests diverged")
)

// run is the command; it writes its progress to progress, a terminal.
func run(ctx context.Context, args []string, out, progress io.Writer) error {
	flags := flag.NewFlagSet("netcompare", flag.ContinueOnError)
	strict := flags.Bool("strict", false, "do what QEMU 7.2 does")
	asJSON := flags.Bool("json", false, "print one JSON object a line")
	vectors := flags.String("vectors", "", "run the cases of a `file` for the comparison")
	rewriter := flags.String("rewriter", "", "run the cases of a `file` for the rewriter")
	patient := flags.Bool("patient", true, "let agreeing data wait for the secondary's acknowledgment, and repeated data leave at once")
	sel := selection{vlan: -1}
	flags.Func("guest", "look only at what `addresses` send, MAC or IP, with commas between them", sel.guest)
	flags.Func("vlan", "look only at the VLAN of this `ID`, 0 for untagged frames", sel.only)
	var shift *time.Duration
	flags.Func("offset", "add a `duration` to the secondary's times (default: what the captures say themselves)", func(v string) error {
		d, err := time.ParseDuration(v)
		shift = &d
		return err
	})
	wait := flags.Bool("listen", false, "wait for connections in the place of making them")
	vnet := flags.Bool("vnet", false, "streams have the length of a virtio-net header with each frame")
	if err := cli.Parse(flags, about, args, out); err != nil {
		return err
	}
	switch {
	case *vectors != "":
		return runCases(out, *vectors, *strict, compareCase)
	case *rewriter != "":
		return runCases(out, *rewriter, *strict, rewriterCase)
	case flags.NArg() != 2:
		return cli.Wrong("two captures or streams are needed, behind the flags")
	}
	_, _, streams := splitStream(flags.Arg(0))
	if err := suits(flags, streams); err != nil {
		return err
	}
	r := &replay{
		engine: compare.NewEngine(compare.Config{
			Strict: *strict, PatientAcks: *patient, ReleaseRetransmits: *patient, CompareVLAN: true, CompareARP: true,
		}),
		out:      out,
		progress: progress,
		json:     *asJSON,
		shown:    time.Now(),
	}
	if streams {
		conns, err := openStreams(ctx, *wait, flags.Args()...)
		if err != nil {
			return err
		}
		return r.live(ctx, conns, *vnet)
	}
	p, s := &track{sel: sel}, &track{sel: sel}
	for i, t := range []*track{p, s} {
		var err error
		if t.rec, err = newRecording(ctx, flags.Arg(i)); err != nil {
			return err
		}
	}
	return r.captures(ctx, p, s, shift)
}

// suits returns an error if a flag was given that says nothing of what is compared: captures,
// or streams.
func suits(flags *flag.FlagSet, streams bool) (err error) {
	flags.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "listen", "vnet":
			if !streams {
				err = cli.Wrong("-%s is for streams, and not for captures", f.Name)
			}
		case "guest", "vlan", "offset":
			if streams {
				err = cli.Wrong("-%s is for captures, and not for streams", f.Name)
			}
		}
	})
	return err
}
