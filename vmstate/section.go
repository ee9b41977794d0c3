package vmstate

import (
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// SectionType is the byte that begins each part of a stream
// (QEMU_VM_* in migration/savevm.h).
type SectionType byte

// The section types. Only EOF, the four kinds of section and Command may begin
// a record of the main sequence.
const (
	EOF           SectionType = 0x00 // end of the sections
	SectionStart  SectionType = 0x01 // setup of a live device; introduces its id
	SectionPart   SectionType = 0x02 // some of a live device
	SectionEnd    SectionType = 0x03 // the rest of a live device
	SectionFull   SectionType = 0x04 // a whole device; introduces its id
	Subsection    SectionType = 0x05 // an optional part at the end of a device
	Description   SectionType = 0x06 // the description of the devices, as JSON
	Configured    SectionType = 0x07 // the machine's configuration
	CommandRecord SectionType = 0x08 // a command
	Footer        SectionType = 0x7e // ends a section, repeats its id
)

// String returns the type's name in lower case, such as "start" or "footer".
func (t SectionType) String() string {
	switch t {
	case EOF:
		return "eof"
	case SectionStart:
		return "start"
	case SectionPart:
		return "part"
	case SectionEnd:
		return "end"
	case SectionFull:
		return "full"
	case Subsection:
		return "subsection"
	case Description:
		return "vmdesc"
	case Configured:
		return "configuration"
	case CommandRecord:
		return "command"
	case Footer:
		return "footer"
	case FileHeader:
		return "header"
	}
	return fmt.Sprintf("type %#02x", byte(t))
}

// introduces reports whether a section of type t names its device.
func (t SectionType) introduces() bool { return t == SectionStart || t == SectionFull }

// A Header begins a section. START and FULL carry all of it; PART and END only
// the id, which an earlier START has introduced.
type Header struct {
	Type     SectionType
	ID       uint32 // chosen by the source; gaps are normal
	Name     string // 1 to 255 bytes; the device's path and description
	Instance uint32 // tells devices of one name apart
	Version  uint32
}

// String is used in errors: "full 4 globalstate/0 v1", "end 2".
func (h Header) String() string {
	if h.Name == "" {
		return fmt.Sprintf("%s %d", h.Type, h.ID)
	}
	return fmt.Sprintf("%s %d %s/%d v%d", h.Type, h.ID, h.Name, h.Instance, h.Version)
}

// Put writes h, its type byte included. A name that does not fit fails the
// Writer with [qemufile.ErrTooLong].
func (h Header) Put(w *qemufile.Writer) {
	w.PutByte(byte(h.Type))
	w.PutBE32(h.ID)
	if h.Type.introduces() {
		w.PutCountedString(h.Name)
		w.PutBE32(h.Instance)
		w.PutBE32(h.Version)
	}
}

// ReadHeader reads the rest of a header after its type byte. An empty name is
// [ErrUnknownSection]; a stream that ends is io.ErrUnexpectedEOF.
func ReadHeader(t SectionType, r *qemufile.Reader) (Header, error) {
	h := Header{Type: t, ID: r.BE32()}
	if t.introduces() {
		h.Name = r.CountedString()
		h.Instance = r.BE32()
		h.Version = r.BE32()
		if r.Err() == nil && h.Name == "" {
			return h, fmt.Errorf("section %d without a name: %w", h.ID, ErrUnknownSection)
		}
	}
	return h, qemufile.NoEOF(r.Err())
}

// PutFooter writes the footer of section id.
func PutFooter(w *qemufile.Writer, id uint32) {
	w.PutByte(byte(Footer))
	w.PutBE32(id)
}

// ReadFooter reads the footer of section id. Its error is [ErrFooter] if
// something else is there.
func ReadFooter(r *qemufile.Reader, id uint32) error {
	if t := r.Byte(); r.Err() == nil && SectionType(t) != Footer {
		return fmt.Errorf("%w: missing: got byte %#02x", ErrFooter, t)
	}
	if got := r.BE32(); r.Err() == nil && got != id {
		return fmt.Errorf("%w: of section %d in section %d", ErrFooter, got, id)
	}
	return qemufile.NoEOF(r.Err())
}

// PutEOF writes the byte that ends a sequence of sections.
func PutEOF(w *qemufile.Writer) { w.PutByte(byte(EOF)) }
