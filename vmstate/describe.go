package vmstate

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"github.com/gocolo/lockstep/qemufile"
)

// PutVMDesc writes the description section of the devices as SaveDevices last
// saved them. The devices must not have changed since: it is made by a second
// walk over their fields, and where a device does not describe as many bytes as
// it has saved, the Writer fails with [ErrDescription].
func (reg *Registry) PutVMDesc(w *qemufile.Writer) {
	text, err := reg.VMDesc()
	if err != nil {
		w.Fail(err)
		return
	}
	PutDescription(w, text)
}

// descPageSize is the page size in a description. Only x86 guests are known.
const descPageSize = 4096

// VMDesc returns the JSON text that [Registry.PutVMDesc] writes.
func (reg *Registry) VMDesc() ([]byte, error) {
	var d describer
	d.str("{")
	d.intValue("page_size", descPageSize)
	d.str(`, "devices": [`)
	first := true
	for _, e := range reg.lastSaved() {
		if !first {
			d.str(", ")
		}
		first = false
		d.str("{")
		d.stringValue("name", e.Name)
		d.str(", ")
		d.intValue("instance_id", int64(e.Instance))
		d.str(", ")
		f := &reg.fields
		*f = Fields{mode: describing, desc: &d, version: e.Version, device: e.Version, vmsd: e.VMSD}
		d.n = 0
		d.body(e.VMSD, e.Version, func() { e.device.VMState(f) })
		if f.err != nil {
			return nil, fmt.Errorf("vmstate: describe %s/%d: %w", e.Name, e.Instance, f.err)
		}
		if d.n != e.savedLen {
			return nil, fmt.Errorf("vmstate: %w: %s/%d describes %d bytes and has saved %d", ErrDescription, e.Name, e.Instance, d.n, e.savedLen)
		}
		d.str("}")
	}
	d.str("]}")
	return d.buf, nil
}

// lastSaved lists the devices that were saved last in the order of their
// sections: those of SaveSetup came first.
func (reg *Registry) lastSaved() []*entry {
	var early, rest []*entry
	for _, e := range reg.order {
		switch {
		case e.live() || !e.saved:
		case e.early:
			early = append(early, e)
		default:
			rest = append(rest, e)
		}
	}
	return append(early, rest...)
}

// describer writes the VM description while a device names its fields. Keys,
// their order and the separators are QEMU's, so that its tools can read it.
// "size" is the length of one element on the wire; a part's includes its
// subsections.
type describer struct {
	buf    []byte
	n      int64 // length on the wire of what was described so far
	levels []level
}

// level is what a describer knows of one description. Descriptions nest, so
// there is one level for each that is not complete.
type level struct {
	subs  bool             // "subsections" has begun
	items bool             // the present array has an element
	names map[string]*seen // field names so far
}

// seen is how often the name of a field has come among those of one level.
type seen struct {
	count int
	end   int // where the first one's name ends in buf
}

func (d *describer) str(s string) { d.buf = append(d.buf, s...) }

func (d *describer) key(name string) {
	d.buf = append(d.buf, '"')
	d.buf = append(d.buf, name...)
	d.buf = append(d.buf, `": `...)
}

func (d *describer) stringValue(name, value string) {
	d.key(name)
	q, _ := json.Marshal(value) // a string cannot fail
	d.buf = append(d.buf, q...)
}

func (d *describer) intValue(name string, value int64) {
	d.key(name)
	d.buf = strconv.AppendInt(d.buf, value, 10)
}

func (d *describer) top() *level { return &d.levels[len(d.levels)-1] }

func (d *describer) separate() {
	if l := d.top(); l.items {
		d.str(", ")
	} else {
		l.items = true
	}
}

// body writes one description without its braces.
func (d *describer) body(vmsd string, version uint32, fn func()) {
	d.stringValue("vmsd_name", vmsd)
	d.str(", ")
	d.intValue("version", int64(version))
	d.str(`, "fields": [`)
	d.levels = append(d.levels, level{names: make(map[string]*seen)})
	fn()
	d.levels = d.levels[:len(d.levels)-1]
	d.str("]")
}

// field begins a field's object. If its description has had the name before, an ordinal is
// appended.
func (d *describer) field(f *Fields, name string) {
	l := d.top()
	if l.subs {
		f.Fail(fmt.Errorf("field %s:%s after a subsection", f.vmsd, name))
	}
	d.separate()
	d.str("{")
	s := l.names[name]
	switch {
	case s == nil:
		d.stringValue("name", name)
		l.names[name] = &seen{count: 1, end: len(d.buf) - 1}
		return
	case s.count == 1:
		d.buf = slices.Insert(d.buf, s.end, '[', '0', ']')
		for _, other := range l.names {
			if other.end > s.end {
				other.end += 3
			}
		}
	}
	d.stringValue("name", fmt.Sprintf("%s[%d]", name, s.count))
	s.count++
}

func (d *describer) plain(f *Fields, name, typ string, size, count int) {
	if size*count == 0 {
		return
	}
	d.field(f, name)
	if count > 1 {
		d.str(", ")
		d.intValue("array_len", int64(count))
	}
	d.plainBody(typ, size)
	d.n += int64(size) * int64(count-1)
	d.str("}")
}

func (d *describer) plainBody(typ string, size int) {
	d.str(", ")
	d.stringValue("type", typ)
	d.str(", ")
	d.intValue("size", int64(size))
	d.n += int64(size)
}

func (d *describer) structBody(typ, vmsd string, version uint32, fn func()) {
	start := d.n
	d.str(", ")
	d.stringValue("type", typ)
	d.str(`, "struct": {`)
	d.body(vmsd, version, fn)
	d.str("}, ")
	d.intValue("size", d.n-start)
}

func (d *describer) structField(f *Fields, name, typ, vmsd string, version uint32, fn func()) {
	d.array(f, name, 1, func(int) { d.structBody(typ, vmsd, version, fn) })
}

// tmp puts the inner description directly into the field's object, as QEMU does.
func (d *describer) tmp(f *Fields, name, vmsd string, version uint32, fn func()) {
	d.array(f, name, 1, func(int) {
		start := d.n
		d.str(", ")
		d.stringValue("type", "tmp")
		d.str(", ")
		d.body(vmsd, version, fn)
		d.str(", ")
		d.intValue("size", d.n-start)
	})
}

// list describes n elements with perElem bytes before each and overhead bytes
// besides. The keys of the inner description repeat, once per element, as in
// QEMU's own output.
func (d *describer) list(f *Fields, name, typ, vmsd string, version uint32, n int, fn func(int), perElem, overhead int64) {
	d.array(f, name, 1, func(int) {
		start := d.n
		d.str(", ")
		d.stringValue("type", typ)
		d.n += overhead
		for i := range n {
			d.n += perElem
			d.str(", ")
			d.body(vmsd, version, func() { fn(i) })
		}
		d.str(", ")
		d.intValue("size", d.n-start)
	})
}

// array describes n elements: as one with array_len if all are alike, and
// otherwise one by one with their index.
func (d *describer) array(f *Fields, name string, n int, elem func(i int)) {
	begin := d.n
	bodies := make([]string, n)
	alike := true
	for i := range n {
		mark := len(d.buf)
		elem(i)
		bodies[i] = string(d.buf[mark:])
		d.buf = d.buf[:mark]
		alike = alike && bodies[i] == bodies[0]
	}
	if d.n == begin {
		return
	}
	if alike {
		d.field(f, name)
		if n > 1 {
			d.str(", ")
			d.intValue("array_len", int64(n))
		}
		d.str(bodies[0])
		d.str("}")
		return
	}
	for i, body := range bodies {
		if i == 0 {
			d.field(f, name)
		} else {
			d.str(", {")
			d.stringValue("name", name)
		}
		d.str(", ")
		d.intValue("index", int64(i))
		d.str(body)
		d.str("}")
	}
}

func (d *describer) subsection(name string, version uint32, fn func()) {
	l := d.top()
	if !l.subs {
		d.str(`], "subsections": [`)
		l.subs, l.items = true, false
	}
	d.separate()
	d.n += 2 + int64(len(name)) + 4
	d.str("{")
	d.body(name, version, fn)
	d.str("}")
}
