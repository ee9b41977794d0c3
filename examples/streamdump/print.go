package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/gocolo/lockstep/internal/plain"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A line is one record as it is printed. Pointers are absent where nil.
type line struct {
	Offset   int64   `json:"offset"`
	Kind     string  `json:"kind"`
	ID       *uint32 `json:"id,omitempty"`
	Name     string  `json:"name,omitempty"`
	Instance *uint32 `json:"instance,omitempty"`
	Version  *uint32 `json:"version,omitempty"`
	Length   int64   `json:"length"`
	Footer   *bool   `json:"footer,omitempty"`
	Opaque   bool    `json:"opaque,omitempty"`  // a live section whose device is unknown
	Guessed  bool    `json:"guessed,omitempty"` // nothing but its looks tells its length
	Why      string  `json:"why,omitempty"`     // what does not fit its description
	Fields   any     `json:"fields,omitempty"`
	times    int     // so many sections in a row
}

// summary is the last line of the output.
type summary struct {
	Sections    int    `json:"sections"`
	Devices     int    `json:"devices"`
	Pages       int64  `json:"pages"`
	Bytes       int64  `json:"bytes"`
	Checkpoints int    `json:"checkpoints"`
	OK          bool   `json:"ok"`
	Error       string `json:"error,omitempty"`

	Blocks  []blockSummary `json:"blocks,omitempty"`
	Misfits []string       `json:"misfits,omitempty"` // devices that disagree with their description
	Notes   []string       `json:"notes,omitempty"`
}

// blockSummary says which pages of a RAM block the stream has.
type blockSummary struct {
	Name    string `json:"name"`
	Size    uint64 `json:"size"`
	Pages   int64  `json:"pages"`   // number of page records
	Missing int64  `json:"missing"` // pages that never came
}

// printer prints records as lines of a table or as JSON.
type printer struct {
	w      *bufio.Writer
	json   bool
	fields bool
	silent bool
	begun  bool
	parts  line // PART sections of a live device that are not printed yet
	nparts int
}

func (p *printer) line(l line) {
	if p.silent {
		return
	}
	if !p.fields {
		l.Fields = nil
	}
	if p.json {
		p.object(l)
		return
	}
	if p.gather(l) {
		return
	}
	p.row(l)
}

// gather keeps PART sections that follow one another: without their fields, they
// are one row.
func (p *printer) gather(l line) bool {
	if p.fields || l.Kind != "part" || l.ID == nil {
		p.flush()
		return false
	}
	if p.nparts > 0 && (*p.parts.ID != *l.ID || p.parts.Offset+p.parts.Length != l.Offset) {
		p.flush()
	}
	if p.nparts == 0 {
		p.parts = l
	} else {
		p.parts.Length += l.Length
	}
	p.nparts++
	return true
}

func (p *printer) flush() {
	if p.nparts > 0 {
		p.parts.times = p.nparts
		p.nparts = 0
		p.row(p.parts)
	}
}

func (p *printer) row(l line) {
	if !p.begun {
		fmt.Fprintf(p.w, "%12s  %-13s %5s  %-28s %4s %4s %12s  %s\n", "OFFSET", "KIND", "ID", "NAME", "INST", "VER", "LENGTH", "FOOTER")
		p.begun = true
	}
	footer := ""
	if l.Footer != nil {
		footer = map[bool]string{true: "yes", false: "none"}[*l.Footer]
	}
	if l.Opaque {
		footer += ", opaque"
	}
	if l.Guessed {
		footer += ", guessed"
	}
	if l.Why != "" {
		footer += ", does not fit its description"
	}
	if l.times > 1 {
		footer += fmt.Sprintf(", %d sections", l.times)
	}
	row := fmt.Sprintf("%12d  %-13s %5s  %-28s %4s %4s %12d  %s", l.Offset, l.Kind, number(l.ID), plain.Line(l.Name), number(l.Instance), number(l.Version), l.Length, footer)
	fmt.Fprintln(p.w, strings.TrimRight(row, " "))
	if l.Fields != nil {
		p.tree(l.Fields, 1)
	}
}

func number(v *uint32) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(*v)
}

func (p *printer) object(v any) {
	if text, err := json.Marshal(v); err == nil {
		p.w.Write(append(text, '\n'))
	}
}

// end prints the totals.
func (p *printer) end(s summary, mem *memory) error {
	names := mem.blocks()
	if p.json {
		for _, name := range names[:min(len(names), ram.MaxBlocks)] {
			b := blockSummary{Name: name, Size: mem.sizes[name]}
			if c := mem.total.Blocks[name]; c != nil {
				b.Pages = c.Pages
			}
			b.Missing, _ = mem.missing(name)
			s.Blocks = append(s.Blocks, b)
		}
		p.object(map[string]summary{"summary": s})
		return p.w.Flush()
	}
	p.flush()
	if len(names) > 0 {
		missing := false
		for _, name := range names {
			n, _ := mem.missing(name)
			missing = missing || n > 0
		}
		head := fmt.Sprintf("\n%-28s %14s %10s %10s %10s %14s", "RAM BLOCK", "SIZE", "PAGES", "ZERO", "XBZRLE", "BYTES")
		if missing {
			head += fmt.Sprintf(" %10s", "MISSING")
		}
		fmt.Fprintln(p.w, head)
		for _, name := range names {
			b := mem.total.Blocks[name]
			if b == nil {
				b = new(block)
			}
			row := fmt.Sprintf("%-28s %14d %10d %10d %10d %14d", plain.Line(name), mem.sizes[name], b.Pages, b.Zero, b.XBZRLE, b.Bytes)
			if missing {
				n, _ := mem.missing(name)
				row += fmt.Sprintf(" %10d", n)
			}
			fmt.Fprintln(p.w, row)
		}
	}
	state := "ok"
	if !s.OK {
		state = "bad"
	}
	fmt.Fprintf(p.w, "\n%s: %d sections, %d devices, %d pages, %d bytes", state, s.Sections, s.Devices, s.Pages, s.Bytes)
	if s.Checkpoints > 0 {
		fmt.Fprintf(p.w, ", %d checkpoints", s.Checkpoints)
	}
	fmt.Fprintln(p.w)
	return p.w.Flush()
}
