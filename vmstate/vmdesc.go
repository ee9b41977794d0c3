package vmstate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
)

// A VMDesc is a VM description: what the device sections of a stream consist
// of. It is the only way to read them without knowing the devices.
type VMDesc struct {
	PageSize int64        // in bytes; 0 if the description does not say
	Devices  []DeviceDesc // in stream order; live devices are not among them
}

// A DeviceDesc describes one FULL section.
type DeviceDesc struct {
	Name     string
	Instance uint32
	// Size is the length of the body in bytes, for a device that has only that
	// to say about itself; otherwise -1.
	Size int64
	// Broken says why the description of this device cannot be read, in one that
	// [RepairVMDesc] has mended; nil in any other.
	Broken error
	StructDesc
}

// A StructDesc describes a device, a part of one, or a subsection.
type StructDesc struct {
	VMSD        string // the description's name; empty for a device with only a Size
	Version     uint32
	Fields      []FieldDesc
	Subsections []StructDesc
}

// A FieldDesc describes a field. Fields of no length are not described.
type FieldDesc struct {
	Name string
	Type string // QEMU's word: "uint32", "buffer", "struct", "timer", …
	// Count is the number of elements; 1 for a plain field.
	Count int64
	// Index is the field's place in an array that is described one by one, and
	// otherwise -1.
	Index int64
	// Size is the length of one element on the wire in bytes, including
	// subsections.
	Size int64
	// Parts are the description of a "struct" (one), or those of the elements
	// of a list, which QEMU writes as repeated keys of the field itself. A part
	// without a name ("struct": {}) says nothing: QEMU writes it where the first
	// of an array of pointers is null.
	Parts []StructDesc
}

const (
	maxDescDepth = 64
	maxDescSize  = 1 << 40 // bytes on the wire; keeps sums from overflowing
	maxDescItems = 1 << 19 // fields, parts and devices
)

// ParseVMDesc reads the JSON text of a description. It is lenient: unknown keys
// are skipped and repeated keys are kept, because QEMU repeats some. It does not
// check that sizes add up; decoding does. Its error wraps [ErrDescription].
//
// What it takes is bounded: a description of more than half a million fields
// and devices fails too.
func ParseVMDesc(text []byte) (*VMDesc, error) {
	d, err := parseVMDesc(text)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// parseVMDesc is ParseVMDesc, and returns what comes before the error too.
func parseVMDesc(text []byte) (*VMDesc, error) { return newDescParser(text).parse() }

func (p *descParser) parse() (*VMDesc, error) {
	var d VMDesc
	p.object(func(key string) {
		switch key {
		case "page_size":
			d.PageSize = p.int(maxDescSize)
		case "devices":
			p.array(func() {
				if dev := p.device(); p.err == nil {
					d.Devices = append(d.Devices, dev)
				}
			})
		default:
			p.skip()
		}
	})
	if p.err == nil {
		if _, err := p.dec.Token(); err != io.EOF {
			p.fail("something follows it")
		}
	}
	return &d, p.err
}

// descParser is a recursive descent over JSON tokens. The first error sticks.
type descParser struct {
	dec   *json.Decoder
	depth int
	items int
	limit int               // items that the description may have
	types map[string]string // names of types, each kept once
	err   error
}

func newDescParser(text []byte) *descParser {
	p := &descParser{dec: json.NewDecoder(bytes.NewReader(text)), limit: maxDescItems}
	p.dec.UseNumber()
	return p
}

// item counts one item against the limit.
func (p *descParser) item() {
	if p.items++; p.items > p.limit {
		p.fail("more than %d fields", p.limit)
	}
}

// word reads a string of which there are few different ones, and keeps each once.
func (p *descParser) word() string {
	s := p.string()
	if w, ok := p.types[s]; ok {
		return w
	}
	if p.types == nil {
		p.types = make(map[string]string)
	}
	if len(p.types) < 1<<10 {
		p.types[s] = s
	}
	return s
}

func (p *descParser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("vmstate: %w: at byte %d: %s", ErrDescription, p.dec.InputOffset(), fmt.Sprintf(format, args...))
	}
}

func (p *descParser) token() json.Token {
	if p.err != nil {
		return nil
	}
	t, err := p.dec.Token()
	if err != nil {
		p.fail("%v", err)
	}
	return t
}

// nest calls fn for each element between a pair of delimiters.
func (p *descParser) nest(open json.Delim, fn func()) {
	if t := p.token(); p.err == nil && t != open {
		p.fail("got %v, want %v", t, open)
	}
	if p.depth++; p.depth > maxDescDepth {
		p.fail("nested deeper than %d", maxDescDepth)
	}
	for p.err == nil && p.dec.More() {
		fn()
	}
	p.depth--
	p.token() // the closing one; the decoder checks that it matches
}

func (p *descParser) object(fn func(key string)) {
	p.nest('{', func() {
		if key, ok := p.token().(string); ok {
			fn(key)
		}
	})
}

func (p *descParser) array(fn func()) { p.nest('[', fn) }

func (p *descParser) string() string {
	s, ok := p.token().(string)
	if !ok {
		p.fail("want a string")
	}
	return s
}

func (p *descParser) int(max int64) int64 {
	n, ok := p.token().(json.Number)
	if !ok {
		p.fail("want a number")
		return 0
	}
	v, err := strconv.ParseInt(n.String(), 10, 64)
	if err != nil || v < 0 || v > max {
		p.fail("number %v out of bounds", n)
		return 0
	}
	return v
}

func (p *descParser) skip() {
	depth := 0
	for p.err == nil {
		switch p.token() {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return
		}
	}
}

func (p *descParser) device() DeviceDesc {
	p.item()
	d := DeviceDesc{Size: -1}
	named := false
	p.object(func(key string) {
		switch key {
		case "name":
			d.Name, named = p.string(), true
		case "instance_id":
			d.Instance = uint32(p.int(1<<32 - 1))
		case "size":
			d.Size = p.int(maxDescSize)
		default:
			p.structKey(key, &d.StructDesc)
		}
	})
	if !named {
		p.fail("a device without a name")
	}
	return d
}

// structKey reads the value if key is one of a description's own, and reports whether it
// is.
func (p *descParser) structKey(key string, d *StructDesc) {
	switch key {
	case "vmsd_name":
		d.VMSD = p.word()
	case "version":
		d.Version = uint32(p.int(1<<32 - 1))
	case "fields":
		p.array(func() { d.Fields = append(d.Fields, p.field()) })
	case "subsections":
		p.array(func() { d.Subsections = append(d.Subsections, p.named()) })
	default:
		p.skip()
	}
}

func (p *descParser) structDesc() StructDesc {
	p.item()
	var d StructDesc
	p.object(func(key string) { p.structKey(key, &d) })
	return d
}

// named does what structDesc does, and fails if there is no name.
func (p *descParser) named() StructDesc {
	d := p.structDesc()
	if d.VMSD == "" {
		p.fail("a description without a name")
	}
	return d
}

func (p *descParser) field() FieldDesc {
	p.item()
	f := FieldDesc{Count: 1, Index: -1, Size: -1}
	named := false
	p.object(func(key string) {
		switch key {
		case "name":
			f.Name, named = p.string(), true
		case "type":
			f.Type = p.word()
		case "size":
			f.Size = p.int(maxDescSize)
		case "array_len":
			f.Count = p.int(maxDescSize)
		case "index":
			f.Index = p.int(maxDescSize)
		case "struct":
			f.Parts = append(f.Parts, p.structDesc())
		case "vmsd_name":
			p.item()
			f.Parts = append(f.Parts, StructDesc{VMSD: p.word()})
		case "version", "fields", "subsections":
			// It belongs to the part whose name came last.
			if len(f.Parts) == 0 {
				f.Parts = append(f.Parts, StructDesc{})
			}
			p.structKey(key, &f.Parts[len(f.Parts)-1])
		default:
			p.skip()
		}
	})
	if !named || f.Size < 0 {
		p.fail("a field without a name or a size")
	}
	if f.Size > 0 && f.Count > maxDescSize/f.Size {
		p.fail("field %q is too large", f.Name)
	}
	return f
}

// Find returns the description of a device, or nil.
func (d *VMDesc) Find(name string, instance uint32) *DeviceDesc {
	for i := range d.Devices {
		if d.Devices[i].Name == name && d.Devices[i].Instance == instance {
			return &d.Devices[i]
		}
	}
	return nil
}

// Len returns the length in bytes of the body that d describes, or -1 if it is
// beyond 1 TiB.
func (d *DeviceDesc) Len() int64 {
	if d.Size >= 0 {
		return d.Size
	}
	return d.StructDesc.Len()
}

// Len returns the length in bytes of what d describes, including subsections,
// or -1 if it is beyond 1 TiB.
func (d *StructDesc) Len() int64 {
	var sum int64
	for i := range d.Fields {
		if sum += d.Fields[i].Size * d.Fields[i].Count; sum > maxDescSize {
			return -1
		}
	}
	for i := range d.Subsections {
		s := &d.Subsections[i]
		n := s.Len()
		if n < 0 {
			return -1
		}
		if sum += 2 + int64(len(s.VMSD)) + 4 + n; sum > maxDescSize {
			return -1
		}
	}
	return sum
}
