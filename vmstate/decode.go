package vmstate

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// A Struct is a device, a part of one, or a subsection, as decoded with nothing
// but its description.
type Struct struct {
	VMSD        string
	Version     uint32
	Fields      []Field
	Subsections []Struct
}

// A Field is one named value. Its Value is, by Type:
//
//	bool                       bool
//	uint8 … uint64, bitmap     uint64 (a bitmap of one word)
//	int8 … int64, timer        int64
//	struct, vstruct, tmp       Struct
//	qtailq, qlist              []any of Struct
//	everything else            []byte, a part of the body
//
// and []any of these for an array.
type Field struct {
	Name  string
	Type  string
	Value any
}

// Find returns the field of that name, or nil.
func (s Struct) Find(name string) *Field {
	for i := range s.Fields {
		if s.Fields[i].Name == name {
			return &s.Fields[i]
		}
	}
	return nil
}

// MarshalJSON writes the fields as an object in wire order, bytes in hex, and
// the subsections, if any, as "subsections": {name: {…}}. An integer beyond 2^53,
// which readers of JSON would round, is a string of its digits. Bytes that are
// text have it beside them, as "name.text".
func (s Struct) MarshalJSON() ([]byte, error) { return s.appendJSON(nil), nil }

func (s Struct) appendJSON(out []byte) []byte {
	out = append(out, '{')
	begin := len(out)
	key := func(name string) {
		if len(out) > begin {
			out = append(out, ',')
		}
		out = appendString(out, name)
		out = append(out, ':')
	}
	for _, f := range s.Fields {
		key(f.Name)
		out = appendValue(out, f.Value)
		if p, ok := f.Value.([]byte); ok {
			if text, ok := Text(p); ok {
				key(f.Name + ".text")
				out = appendString(out, text)
			}
		}
	}
	if len(s.Subsections) > 0 {
		key("subsections")
		out = append(out, '{')
		for i, sub := range s.Subsections {
			if i > 0 {
				out = append(out, ',')
			}
			out = appendString(out, sub.VMSD)
			out = append(out, ':')
			out = sub.appendJSON(out)
		}
		out = append(out, '}')
	}
	return append(out, '}')
}

func appendString(out []byte, s string) []byte {
	text, _ := json.Marshal(s) // a string cannot fail
	return append(out, text...)
}

// exact is the greatest integer up to which a double represents every integer.
const exact = 1 << 53

func appendValue(out []byte, v any) []byte {
	switch v := v.(type) {
	case Struct:
		return v.appendJSON(out)
	case []any:
		out = append(out, '[')
		for i := range v {
			if i > 0 {
				out = append(out, ',')
			}
			out = appendValue(out, v[i])
		}
		return append(out, ']')
	case []byte:
		out = append(out, '"')
		out = hex.AppendEncode(out, v)
		return append(out, '"')
	case uint64:
		if v > exact {
			return append(strconv.AppendUint(append(out, '"'), v, 10), '"')
		}
		return strconv.AppendUint(out, v, 10)
	case int64:
		if v > exact || v < -exact {
			return append(strconv.AppendInt(append(out, '"'), v, 10), '"')
		}
		return strconv.AppendInt(out, v, 10)
	case bool:
		return strconv.AppendBool(out, v)
	}
	text, err := json.Marshal(v)
	if err != nil {
		return append(out, "null"...)
	}
	return append(out, text...)
}

// Text returns the text that a buffer holds, and whether it holds any: at least
// two printable characters of ASCII, and after them nothing, or a NUL and
// whatever an earlier text may have left behind it.
func Text(p []byte) (string, bool) {
	text, rest, _ := bytes.Cut(p, []byte{0})
	if len(text) < 2 || bytes.IndexFunc(text, unprintable) >= 0 {
		return "", false
	}
	for _, c := range rest {
		if c != 0 && (c < ' ' || c > '~') {
			return "", false
		}
	}
	return string(text), true
}

func unprintable(r rune) bool { return r < ' ' || r > '~' }

// Decode takes a body apart. Every byte must be accounted for; otherwise the
// error is a [*MisfitError], which wraps [ErrDescription]. Values of type []byte
// are views of body. What the values take is bounded: a body that would become
// more than 16 MiB of them gives a MisfitError that wraps [ErrBounds] too.
func (d *DeviceDesc) Decode(body []byte) (Struct, error) {
	if err := d.fits(len(body)); err != nil {
		return Struct{}, err
	}
	budget := int64(maxDecoded)
	b := &bodyReader{left: body, budget: &budget}
	var s Struct
	if d.Size >= 0 && d.VMSD == "" {
		s.VMSD = d.Name
		s.Fields = []Field{{Name: "data", Type: "buffer", Value: b.take(d.Size)}}
	} else {
		s = b.structure(&d.StructDesc)
	}
	if b.err == nil && len(b.left) > 0 {
		b.fail("%d bytes are not described", len(b.left))
	}
	if b.err != nil {
		return Struct{}, &MisfitError{Name: d.Name, Instance: d.Instance, Described: int64(len(body)), Found: int64(len(body)), Err: b.err}
	}
	return s, nil
}

// maxDecoded bounds the memory of the values of one device, in bytes, as the
// costs below estimate it.
const maxDecoded = 16 << 20

const (
	structCost = 96 + 56 // a Struct, and the field or the element that it is
	fieldCost  = 72
	valueCost  = 32
)

// bodyReader reads values from what is left of a section's body.
type bodyReader struct {
	left   []byte
	err    error
	budget *int64 // bytes that values may still take
}

// spend takes n bytes of the budget.
func (b *bodyReader) spend(n int64) {
	if *b.budget -= n; *b.budget < 0 && b.err == nil {
		b.err = fmt.Errorf("more than %d MiB of values: %w", maxDecoded>>20, ErrBounds)
	}
}

func (b *bodyReader) fail(format string, args ...any) {
	if b.err == nil {
		b.err = fmt.Errorf(format, args...)
	}
}

func (b *bodyReader) take(n int64) []byte {
	if n > int64(len(b.left)) {
		b.fail("%d bytes described where %d are left", n, len(b.left))
	}
	if b.err != nil {
		return nil
	}
	p := b.left[:n:n]
	b.left = b.left[n:]
	return p
}

func (b *bodyReader) structure(d *StructDesc) Struct {
	s := Struct{VMSD: d.VMSD, Version: d.Version}
	b.spend(structCost + fieldCost*int64(len(d.Fields)))
	if b.err != nil {
		return s
	}
	s.Fields = make([]Field, 0, len(d.Fields))
	for i := range d.Fields {
		if b.err != nil {
			break
		}
		f := &d.Fields[i]
		s.Fields = append(s.Fields, Field{Name: f.name(), Type: f.Type, Value: b.field(f)})
	}
	for i := range d.Subsections {
		sub := &d.Subsections[i]
		head := b.take(2 + int64(len(sub.VMSD)) + 4)
		if b.err != nil {
			break
		}
		if head[0] != byte(Subsection) || string(head[2:len(head)-4]) != sub.VMSD ||
			binary.BigEndian.Uint32(head[len(head)-4:]) != sub.Version {
			b.fail("no subsection %s", sub.VMSD)
			break
		}
		s.Subsections = append(s.Subsections, b.structure(sub))
	}
	return s
}

// name returns the name of a field; for an element of an array that is
// described one by one, with its index.
func (f *FieldDesc) name() string {
	if f.Index >= 0 {
		return fmt.Sprintf("%s[%d]", f.Name, f.Index)
	}
	return f.Name
}

func (b *bodyReader) field(f *FieldDesc) any {
	if f.Count == 1 {
		return b.element(f)
	}
	if f.Size == 1 && !f.structured() || f.Size == 0 {
		return b.take(f.Size * f.Count) // bytes are not worth a list
	}
	if f.Size*f.Count > int64(len(b.left)) {
		b.fail("%d×%d bytes described where %d are left", f.Count, f.Size, len(b.left))
		return nil
	}
	b.spend(valueCost * f.Count)
	if b.err != nil {
		return nil
	}
	list := make([]any, 0, f.Count)
	for range f.Count {
		if b.err != nil {
			return nil
		}
		list = append(list, b.element(f))
	}
	return list
}

// structured reports whether f has parts that are described.
func (f *FieldDesc) structured() bool {
	return len(f.Parts) > 0 && (len(f.Parts) > 1 || f.Parts[0].VMSD != "" || len(f.Parts[0].Fields) > 0)
}

func (b *bodyReader) element(f *FieldDesc) any {
	p := b.take(f.Size)
	if b.err != nil {
		return nil
	}
	if f.structured() {
		return b.part(f, p)
	}
	switch bits := kindBits(f.Type); {
	case f.Type == "bool" && len(p) == 1:
		return p[0] != 0
	case bits == 8*len(p) && bits != 0:
		return unsigned(p)
	case bits == -8*len(p) && bits != 0:
		shift := 64 + bits
		return int64(unsigned(p)<<shift) >> shift
	}
	return p
}

// kindBits returns the width of an integer type, negative for a signed one, and
// 0 for everything else.
func kindBits(typ string) int {
	switch strings.TrimSuffix(strings.TrimSuffix(typ, " equal"), " le") {
	case "uint8":
		return 8
	case "uint16":
		return 16
	case "uint32":
		return 32
	case "uint64", "bitmap", "CPU_Double_U":
		return 64
	case "int8":
		return -8
	case "int16":
		return -16
	case "int32":
		return -32
	case "int64", "timer":
		return -64
	}
	return 0
}

func unsigned(p []byte) (v uint64) {
	for _, c := range p {
		v = v<<8 | uint64(c)
	}
	return v
}

// part decodes a field that has descriptions of its own. Its size is known, so
// that what cannot be taken apart (a tree, whose keys are not described) is
// kept as bytes.
func (b *bodyReader) part(f *FieldDesc, p []byte) any {
	inner := &bodyReader{left: p, budget: b.budget}
	switch f.Type {
	case "qtailq", "qlist":
		b.spend(valueCost * int64(len(f.Parts)))
		var list []any
		for i := range f.Parts {
			if m := inner.take(1); inner.err == nil && m[0] != 1 {
				inner.fail("no element")
			}
			list = append(list, inner.structure(&f.Parts[i]))
		}
		if *b.budget < 0 {
			b.err = cmp.Or(b.err, inner.err)
			return nil
		}
		if end := inner.take(1); inner.err == nil && end[0] == 0 && len(inner.left) == 0 {
			return list
		}
		return p
	case "gtree":
		return p
	}
	if len(f.Parts) != 1 {
		return p
	}
	s := inner.structure(&f.Parts[0])
	if inner.err == nil && len(inner.left) > 0 {
		inner.fail("%d bytes are not described", len(inner.left))
	}
	if inner.err != nil {
		b.fail("%s: %w", f.Name, inner.err)
		return nil
	}
	return s
}
