package main

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"strings"
	"unicode/utf8"

	"github.com/gocolo/lockstep/internal/plain"
	"github.com/gocolo/lockstep/vmstate"
)

// columns is how wide a line of fields is at most, if its indentation leaves so much.
const columns = 120

// wrapped prints a text behind an indentation, in as many lines as it takes. Each is cut at a space, or behind a comma, where it has
// one in its second half; those after the first stand further in.
func (p *printer) wrapped(indent, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	for in := indent; ; in = indent + "    " {
		room := max(columns-len(in), columns/3)
		cut, at, n := 0, 0, 0 // where it may be cut, and the end of what there is room for, in bytes
		for at < len(text) && n < room {
			r, size := utf8.DecodeRuneInString(text[at:])
			if r == ' ' && n > room/2 {
				cut = at
			}
			if at, n = at+size, n+1; r == ',' && n > room/2 {
				cut = at
			}
		}
		if at == len(text) {
			fmt.Fprintf(p.w, "%s%s\n", in, text)
			return
		}
		if cut > 0 {
			at = cut
		}
		fmt.Fprintf(p.w, "%s%s\n", in, text[:at])
		if text = strings.TrimPrefix(text[at:], " "); text == "" {
			return
		}
	}
}

// tree prints fields for people, one after the other.
func (p *printer) tree(v any, depth int) {
	indent := strings.Repeat("  ", depth+7)
	show := func(name, typ string, v any) {
		switch v := v.(type) {
		case vmstate.Struct:
			fmt.Fprintf(p.w, "%s%s: %s\n", indent, plain.Line(name), plain.Line(v.VMSD))
			p.tree(v, depth+1)
		case []any:
			if len(v) > 0 {
				if _, ok := v[0].(vmstate.Struct); ok {
					for i := range v {
						fmt.Fprintf(p.w, "%s%s[%d]:\n", indent, plain.Line(name), i)
						p.tree(v[i], depth+1)
					}
					return
				}
			}
			p.wrapped(indent, "%s = %v  (%s)", plain.Line(name), v, plain.Line(typ))
		case []byte:
			if text, ok := vmstate.Text(v); ok {
				p.wrapped(indent, "%s = %q  (%s, %d bytes)", plain.Line(name), text, plain.Line(typ), len(v))
				return
			}
			more := ""
			if len(v) > 32 {
				more = fmt.Sprintf("… (%d bytes)", len(v))
			}
			p.wrapped(indent, "%s = %x%s  (%s)", plain.Line(name), v[:min(len(v), 32)], more, plain.Line(typ))
		default:
			p.wrapped(indent, "%s = %v  (%s)", plain.Line(name), v, plain.Line(typ))
		}
	}
	if s, ok := v.(vmstate.Struct); ok {
		for _, f := range s.Fields {
			show(f.Name, f.Type, f.Value)
		}
		for _, sub := range s.Subsections {
			fmt.Fprintf(p.w, "%ssubsection %s:\n", indent, plain.Line(sub.VMSD))
			p.tree(sub, depth+1)
		}
		return
	}
	text, err := json.Marshal(v)
	if err == nil {
		p.wrapped(indent, "%s", plain.Line(string(text)))
	}
}

// abridged returns s with long values shortened: a buffer of more than maxShown bytes keeps
// its beginning, and its name says how long it is; a bitmap becomes the ranges of its bits.
func abridged(s vmstate.Struct) vmstate.Struct {
	if !long(s) {
		return s
	}
	out := s
	out.Fields = append([]vmstate.Field(nil), s.Fields...)
	out.Subsections = append([]vmstate.Struct(nil), s.Subsections...)
	for i := range out.Fields {
		f := &out.Fields[i]
		switch v := f.Value.(type) {
		case []byte:
			if f.Type == "bitmap" && len(v)%8 == 0 {
				f.Value = ranges(v)
			} else if len(v) > maxShown {
				f.Value = v[:maxShown]
				f.Name = fmt.Sprintf("%s (first %d of %d bytes)", f.Name, maxShown, len(v))
			}
		case vmstate.Struct:
			f.Value = abridged(v)
		case []any:
			f.Value = abridgedList(v)
		}
	}
	for i := range out.Subsections {
		out.Subsections[i] = abridged(out.Subsections[i])
	}
	return out
}

func abridgedList(list []any) []any {
	out := make([]any, len(list))
	for i, v := range list {
		switch v := v.(type) {
		case []byte:
			out[i] = v[:min(len(v), maxShown)]
		case vmstate.Struct:
			out[i] = abridged(v)
		default:
			out[i] = v
		}
	}
	return out
}

// long reports whether a buffer in s is too long to be shown.
func long(s vmstate.Struct) bool {
	for i := range s.Fields {
		if f := &s.Fields[i]; longValue(f.Value) || f.Type == "bitmap" {
			return true
		}
	}
	for i := range s.Subsections {
		if long(s.Subsections[i]) {
			return true
		}
	}
	return false
}

func longValue(v any) bool {
	switch v := v.(type) {
	case []byte:
		return len(v) > maxShown
	case vmstate.Struct:
		return long(v)
	case []any:
		for i := range v {
			if longValue(v[i]) {
				return true
			}
		}
	}
	return false
}

// ranges describes a bitmap in words: how many bits are set, and which.
func ranges(p []byte) string {
	set, runs, last := 0, 0, false
	var b strings.Builder
	for i := 0; i < len(p)*8; i++ {
		// Words of 64 bits, the first byte of each the highest.
		on := p[i/64*8+7-i%64/8]>>(i%8)&1 != 0
		if on && !last {
			if runs++; runs <= 8 {
				fmt.Fprintf(&b, " %d-", i)
			}
		}
		if !on && last && runs <= 8 {
			fmt.Fprint(&b, i-1)
		}
		last = on
	}
	if last && runs <= 8 {
		fmt.Fprint(&b, len(p)*8-1)
	}
	for _, c := range p {
		set += bits.OnesCount8(c)
	}
	if runs > 8 {
		b.WriteString(" …")
	}
	return fmt.Sprintf("%d of %d bits:%s", set, len(p)*8, b.String())
}
