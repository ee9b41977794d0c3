package diff

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gocolo/lockstep/internal/plain"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// Certainty says how much of a [Finding] the streams prove.
type Certainty string

const (
	// Refusal: the machine would not load the stream.
	Refusal Certainty = "refusal"
	// Doubt: it depends on facts that the machine's stream does not contain.
	Doubt Certainty = "doubt"
)

// A Finding is something that keeps a machine from loading a stream, or may.
type Finding struct {
	Certainty Certainty `json:"certainty"`
	// Where is the device or the RAM block, and Field the first field at which
	// it would go wrong.
	Where string `json:"where,omitempty"`
	Field string `json:"field,omitempty"`
	// Why says it in a sentence. Says is the message with which QEMU's destination ends,
	// where that is known.
	Why  string `json:"why"`
	Says string `json:"says,omitempty"`
}

// String returns the finding as one line of text.
func (f Finding) String() string {
	var b strings.Builder
	b.WriteString(string(f.Certainty) + ": ")
	if f.Where != "" {
		b.WriteString(f.Where + ": ")
	}
	if f.Field != "" {
		b.WriteString(f.Field + ": ")
	}
	b.WriteString(f.Why)
	if f.Says != "" {
		fmt.Fprintf(&b, " (QEMU: %s)", f.Says)
	}
	return plain.Line(b.String()) // the names are those that a peer has chosen
}

// maxFindings bounds the list.
const maxFindings = 1 << 12

// Load lists what keeps the machine that has written b, or another that was started like
// it, from loading a. The list is empty if nothing is known that does. Findings are in the
// order in which a destination would meet them; it would end at the first Refusal.
func Load(a, b *State) []Finding {
	l := loading{a: a, b: b}
	l.configuration()
	l.footers()
	l.memory()
	for _, name := range a.Live {
		if !slices.Contains(b.Live, name) {
			l.refuse("live device "+name, "", "B does not have it", unknownSection(name, 0))
		}
	}
	for i := range a.Devices {
		l.device(&a.Devices[i])
	}
	return l.list
}

// loading gathers what would keep the machine that has written b from loading a.
type loading struct {
	a, b *State
	list []Finding
}

func (l *loading) add(f Finding) {
	if len(l.list) < maxFindings {
		l.list = append(l.list, f)
	}
}

func (l *loading) refuse(where, field, why, says string) {
	l.add(Finding{Certainty: Refusal, Where: where, Field: field, Why: why, Says: says})
}

func (l *loading) doubt(where, field, why, says string) {
	l.add(Finding{Certainty: Doubt, Where: where, Field: field, Why: why, Says: says})
}

func unknownSection(name string, instance uint32) string {
	return fmt.Sprintf("Unknown savevm section or instance '%s' %d", name, instance)
}

func (l *loading) configuration() {
	a, b := l.a.Configuration, l.b.Configuration
	switch {
	case a == nil && b == nil:
	case a == nil:
		l.refuse("", "", "A has no configuration and B expects one (send-configuration)", "Configuration section missing")
	case b == nil:
		l.refuse("", "", "A has a configuration and B expects none (send-configuration)", "Unknown savevm section type 7")
	default:
		if err := kept(*a).Check(kept(*b)); err != nil {
			says := ""
			if len(a.Machine) > len(b.Machine) || !strings.HasPrefix(b.Machine, a.Machine) {
				says = fmt.Sprintf("Machine type received is '%s' and local is '%s'", a.Machine, b.Machine)
			}
			l.refuse("", "", err.Error(), says)
		}
	}
	if a, b := l.a, l.b; len(a.Blocks) > 0 && len(b.Blocks) > 0 && a.PageSize != b.PageSize {
		l.refuse("", "", fmt.Sprintf("pages have %d bytes in A and %d in B", a.PageSize, b.PageSize), "")
	}
}

func (l *loading) footers() {
	first := "ram"
	if len(l.a.Live) == 0 {
		if len(l.a.Devices) == 0 {
			return
		}
		first = l.a.Devices[0].Name
	}
	switch {
	case !l.a.Footers && l.b.Footers:
		l.refuse("", "", "A has no footers and B expects them (send-section-footer)", "Missing section footer for "+first)
	case l.a.Footers && !l.b.Footers:
		l.refuse("", "", "A has footers and B expects none (send-section-footer)", "Unknown savevm section type 126")
	}
}

func (l *loading) memory() {
	if len(l.b.Blocks) == 0 && !slices.Contains(l.b.Live, ram.SectionName) {
		return // it was said where live devices were compared
	}
	for i := range l.a.Blocks {
		ba := &l.a.Blocks[i]
		bb := l.b.Block(ba.Name)
		switch {
		case bb == nil:
			l.refuse("RAM block "+ba.Name, "", fmt.Sprintf("B does not have it; it has %s", l.names()), fmt.Sprintf("Unknown ramblock \"%s\", cannot accept migration", ba.Name))
		case ba.Length == bb.Length:
		case strings.HasPrefix(ba.Name, "/rom@"):
			l.doubt("RAM block "+ba.Name, "", fmt.Sprintf("it has %d bytes in A and %d in B; QEMU's own tables may change their size, up to a limit", ba.Length, bb.Length), "")
		default:
			l.refuse("RAM block "+ba.Name, "", fmt.Sprintf("it has %d bytes in A and %d in B", ba.Length, bb.Length),
				fmt.Sprintf("Size mismatch: %s: 0x%x != 0x%x: Invalid argument", ba.Name, ba.Length, bb.Length))
		}
	}
}

// names lists b's RAM blocks, so that a reader can recognize one that was renamed.
func (l *loading) names() string {
	var names []string
	for i := range l.b.Blocks {
		if i == 20 {
			names = append(names, "…")
			break
		}
		names = append(names, l.b.Blocks[i].Name)
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func (l *loading) device(a *Device) {
	b := l.b.Find(a.Name, a.Instance)
	where := "device " + a.label()
	switch {
	case b == nil:
		l.refuse(where, "", "B does not have it"+l.alike(a)+" (unless B leaves it out of its own stream)", unknownSection(a.Name, a.Instance))
		return
	case a.Version > b.Version:
		l.refuse(where, "", fmt.Sprintf("it has version %d in A and %d in B", a.Version, b.Version),
			fmt.Sprintf("savevm: unsupported version %d for '%s' v%d", a.Version, a.Name, b.Version))
		return
	case a.Version < b.Version:
		l.doubt(where, "", fmt.Sprintf("it has version %d in A and %d in B, which may be too old", a.Version, b.Version), "")
	}
	if a.Desc == nil || b.Desc == nil {
		if a.Length != b.Length {
			l.doubt(where, "", fmt.Sprintf("it has %d bytes in A and %d in B, and nothing tells which fields", a.Length, b.Length), l.footer(a))
		}
		return
	}
	w := walk{l: l, dev: a, where: where, older: a.Version < b.Version}
	w.structs("", &a.Desc.StructDesc, &b.Desc.StructDesc)
	if a.Body == nil || b.Body == nil {
		return
	}
	sa, errA := a.Desc.Decode(a.Body)
	sb, errB := b.Desc.Decode(b.Body)
	if errA == nil && errB == nil {
		w.values("", sa, sb)
	}
}

// alike returns the name of a device of b's that may be a's under another path.
func (l *loading) alike(a *Device) string {
	base := a.Name[strings.LastIndex(a.Name, "/")+1:]
	for i := range l.b.Devices {
		name := l.b.Devices[i].Name
		if name != a.Name && name[strings.LastIndex(name, "/")+1:] == base && l.a.Find(name, l.b.Devices[i].Instance) == nil {
			return "; it has " + name
		}
	}
	return ""
}

// footer returns QEMU's message where a device was read to a wrong length.
func (l *loading) footer(d *Device) string {
	if !l.b.Footers {
		return ""
	}
	return "Missing section footer for " + d.Name
}

// walk compares the descriptions of one device on both sides.
type walk struct {
	l     *loading
	dev   *Device
	where string
	older bool // B reads it as an older version
	over  bool // the first field that does not fit has been found
}

// misfit reports the first field at which the two sides differ.
func (w *walk) misfit(field, why string) {
	if w.over {
		return
	}
	w.over = true
	if w.older {
		w.l.doubt(w.where, field, why+"; unless B reads it so for this older version", w.l.footer(w.dev))
		return
	}
	w.l.refuse(w.where, field, why, w.l.footer(w.dev))
}

func join(path, name string) string { return strings.TrimPrefix(path+"."+name, ".") }

// structs compares the layouts of a part. B reads A's bytes as its own fields, in its own
// order.
func (w *walk) structs(path string, a, b *vmstate.StructDesc) {
	i, j := 0, 0
	for !w.over && (i < len(a.Fields) || j < len(b.Fields)) {
		switch {
		case i == len(a.Fields):
			if w.dynamic(&b.Fields[j]) {
				j++
				continue
			}
			w.misfit(join(path, title(&b.Fields[j])), fmt.Sprintf("A does not have it: B reads %s from what follows", bytesOf(&b.Fields[j])))
		case j == len(b.Fields):
			if w.dynamic(&a.Fields[i]) {
				i++
				continue
			}
			w.misfit(join(path, title(&a.Fields[i])), fmt.Sprintf("B does not have it: its %s are read as what follows", bytesOf(&a.Fields[i])))
		default:
			fa, fb := &a.Fields[i], &b.Fields[j]
			if fa.Name == fb.Name && fa.Index == fb.Index {
				w.fields(join(path, title(fa)), fa, fb)
				i, j = i+1, j+1
				continue
			}
			i, j = w.realign(path, a, b, i, j)
		}
	}
	if !w.over {
		w.subsections(path, a, b)
	}
}

// title returns a field's name as Struct has it: with its index in an array.
func title(f *vmstate.FieldDesc) string {
	if f.Index >= 0 {
		return fmt.Sprintf("%s[%d]", f.Name, f.Index)
	}
	return f.Name
}

func bytesOf(f *vmstate.FieldDesc) string {
	return fmt.Sprintf("%d bytes (%s)", f.Size*f.Count, f.Type)
}

// dynamic reports whether a field is an element of an array that may have another
// length on each side.
func (w *walk) dynamic(f *vmstate.FieldDesc) bool { return f.Index > 0 }

// realign finds out why the names at i and j differ, and where to continue on each side.
func (w *walk) realign(path string, a, b *vmstate.StructDesc, i, j int) (int, int) {
	fa, fb := &a.Fields[i], &b.Fields[j]
	inB := slices.ContainsFunc(b.Fields[j:], func(f vmstate.FieldDesc) bool { return f.Name == fa.Name && f.Index == fa.Index })
	inA := slices.ContainsFunc(a.Fields[i:], func(f vmstate.FieldDesc) bool { return f.Name == fb.Name && f.Index == fb.Index })
	switch {
	case w.dynamic(fa) && !inB:
		return i + 1, j
	case w.dynamic(fb) && !inA:
		return i, j + 1
	case fa.Size*fa.Count == fb.Size*fb.Count && !inA && !inB:
		return i + 1, j + 1 // the same bytes under another name
	case inB:
		w.misfit(join(path, title(fb)), fmt.Sprintf("A does not have it: B reads %s from the bytes of %s", bytesOf(fb), title(fa)))
	case inA:
		w.misfit(join(path, title(fa)), fmt.Sprintf("B does not have it: its %s are read as %s", bytesOf(fa), title(fb)))
	default:
		w.misfit(join(path, title(fa)), fmt.Sprintf("A has %s, and B reads %s as %s", bytesOf(fa), bytesOf(fb), title(fb)))
	}
	return i, j
}

// fields compares one field that both have.
func (w *walk) fields(path string, a, b *vmstate.FieldDesc) {
	switch list := a.Type == "qtailq" || a.Type == "qlist" || a.Type == "gtree"; {
	case (a.Type == "nullptr") != (b.Type == "nullptr"):
		w.misfit(path, fmt.Sprintf("it is a %s in A and a %s in B", a.Type, b.Type))
	case list && a.Type == b.Type:
		// The number of elements may differ; the layout of an element may not.
		if len(a.Parts) > 0 && len(b.Parts) > 0 {
			w.structs(path, &a.Parts[0], &b.Parts[0])
		}
	case len(a.Parts) == 1 && len(b.Parts) == 1 && a.Parts[0].VMSD != "" && b.Parts[0].VMSD != "":
		if a.Count != b.Count {
			w.length(path, a, b)
		}
		w.structs(path, &a.Parts[0], &b.Parts[0])
	case a.Size != b.Size && a.Type == b.Type && !fixed(a.Type):
		w.length(path, a, b)
	case a.Size != b.Size:
		w.misfit(path, fmt.Sprintf("A has %s, and B reads %s", bytesOf(a), bytesOf(b)))
	case a.Count != b.Count:
		w.length(path, a, b)
	}
}

// fixed reports whether a type has always the same length. Others are as long as
// an earlier field says, or, where a device writes it in its own way (virtio), as
// they say themselves.
func fixed(typ string) bool {
	typ = strings.TrimSuffix(strings.TrimSuffix(typ, " equal"), " le")
	switch typ {
	case "bool", "timer", "CPU_Double_U", "unused_buffer", "nullptr", "struct", "vstruct", "tmp", "pci config":
		return true
	}
	return strings.HasPrefix(typ, "int") || strings.HasPrefix(typ, "uint")
}

// length reports that an array or a buffer is longer on one side.
func (w *walk) length(path string, a, b *vmstate.FieldDesc) {
	w.l.doubt(w.where, path, fmt.Sprintf("it has %d bytes in A and %d in B; that fits only if an earlier field, or it itself, tells how long it is", a.Size*a.Count, b.Size*b.Count), w.l.footer(w.dev))
}

func (w *walk) subsections(path string, a, b *vmstate.StructDesc) {
	for i := range a.Subsections {
		sa := &a.Subsections[i]
		k := slices.IndexFunc(b.Subsections, func(s vmstate.StructDesc) bool { return s.VMSD == sa.VMSD })
		at := join(path, sa.VMSD)
		if k < 0 {
			w.l.doubt(w.where, at, "B's stream does not have this subsection: it may know it and not need it now, or not know it",
				fmt.Sprintf("error while loading state for instance 0x%x of device '%s': No such file or directory", w.dev.Instance, w.dev.Name))
			continue
		}
		sb := &b.Subsections[k]
		if sa.Version > sb.Version {
			w.l.refuse(w.where, at, fmt.Sprintf("the subsection has version %d in A and %d in B", sa.Version, sb.Version), "")
			continue
		}
		w.structs(at, sa, sb)
	}
}

// values looks for fields whose values B requires to be equal to its own.
func (w *walk) values(path string, a, b vmstate.Struct) {
	fields, _ := partners(a.Fields, b.Fields, fieldName)
	for i, fb := range fields {
		fa := &a.Fields[i]
		if fb == nil || fa.Type != fb.Type {
			continue
		}
		w.value(join(path, fa.Name), fa.Type, fa.Value, fb.Value)
	}
	subsections, _ := partners(a.Subsections, b.Subsections, sectionName)
	for i, sb := range subsections {
		if sb != nil {
			w.values(join(path, sb.VMSD), a.Subsections[i], *sb)
		}
	}
}

func (w *walk) value(path, typ string, a, b any) {
	switch va := a.(type) {
	case vmstate.Struct:
		if vb, ok := b.(vmstate.Struct); ok {
			w.values(path, va, vb)
		}
		return
	case []any:
		if vb, ok := b.([]any); ok {
			for i := range min(len(va), len(vb)) {
				w.value(fmt.Sprintf("%s[%d]", path, i), typ, va[i], vb[i])
			}
		}
		return
	}
	switch {
	case strings.HasSuffix(typ, " equal") && fmt.Sprint(a) != fmt.Sprint(b):
		w.l.refuse(w.where, path, fmt.Sprintf("it is %v in A, and B requires its own %v", a, b), "")
	case strings.HasSuffix(typ, " le"):
		va, okA := a.(int64)
		vb, okB := b.(int64)
		if okA && okB && va > vb {
			w.l.refuse(w.where, path, fmt.Sprintf("it is %d in A, and B takes at most %d", va, vb), fmt.Sprintf("Invalid value %d expecting positive value <= %d", va, vb))
		}
	}
}
