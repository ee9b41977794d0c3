// Package metrics writes the figures of a session as Prometheus reads them: in
// the text format, version 0.0.4. It needs no client library and runs no server: a
// host that wants to be watched sends what a [Set] writes from its own handler, as
// text/plain; version=0.0.4.
//
// Names begin with lockstep_, units are seconds and bytes, counters end in
// _total. A guest and a mode are labels, so that one host has one page for all
// its guests. What a protect.Job says of itself, its state and its generation, is
// added by AddJob of package colo/protect/watch.
package metrics

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kind is the type of a metric.
type Kind string

// The kinds.
const (
	Counter   Kind = "counter"
	Gauge     Kind = "gauge"
	Histogram Kind = "histogram"
)

// A Set is the metrics of one moment. The zero Set is empty. It belongs to one
// goroutine.
type Set struct {
	families map[string]*family
	err      error
}

// family has the samples of one name.
type family struct {
	kind    Kind
	help    string
	samples map[string][]byte // by labels: its lines
}

// Label is a name and a value that tell one sample from the others.
type Label struct{ Name, Value string }

// Add adds a sample of a counter or a gauge. Samples of one name have one kind
// and one help, and differ in labels; otherwise WriteTo returns an error.
func (s *Set) Add(kind Kind, name, help string, value float64, labels ...Label) {
	if kind == Histogram {
		s.fail("%s: a histogram is added with AddHistogram", name)
		return
	}
	text, ok := s.labels(name, labels)
	if ok {
		s.put(kind, name, help, text, fmt.Appendf(nil, "%s%s %s\n", name, text, number(value)))
	}
}

// AddHistogram adds a sample of a histogram of durations, in seconds. The name
// ends in _seconds.
func (s *Set) AddHistogram(name, help string, d *Durations, labels ...Label) {
	text, ok := s.labels(name, labels)
	if !ok {
		return
	}
	var b bytes.Buffer
	sum := uint64(0)
	for i, n := range d.counts {
		le := "+Inf"
		if i < len(bounds) {
			le = number(bounds[i].Seconds())
		}
		sum += n
		with, _ := s.labels(name, append(slices.Clip(labels), Label{"le", le}))
		fmt.Fprintf(&b, "%s_bucket%s %d\n", name, with, sum)
	}
	fmt.Fprintf(&b, "%s_sum%s %s\n%s_count%s %d\n", name, text, number(d.total.Seconds()), name, text, sum)
	s.put(Histogram, name, help, text, b.Bytes())
}

func (s *Set) put(kind Kind, name, help, labels string, lines []byte) {
	f := s.families[name]
	if f == nil {
		f = &family{kind, help, make(map[string][]byte)}
		if s.families == nil {
			s.families = make(map[string]*family)
		}
		s.families[name] = f
	}
	switch {
	case !word(name):
		s.fail("%q is no name", name)
	case help == "" || f.help != help || f.kind != kind:
		s.fail("%s is a %s (%s), and a %s (%s)", name, f.kind, f.help, kind, help)
	case f.samples[labels] != nil:
		s.fail("%s%s is there twice", name, labels)
	}
	f.samples[labels] = lines
}

func (s *Set) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("metrics: "+format, args...)
	}
}

var (
	escapeLabel = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
	escapeHelp  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
)

// labels returns the text of labels, without those that have no value.
func (s *Set) labels(name string, labels []Label) (text string, ok bool) {
	var b strings.Builder
	for _, l := range labels {
		if !word(l.Name) || strings.Contains(l.Name, ":") {
			s.fail("%s: %q is no name of a label", name, l.Name)
			return "", false
		}
		if l.Value == "" {
			continue
		}
		b.WriteString(map[bool]string{true: "{", false: ","}[b.Len() == 0])
		b.WriteString(l.Name + `="` + escapeLabel.Replace(strings.ToValidUTF8(l.Value, "\uFFFD")) + `"`)
	}
	if b.Len() > 0 {
		b.WriteString("}")
	}
	return b.String(), true
}

// word reports whether a text can be the name of a metric.
func word(s string) bool {
	for i, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '_' && c != ':' && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

func number(f float64) string {
	switch {
	case math.IsInf(f, 1):
		return "+Inf"
	case math.IsInf(f, -1):
		return "-Inf"
	}
	return strconv.FormatFloat(f, 'g', -1, 64)
}

// WriteTo writes all samples, sorted by name and labels. If a call of Add was wrong it
// writes nothing and returns the first such error.
func (s *Set) WriteTo(w io.Writer) (int64, error) {
	if s.err != nil {
		return 0, s.err
	}
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(s.families)) {
		f := s.families[name]
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, escapeHelp.Replace(f.help), name, f.kind)
		for _, labels := range slices.SortedFunc(maps.Keys(f.samples), cmp.Compare[string]) {
			b.Write(f.samples[labels])
		}
	}
	return b.WriteTo(w)
}

// bounds has the upper bounds of the buckets of Durations: from 10 µs to 10 s, three in a
// decade.
var bounds = func() (all []time.Duration) {
	for d := 10 * time.Microsecond; d <= time.Second; d *= 10 {
		all = append(all, d, 2*d, 5*d)
	}
	return append(all, 10*time.Second)
}()

// Durations counts durations in buckets. The zero Durations is empty. It belongs
// to one goroutine.
type Durations struct {
	counts [19 + 1]uint64
	total  time.Duration
}

// Observe counts one duration. It allocates nothing.
func (d *Durations) Observe(t time.Duration) {
	i, _ := slices.BinarySearch(bounds, t)
	d.counts[i]++
	d.total += t
}
