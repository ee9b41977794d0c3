package main

import (
	"bufio"
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// wide is a device with values that do not fit into a line.
type wide struct{}

func (wide) VMState(f *vmstate.Fields) {
	f.Bytes("text", []byte(strings.Repeat("äb ", 200)))
	f.Bytes("word", bytes.Repeat([]byte("x"), 500))
	list := make([]uint32, 300)
	for i := range list {
		list[i] = uint32(i * i)
	}
	f.Uint32s("list", list)
}

// What nothing describes is one value, as long as its device.
func TestFieldsOfAnyLengthFitATerminal(t *testing.T) {
	for name, describe := range map[string]bool{"described": true, "not described": false} {
		stream := written(t, func(w *qemufile.Writer) {
			var reg vmstate.Registry
			w.Fail(reg.Register(vmstate.Entry{Name: "wide", Version: 1}, wide{}))
			begin(w)
			w.Fail(reg.SaveDevices(w))
			vmstate.PutEOF(w)
			if describe {
				reg.PutVMDesc(w)
			}
		})
		status, out, stderr := run(stream, "-fields")
		if status != 0 {
			t.Errorf("%s: status %d, %s", name, status, stderr)
		}
		for line := range strings.Lines(out) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > columns || !utf8.ValidString(line) {
				t.Errorf("%s: a line of %d columns: %s", name, n, line)
			}
		}
		if describe && !strings.Contains(out, " 89401] ") { // the last of the list
			t.Errorf("%s: not all is printed: %s", name, out)
		}
	}
}

// Without its line breaks and indentation a wrapped text is the text, whatever it is.
func TestAWrappedTextIsWhole(t *testing.T) {
	for _, text := range []string{
		"", "short", strings.Repeat("x", columns), strings.Repeat("é", 5*columns), strings.Repeat("word ", columns), strings.Repeat(" ", 3*columns) + "x",
		strings.Repeat("x", columns-3) + " y", strings.Repeat("x", columns) + " ", "one " + strings.Repeat("x", 3*columns),
	} {
		for depth := range 2 * columns {
			var b bytes.Buffer
			p := &printer{w: bufio.NewWriter(&b)}
			indent := strings.Repeat(" ", depth)
			p.wrapped(indent, "%s", text)
			p.w.Flush()
			rest := b.String()
			if rest != indent+text+"\n" && depth+utf8.RuneCountInString(text) <= columns {
				t.Errorf("%q, which fits, is printed as %q", text, rest)
			}
			pieces := strings.Split(strings.TrimSuffix(rest, "\n"), "\n")
			for i, piece := range pieces {
				in := indent
				if i > 0 {
					in += "    "
				}
				if !strings.HasPrefix(piece, in) || utf8.RuneCountInString(piece) > max(columns, len(in)+columns/3) {
					t.Errorf("%d of %q at %d: %q", i, text, depth, piece)
				}
				pieces[i] = strings.TrimPrefix(piece, in)
			}
			whole := func(s string) string { return strings.ReplaceAll(s, " ", "") }
			if whole(strings.Join(pieces, "")) != whole(text) {
				t.Errorf("%q at %d is printed as %q", text, depth, rest)
			}
		}
	}
}
