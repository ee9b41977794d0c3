package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/gocolo/lockstep/internal/plain"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/diff"
)

// compare prints what differs between two streams, and what would keep the second's
// machine from loading the first.
func compare(o options, stdin io.Reader, stdout, stderr io.Writer) int {
	var devices *vmstate.VMDesc
	if o.describe != "" {
		var err error
		if devices, err = describedBy(o.describe); err != nil {
			fail(stderr, err)
			return 1
		}
	}
	var sides [2]*diff.State
	for i, name := range []string{o.file, o.other} {
		s, err := readState(o, name, devices, stdin)
		if err != nil {
			fail(stderr, fmt.Errorf("%s: %w", name, err))
			return 1
		}
		sides[i] = s
		for _, why := range s.Partial {
			fmt.Fprintf(stderr, "streamdump: note: %s: %s\n", name, plain.Line(why))
		}
		if n, all := s.Missing(); n > 0 && o.diff && len(s.Partial) == 0 {
			fmt.Fprintf(stderr, "streamdump: note: %s: %d of %d pages did not come, and are compared as zeros\n", name, n, all)
		}
	}
	c := comparison{Findings: diff.Load(sides[0], sides[1])}
	if o.diff {
		c.Differences = diff.Compare(sides[0], sides[1])
		c.Equal = len(c.Differences) == 0
	} else {
		c.Differences = diff.CompareShape(sides[0], sides[1])
		c.Equal = true
	}
	c.Loads = "yes"
	for _, f := range c.Findings {
		if f.Certainty == diff.Refusal {
			c.Loads = "no"
			break
		}
		c.Loads = "perhaps"
	}
	if err := c.print(o, stdout); err != nil {
		fail(stderr, err)
		return 1
	}
	if !c.Equal || o.against != "" && c.Loads == "no" {
		return 1
	}
	return 0
}

// readState reads one stream.
func readState(o options, name string, devices *vmstate.VMDesc, stdin io.Reader) (*diff.State, error) {
	s, err := readOnce(o, name, devices, stdin, nil)
	if !errors.Is(err, diff.ErrDelta) || name == "-" {
		return s, err
	}
	// Differences of pages need the pages.
	f, remove, err := scratchFile()
	if err != nil {
		return nil, err
	}
	defer remove()
	return readOnce(o, name, devices, stdin, f)
}

// scratchFile makes a file for the pages of a guest. Where an open file can be without a name it has
// none, so that a signal, or SIGKILL, leaves nothing behind. remove closes it.
func scratchFile() (f *os.File, remove func(), err error) {
	if f, err = os.CreateTemp("", "streamdump"); err != nil {
		return nil, nil, err
	}
	named := os.Remove(f.Name()) != nil
	return f, func() {
		f.Close()
		if named {
			os.Remove(f.Name())
		}
	}, nil
}

func readOnce(o options, name string, devices *vmstate.VMDesc, stdin io.Reader, scratch diff.Scratch) (*diff.State, error) {
	in, closer, err := source(name, stdin)
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	x, err := open(in)
	if err != nil {
		return nil, err
	}
	cfg := diff.Config{PageSize: o.pageSize, Devices: devices, MaxState: maxState, Scratch: scratch, Shape: o.against != ""}
	if cfg.PageSize == 0 {
		cfg.PageSize = int(x.pageSize)
	}
	r := qemufile.NewReader(x.r)
	image, err := readLibvirt(r)
	if err == nil && image != nil && image.compressed {
		var in io.Reader
		if in, err = image.open(r); err == nil {
			r = qemufile.NewReader(in)
		}
	}
	if err != nil {
		return nil, inWords(err, r)
	}
	s, err := diff.Read(r, cfg)
	err = inWords(err, r)
	for err == nil { // to the end of what is packed, where its checksum is
		if _, ok := r.PeekByte(); !ok {
			return s, r.Failure()
		}
		r.Skip(uint64(r.Buffered()))
	}
	return s, err
}

// comparison is the result of -diff and -against, for -json.
type comparison struct {
	Equal       bool              `json:"equal"`
	Loads       string            `json:"loads"` // yes, no, perhaps: whether B would load A
	Findings    []diff.Finding    `json:"findings"`
	Differences []diff.Difference `json:"differences"`
}

// maxRows is how many values of one device are printed without -fields.
const maxRows = 10

func (c *comparison) print(o options, stdout io.Writer) error {
	w := bufio.NewWriter(stdout)
	if o.json {
		if c.Findings == nil {
			c.Findings = []diff.Finding{}
		}
		if c.Differences == nil {
			c.Differences = []diff.Difference{}
		}
		text, err := json.Marshal(c)
		if err != nil {
			return err
		}
		w.Write(append(text, '\n'))
		return w.Flush()
	}
	last, rows, left := "", 0, 0
	more := func() {
		if left > 0 {
			fmt.Fprintf(w, "  … and %d more of %s (-fields shows all)\n", left, plain.Line(last))
		}
		rows, left = 0, 0
	}
	for _, d := range c.Differences {
		if d.Where != last {
			more()
			last = d.Where
		}
		if rows++; rows > maxRows && !o.fields && d.Kind == diff.Value {
			left++
			continue
		}
		fmt.Fprintln(w, d)
	}
	more()
	if o.diff {
		if c.Equal {
			fmt.Fprintln(w, "equal: a destination would hold the same after loading either")
		} else {
			fmt.Fprintf(w, "\n%d differences\n", len(c.Differences))
		}
	}
	answer := map[string]string{"yes": "would load", "no": "would not load", "perhaps": "might not load"}[c.Loads]
	fmt.Fprintf(w, "%s %s %s", plain.Line(o.other), answer, plain.Line(o.file))
	if len(c.Findings) > 0 {
		fmt.Fprint(w, ":")
	}
	fmt.Fprintln(w)
	for _, f := range c.Findings {
		fmt.Fprintf(w, "  %s\n", f)
	}
	return w.Flush()
}
