// Streamdump shows what is in a QEMU migration stream, without knowing its
// devices: a table for people, or one JSON object per record. See -h.
//
// To read it: input.go takes away what a stream may be wrapped in; dump.go reads it
// from end to end, and record.go turns its records into lines; connection.go is for
// what else goes over a connection: COLO's checkpoints, and the return path. ram.go
// counts and extracts the guest's memory, with channel.go for multifd and pages_seen.go
// for what is missing; diff.go compares two streams; verify.go compares what is
// written again with what was read; print.go is how it looks, tree.go how values
// do; progress.go is for those who wait.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/plain"
)

func main() {
	// What a stream may make the program keep is bounded; let the collector
	// not double it.
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(140 << 20)
	}
	out := cli.NewOutput(os.Stdout)
	os.Exit(out.Status(streamdump(os.Args[1:], os.Stdin, out, os.Stderr), "streamdump", os.Stderr))
}

// options has the command line.
type options struct {
	json, colo, fields, verify bool
	returnPath                 bool
	diff                       bool
	against                    string
	extract                    string
	describe                   string
	channels                   []string
	pageSize                   int
	show                       string // what -d names
	file, other                string
}

const about = `usage: streamdump [flags] FILE|-
       streamdump -diff [-json] A B
       streamdump -against B [-json] A

Streamdump reads a QEMU migration stream and prints its records: a table with
totals per RAM block, or JSON lines. It needs no description of the machine but
the one at the end of the stream. Exit status: 0, 1 for a stream that is bad, not
complete or does not verify (what was decoded before is printed), 2 for a bad
command line.

A stream is what QEMU's "migrate exec:cat>FILE" or "migrate file:FILE" writes,
with mapped-ram too. gzip and bzip2 around it are unpacked, and libvirt's header
before it is shown. With -colo, FILE has all bytes from a COLO primary to its
secondary: the initial migration and then every checkpoint.

A device that disagrees with its description costs that device: it is marked, the
reason is said, and the status stays 0, since QEMU does not read descriptions. What
nothing describes is shown as bytes: devices of a stream without a description
(postcopy has none; -describe takes another stream's), devices that have changed
their shape since, and the keys of trees. "guessed" is a device whose length only
its looks tell: there is neither a footer nor a description. Of live sections only
memory is known; others pass by up to what looks like their end, and are marked
opaque.

Pages that never came are counted, and the status is 1: with multifd, and with
postcopy-preempt, they are in the channels (-channel, once for each file). What a
balloon or virtio-mem may have left out is only a note.

With -diff, what a destination would hold after loading A is compared with B, and
what would keep B from loading A is said in words; 0 is equal, 1 different.
-against is the same for a stream of a destination's own, fresh from its start: of
its devices the shape counts, and not the values, nor its memory's contents.

`

// repeated is a flag that may be given more than once.
type repeated []string

func (r *repeated) String() string     { return strings.Join(*r, " ") }
func (r *repeated) Set(s string) error { *r = append(*r, s); return nil }

func parseOptions(args []string, out io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("streamdump", flag.ContinueOnError)
	f.BoolVar(&o.json, "json", false, "print one JSON object per record, and a summary at the end")
	f.BoolVar(&o.colo, "colo", false, "go on with the checkpoints of a COLO connection")
	f.BoolVar(&o.fields, "fields", false, "print the fields of devices and commands too")
	f.BoolVar(&o.verify, "verify", false, "write again what was decoded and compare byte for byte")
	f.BoolVar(&o.returnPath, "return-path", false, "FILE is the other direction: the answers of a destination")
	f.StringVar(&o.extract, "extract-ram", "", "write each RAM block's final contents to a file in `DIR`")
	f.Var((*repeated)(&o.channels), "channel", "the bytes of a connection of multifd or postcopy-preempt are in `FILE` (repeat it for each)")
	f.IntVar(&o.pageSize, "page-size", 0, "the target's pages have `N` bytes (default: as the stream tells)")
	f.StringVar(&o.describe, "describe", "", "describe devices that nothing describes as `OTHER` does, a stream or a description")
	f.BoolVar(&o.diff, "diff", false, "compare two streams, A and B")
	f.StringVar(&o.against, "against", "", "would the destination that has written the stream `B` load FILE?")
	f.StringVar(&o.show, "d", "", "print only one thing: `desc`, the description as JSON, or xml, that of a libvirt image")
	if err := cli.Parse(f, about, args, out); err != nil {
		return o, err
	}
	switch {
	case o.diff && f.NArg() != 2:
		return o, errors.New("-diff wants two files, A and B")
	case !o.diff && f.NArg() != 1:
		return o, errors.New("want one FILE, or - for standard input")
	case o.returnPath && (o.colo || o.extract != "" || len(o.channels) > 0):
		return o, errors.New("-return-path has neither checkpoints nor memory")
	case o.diff && o.against != "":
		return o, errors.New("-diff and -against are two ways to ask; want one")
	case (o.diff || o.against != "") && (o.colo || o.verify || o.returnPath || o.extract != "" || o.show != ""):
		return o, errors.New("-diff and -against go with -json, -fields, -page-size and -describe only")
	case o.pageSize != 0 && !validPageSize(int64(o.pageSize)):
		return o, fmt.Errorf("pages of %d bytes: want a power of two from 256 to 65536", o.pageSize)
	case o.show != "" && o.show != "desc" && o.show != "xml":
		return o, fmt.Errorf("-d %s: want desc or xml", o.show)
	}
	o.file, o.other = f.Arg(0), f.Arg(1)
	if o.against != "" {
		o.other = o.against
	}
	return o, nil
}

// streamdump is the program; it returns its exit status.
func streamdump(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	o, err := parseOptions(args, stdout)
	if err != nil {
		return cli.Tell(stderr, "streamdump", err)
	}
	if o.diff || o.against != "" {
		return compare(o, stdin, stdout, stderr)
	}
	in, closer, err := source(o.file, stdin)
	if err == nil {
		defer closer.Close()
		err = dump(o, in, stdout, stderr)
	}
	if err != nil {
		fail(stderr, err)
		return 1
	}
	return 0
}

// source opens a file, or returns standard input for "-".
func source(name string, stdin io.Reader) (io.Reader, io.Closer, error) {
	if name == "-" {
		return stdin, io.NopCloser(nil), nil
	}
	f, err := openFile(name)
	if err != nil {
		return nil, nil, err
	}
	return f, f, nil
}

// openFile opens a file that can be read; a directory can be opened and not read.
func openFile(name string) (*os.File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err == nil && st.IsDir() {
		f.Close()
		return nil, fmt.Errorf("%s is a directory", name)
	}
	return f, nil
}

// fail prints an error on one line, without control characters: a peer has chosen names in it.
func fail(stderr io.Writer, err error) {
	fmt.Fprintln(stderr, "streamdump:", plain.Line(err.Error()))
}
