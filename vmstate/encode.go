package vmstate

import (
	"encoding/binary"
	"fmt"
)

// Encode makes a body of what Decode has made of one, for a host that changes values of a
// device which it does not know, and writes the stream again ([Document.Put]):
//
//	s, err := rec.Decode()
//	...
//	s.Find("mode").Value = uint64(3)
//	rec.Body, err = rec.Desc.Encode(s)
//
// The values have the types that Decode gives them, and there are as many of them, and of
// their bytes, as d describes. A value that is not so, or that its field has no room for, is
// refused by a [*FieldError] that wraps [ErrValue]. A bool becomes 0 or 1; everything else
// that is not changed becomes the bytes from which it was decoded.
func (d *DeviceDesc) Encode(s Struct) ([]byte, error) {
	b := &bodyWriter{}
	if d.Size >= 0 && d.VMSD == "" {
		b.structure(&StructDesc{VMSD: d.Name, Fields: []FieldDesc{{Name: "data", Type: "buffer", Count: 1, Index: -1, Size: d.Size}}}, s)
	} else {
		b.structure(&d.StructDesc, s)
	}
	if b.err != nil {
		return nil, b.err
	}
	return b.out, nil
}

// bodyWriter appends values to a section's body.
type bodyWriter struct {
	out []byte
	at  string // the field that is being written, as in a FieldError
	err error
}

func (b *bodyWriter) fail(format string, args ...any) {
	if b.err == nil {
		b.err = &FieldError{Field: b.at, Err: fmt.Errorf("%w: "+format, append([]any{ErrValue}, args...)...)}
	}
}

func (b *bodyWriter) structure(d *StructDesc, s Struct) {
	b.at = d.VMSD
	if s.VMSD != d.VMSD || s.Version != d.Version {
		b.fail("%s of version %d where %s of version %d is described", s.VMSD, s.Version, d.VMSD, d.Version)
	}
	if len(s.Fields) != len(d.Fields) || len(s.Subsections) != len(d.Subsections) {
		b.fail("%d fields and %d subsections where %d and %d are described", len(s.Fields), len(s.Subsections), len(d.Fields), len(d.Subsections))
	}
	for i := range d.Fields {
		if b.err != nil {
			return
		}
		f := &d.Fields[i]
		b.at = d.VMSD + ":" + f.name()
		if s.Fields[i].Name != f.name() {
			b.fail("the field is called %s", s.Fields[i].Name)
			return
		}
		b.field(f, s.Fields[i].Value)
	}
	for i := range d.Subsections {
		if b.err != nil {
			return
		}
		sub := &d.Subsections[i]
		b.out = append(b.out, byte(Subsection), byte(len(sub.VMSD)))
		b.out = append(b.out, sub.VMSD...)
		b.out = binary.BigEndian.AppendUint32(b.out, sub.Version)
		b.structure(sub, s.Subsections[i])
	}
}

func (b *bodyWriter) field(f *FieldDesc, v any) {
	list, isList := v.([]any)
	switch {
	case f.Count == 1:
		b.element(f, v)
	case !isList:
		b.bytes(v, f.Size*f.Count)
	case int64(len(list)) != f.Count:
		b.fail("%d elements where %d are described", len(list), f.Count)
	default:
		for _, v := range list {
			if b.err != nil {
				return
			}
			b.element(f, v)
		}
	}
}

// bytes appends a value that is n bytes.
func (b *bodyWriter) bytes(v any, n int64) {
	p, ok := v.([]byte)
	if !ok || int64(len(p)) != n {
		b.fail("a %T of %d bytes where a []byte of %d is described", v, len(p), n)
		return
	}
	b.out = append(b.out, p...)
}

func (b *bodyWriter) element(f *FieldDesc, v any) {
	begin, at := len(b.out), b.at
	bits := kindBits(f.Type)
	switch v := v.(type) {
	case bool:
		b.expect(f, v, f.Type == "bool")
		b.out = append(b.out, 0)
		if v {
			b.out[begin] = 1
		}
	case uint64:
		b.expect(f, v, bits > 0 && (bits == 64 || v>>bits == 0))
		b.integer(v, f.Size)
	case int64:
		b.expect(f, v, bits < 0 && v<<(64+bits)>>(64+bits) == v)
		b.integer(uint64(v), f.Size)
	case Struct:
		b.expect(f, v.VMSD, f.structured() && len(f.Parts) == 1)
		if b.err == nil {
			b.structure(&f.Parts[0], v)
		}
	case []any:
		b.expect(f, v, (f.Type == "qtailq" || f.Type == "qlist") && len(v) == len(f.Parts))
		for i := range v {
			if b.err != nil {
				return
			}
			b.at = at
			part, ok := v[i].(Struct)
			b.expect(f, v[i], ok)
			b.out = append(b.out, 1)
			b.structure(&f.Parts[i], part)
		}
		b.out = append(b.out, 0)
	default:
		b.bytes(v, f.Size)
	}
	b.at = at
	if n := int64(len(b.out) - begin); n != f.Size {
		b.fail("%d bytes where %d are described", n, f.Size)
	}
}

// expect fails unless a value is one that the field can have.
func (b *bodyWriter) expect(f *FieldDesc, v any, ok bool) {
	if !ok {
		b.fail("%v (%T) in a field of type %s", v, v, f.Type)
	}
}

// integer appends the low size bytes of v.
func (b *bodyWriter) integer(v uint64, size int64) {
	if size > 8 {
		return // the caller sees that it is too short
	}
	var all [8]byte
	binary.BigEndian.PutUint64(all[:], v)
	b.out = append(b.out, all[8-size:]...)
}
