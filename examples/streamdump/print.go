package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/gocolo/lockstep/vmstate"
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
	Opaque   bool    `json:"opaque,omitempty"` // a live section whose device is unknown
	Fields   any     `json:"fields,omitempty"`
}

type summary struct {
	Sections    int    `json:"sections"`
	Devices     int    `json:"devices"`
	Pages       int64  `json:"pages"`
	Bytes       int64  `json:"bytes"`
	Checkpoints int    `json:"checkpoints"`
	OK          bool   `json:"ok"`
	Error       string `json:"error,omitempty"`
}

type printer struct {
	w      *bufio.Writer
	json   bool
	fields bool
	begun  bool
}

func (p *printer) line(l line) {
	if !p.fields {
		l.Fields = nil
	}
	if p.json {
		p.object(l)
		return
	}
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
	row := fmt.Sprintf("%12d  %-13s %5s  %-28s %4s %4s %12d  %s", l.Offset, l.Kind, number(l.ID), printable(l.Name), number(l.Instance), number(l.Version), l.Length, footer)
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

// printable keeps what a peer has named from moving the cursor.
func printable(s string) string {
	q := fmt.Sprintf("%q", s)
	return q[1 : len(q)-1]
}

// tree prints fields for people, one per line.
func (p *printer) tree(v any, depth int) {
	indent := strings.Repeat("  ", depth+7)
	show := func(name, typ string, v any) {
		switch v := v.(type) {
		case vmstate.Struct:
			fmt.Fprintf(p.w, "%s%s: %s\n", indent, printable(name), printable(v.VMSD))
			p.tree(v, depth+1)
		case []any:
			if len(v) > 0 {
				if _, ok := v[0].(vmstate.Struct); ok {
					for i := range v {
						fmt.Fprintf(p.w, "%s%s[%d]:\n", indent, printable(name), i)
						p.tree(v[i], depth+1)
					}
					return
				}
			}
			fmt.Fprintf(p.w, "%s%s = %v  (%s)\n", indent, printable(name), v, printable(typ))
		case []byte:
			more := ""
			if len(v) > 32 {
				more = fmt.Sprintf("… (%d bytes)", len(v))
			}
			fmt.Fprintf(p.w, "%s%s = %x%s  (%s)\n", indent, printable(name), v[:min(len(v), 32)], more, printable(typ))
		default:
			fmt.Fprintf(p.w, "%s%s = %v  (%s)\n", indent, printable(name), v, printable(typ))
		}
	}
	if s, ok := v.(vmstate.Struct); ok {
		for _, f := range s.Fields {
			show(f.Name, f.Type, f.Value)
		}
		for _, sub := range s.Subsections {
			fmt.Fprintf(p.w, "%ssubsection %s:\n", indent, printable(sub.VMSD))
			p.tree(sub, depth+1)
		}
		return
	}
	text, err := json.Marshal(v)
	if err == nil {
		fmt.Fprintf(p.w, "%s%s\n", indent, text)
	}
}

func (p *printer) object(v any) {
	if text, err := json.Marshal(v); err == nil {
		p.w.Write(append(text, '\n'))
	}
}

// end prints the totals.
func (p *printer) end(s summary, ram *memory) error {
	if p.json {
		p.object(map[string]summary{"summary": s})
		return p.w.Flush()
	}
	names := make([]string, 0, len(ram.total.Blocks))
	for name := range ram.total.Blocks {
		names = append(names, name)
	}
	slices.Sort(names)
	if len(names) > 0 {
		fmt.Fprintf(p.w, "\n%-28s %14s %10s %10s %10s %14s\n", "RAM BLOCK", "SIZE", "PAGES", "ZERO", "XBZRLE", "BYTES")
		for _, name := range names {
			b := ram.total.Blocks[name]
			fmt.Fprintf(p.w, "%-28s %14d %10d %10d %10d %14d\n", printable(name), ram.sizes[name], b.Pages, b.Zero, b.XBZRLE, b.Bytes)
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
