package diff

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/gocolo/lockstep/internal/plain"
	"github.com/gocolo/lockstep/vmstate"
)

// Kind says what a [Difference] is about.
type Kind string

// The kinds, in the order in which Compare lists them.
const (
	Machine       Kind = "machine"        // the machine type
	Configuration Kind = "configuration"  // what else the configuration says
	PageSize      Kind = "page-size"      // the size of the target's pages
	OnlyInOne     Kind = "only-in-one"    // a device, live or not, that the other does not have
	Version       Kind = "version"        // of a device or a part of one
	SubsectionIn  Kind = "subsection"     // one that the other does not have
	Layout        Kind = "layout"         // what a device consists of
	Value         Kind = "value"          // of a field, or of a body that nothing describes
	BlockIn       Kind = "ram-block"      // one that the other does not have
	BlockSize     Kind = "ram-block-size" // the length of a block
	Pages         Kind = "pages"          // contents of memory
)

// A Difference is one thing that differs between two states.
type Difference struct {
	Kind Kind `json:"kind"`
	// Where says what it is about: a device ("dma instance 1"), or a RAM block.
	Where string `json:"where,omitempty"`
	// Field is the path of a field or a subsection inside the device, or the
	// subject of a configuration.
	Field string `json:"field,omitempty"`
	// A and B are what each has; "" is nothing.
	A string `json:"a"`
	B string `json:"b"`
	// Count and Ranges are the pages that differ; there are at most 1024
	// ranges.
	Count  uint64  `json:"count,omitempty"`
	Ranges []Range `json:"ranges,omitempty"`
}

// String returns the difference as one line of text.
func (d Difference) String() string {
	var b strings.Builder
	b.WriteString(string(d.Kind))
	if d.Where != "" {
		fmt.Fprintf(&b, " %s", d.Where)
	}
	if d.Field != "" {
		fmt.Fprintf(&b, ": %s", d.Field)
	}
	b.WriteString(": ")
	if d.Kind == Pages {
		fmt.Fprintf(&b, "%d differ:", d.Count)
		for i, r := range d.Ranges {
			if i == 16 {
				b.WriteString(" …")
				break
			}
			fmt.Fprintf(&b, " %v", r)
		}
		return plain.Line(b.String())
	}
	side := func(s string) string {
		if s == "" {
			return "(none)"
		}
		return s
	}
	fmt.Fprintf(&b, "%s | %s", side(d.A), side(d.B))
	return plain.Line(b.String())
}

// maxDifferences bounds the list. A reader of more would not read them.
const maxDifferences = 1 << 16

// Compare lists what differs between two states, A first. It is empty if a
// destination would hold the same after loading either. Values of fields that
// nothing describes are compared as the bytes of the body. The list ends after
// 65536 entries.
func Compare(a, b *State) []Difference { return compare(a, b, true) }

// CompareShape compares like Compare, but neither values nor the contents of memory: it
// lists what differs between two machines that should have one configuration.
func CompareShape(a, b *State) []Difference { return compare(a, b, false) }

func compare(a, b *State, values bool) []Difference {
	c := comparison{values: values}
	c.configuration(a, b)
	for _, name := range union(a.Live, b.Live) {
		c.either(OnlyInOne, "live device "+name, slices.Contains(a.Live, name), slices.Contains(b.Live, name))
	}
	for i := range a.Devices {
		da := &a.Devices[i]
		if db := b.Find(da.Name, da.Instance); db != nil {
			c.device(da, db)
		} else {
			c.either(OnlyInOne, "device "+da.label(), true, false)
		}
	}
	for i := range b.Devices {
		if db := &b.Devices[i]; a.Find(db.Name, db.Instance) == nil {
			c.either(OnlyInOne, "device "+db.label(), false, true)
		}
	}
	c.memory(a, b)
	return c.list
}

func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// comparison gathers the differences of two streams; values says whether values count.
type comparison struct {
	values bool
	list   []Difference
}

func (c *comparison) add(d Difference) {
	if len(c.list) < maxDifferences {
		c.list = append(c.list, d)
	}
}

func (c *comparison) either(kind Kind, where string, a, b bool) {
	if a == b {
		return
	}
	d := Difference{Kind: kind, Where: where, A: "present"}
	if b {
		d.A, d.B = "", "present"
	}
	c.add(d)
}

func (c *comparison) text(kind Kind, where, field, a, b string) {
	if a != b {
		c.add(Difference{Kind: kind, Where: where, Field: field, A: a, B: b})
	}
}

func (c *comparison) configuration(a, b *State) {
	c.text(Machine, "", "", a.Machine(), b.Machine())
	show := func(s *State, fn func(vmstate.Configuration) string) string {
		if s.Configuration == nil {
			return ""
		}
		return fn(*s.Configuration)
	}
	for _, x := range []struct {
		field string
		fn    func(vmstate.Configuration) string
	}{
		{"capabilities", func(c vmstate.Configuration) string { return strings.Join(kept(c).Capabilities, " ") }},
		{"uuid", func(c vmstate.Configuration) string {
			if c.UUID == nil {
				return ""
			}
			return hex.EncodeToString(c.UUID[:])
		}},
	} {
		if x.field == "uuid" && !c.values {
			continue
		}
		c.text(Configuration, "", x.field, show(a, x.fn), show(b, x.fn))
	}
	if len(a.Blocks) > 0 && len(b.Blocks) > 0 {
		c.text(PageSize, "", "", fmt.Sprint(a.PageSize), fmt.Sprint(b.PageSize))
	}
}

// kept returns c without the settings that only say how memory was written.
func kept(c vmstate.Configuration) vmstate.Configuration {
	c.Capabilities = slices.DeleteFunc(slices.Clone(c.Capabilities), func(s string) bool { return s == "mapped-ram" })
	return c
}

func (c *comparison) device(a, b *Device) {
	where := a.label()
	c.text(Version, where, "", fmt.Sprint(a.Version), fmt.Sprint(b.Version))
	if a.Desc == nil || b.Desc == nil || a.Body == nil || b.Body == nil {
		c.bodies(where, a, b)
		return
	}
	sa, errA := a.Desc.Decode(a.Body)
	sb, errB := b.Desc.Decode(b.Body)
	if errA != nil || errB != nil {
		c.bodies(where, a, b)
		return
	}
	c.structure(where, "", sa, sb)
}

// bodies compares devices that cannot be decoded.
func (c *comparison) bodies(where string, a, b *Device) {
	if a.Length != b.Length {
		c.text(Layout, where, "", fmt.Sprintf("%d bytes", a.Length), fmt.Sprintf("%d bytes", b.Length))
		return
	}
	if !c.values || bytes.Equal(a.Body, b.Body) {
		return
	}
	i := 0
	for i < min(len(a.Body), len(b.Body)) && a.Body[i] == b.Body[i] {
		i++
	}
	c.text(Value, where, fmt.Sprintf("byte %d", i), display(a.Body[i:]), display(b.Body[i:]))
}

// structure compares two parts field by field. It matches fields by name, so that a field
// that one side has in addition is one difference only.
func (c *comparison) structure(where, path string, a, b vmstate.Struct) {
	if path != "" {
		c.text(Version, where, path, fmt.Sprint(a.Version), fmt.Sprint(b.Version))
	}
	if path != "" && a.VMSD != b.VMSD {
		c.text(Layout, where, path, a.VMSD, b.VMSD)
	}
	at := func(name string) string { return join(path, name) }
	fields, more := partners(a.Fields, b.Fields, fieldName)
	for i, fb := range fields {
		fa := &a.Fields[i]
		if fb == nil {
			c.text(Layout, where, at(fa.Name), "field of type "+fa.Type, "")
			continue
		}
		if fa.Type != fb.Type {
			c.text(Layout, where, at(fa.Name), fa.Type, fb.Type)
			continue
		}
		c.value(where, at(fa.Name), fa.Value, fb.Value)
	}
	for _, fb := range more {
		c.text(Layout, where, at(fb.Name), "", "field of type "+fb.Type)
	}
	subsections, others := partners(a.Subsections, b.Subsections, sectionName)
	for i, sb := range subsections {
		sa := &a.Subsections[i]
		if sb != nil {
			c.structure(where, at(sa.VMSD), *sa, *sb)
		} else {
			c.text(SubsectionIn, where, at(sa.VMSD), "present", "")
		}
	}
	for _, sb := range others {
		c.text(SubsectionIn, where, at(sb.VMSD), "", "present")
	}
}

func (c *comparison) value(where, path string, a, b any) {
	switch va := a.(type) {
	case vmstate.Struct:
		if vb, ok := b.(vmstate.Struct); ok {
			c.structure(where, path, va, vb)
			return
		}
	case []any:
		if vb, ok := b.([]any); ok {
			if len(va) != len(vb) {
				c.text(Layout, where, path, fmt.Sprintf("%d elements", len(va)), fmt.Sprintf("%d elements", len(vb)))
			}
			for i := range min(len(va), len(vb)) {
				c.value(where, fmt.Sprintf("%s[%d]", path, i), va[i], vb[i])
			}
			return
		}
	case []byte:
		if vb, ok := b.([]byte); ok {
			if len(va) != len(vb) {
				c.text(Layout, where, path, fmt.Sprintf("%d bytes", len(va)), fmt.Sprintf("%d bytes", len(vb)))
			} else if c.values && !bytes.Equal(va, vb) {
				c.buffers(where, path, va, vb)
			}
			return
		}
	}
	if reflect.TypeOf(a) != reflect.TypeOf(b) {
		c.text(Layout, where, path, fmt.Sprintf("%T", a), fmt.Sprintf("%T", b))
	} else if c.values {
		c.text(Value, where, path, fmt.Sprint(a), fmt.Sprint(b))
	}
}

// buffers shows two buffers that differ: text as text, short ones whole, long ones from
// where they differ.
func (c *comparison) buffers(where, path string, a, b []byte) {
	if ta, ok := vmstate.Text(a); ok {
		if tb, ok := vmstate.Text(b); ok && ta != tb {
			c.text(Value, where, path, fmt.Sprintf("%q", ta), fmt.Sprintf("%q", tb))
			return
		}
	}
	if len(a) <= 16 {
		c.text(Value, where, path, display(a), display(b))
		return
	}
	i := 0
	for a[i] == b[i] {
		i++
	}
	c.text(Value, where, fmt.Sprintf("%s[%d:]", path, i), display(a[i:]), display(b[i:]))
}

func display(p []byte) string {
	if len(p) > 16 {
		return hex.EncodeToString(p[:16]) + "…"
	}
	return hex.EncodeToString(p)
}

func (c *comparison) memory(a, b *State) {
	for i := range a.Blocks {
		ba := &a.Blocks[i]
		bb := b.Block(ba.Name)
		if bb == nil {
			c.either(BlockIn, ba.Name, true, false)
			continue
		}
		c.text(BlockSize, ba.Name, "", fmt.Sprint(ba.Length), fmt.Sprint(bb.Length))
		if !c.values || a.PageSize != b.PageSize {
			continue
		}
		if n, ranges := differ(ba, bb, a.PageSize); n > 0 {
			c.add(Difference{Kind: Pages, Where: ba.Name, Count: n, Ranges: ranges})
		}
	}
	for i := range b.Blocks {
		if a.Block(b.Blocks[i].Name) == nil {
			c.either(BlockIn, b.Blocks[i].Name, false, true)
		}
	}
}
