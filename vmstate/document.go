package vmstate

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/gocolo/lockstep/qemufile"
)

// FileHeader is the type of the [Record] of a stream's magic and version. It is
// not a section type of the wire, but the first byte of the magic.
const FileHeader SectionType = 0x51

// A Record is one part of a stream as it was found. Which fields are set depends
// on its Type:
//
//	FileHeader, EOF       nothing more
//	Configured            Configuration
//	SectionStart, Part, End   Header; the body follows, see Live
//	Footer                Header of the live section that it closes
//	SectionFull           Header, Body, Desc; its footer is part of it
//	CommandRecord         Command, and Package if it is a PACKAGED
//	Description           Body, the JSON text
type Record struct {
	Offset        int64 // in bytes from the start of the stream
	Length        int64 // bytes of the record, those of a live body not included
	Type          SectionType
	Header        Header // PART and END carry the name their START has given
	Configuration Configuration
	Command       Command
	Package       []Record // a PACKAGED's nested stream; offsets are the outer stream's
	Body          []byte
	Desc          *DeviceDesc // of a FULL section, nil if nothing describes it
	NoFooter      bool        // of a FULL section that no footer ends
	// Misfit says of a FULL section why Desc is nil although something describes
	// the devices: a [*MisfitError]. Where nothing does, it is nil too.
	Misfit error
	// Guessed says of a FULL section that its end was guessed from what the
	// bytes after it look like: there is neither footer nor description.
	Guessed bool
	// Elided says that Body was too long to keep, with BodyLength its length in
	// bytes; see [Scanner.Large]. Put cannot write such a record.
	Elided     bool
	BodyLength int64
	Live       LiveBody // in a Document: the body of a live section
}

// A LiveBody is the decoded body of a live section. Put writes the bytes from which it was
// decoded.
type LiveBody interface {
	Put(w *qemufile.Writer)
}

// Opaque is the body of a live section of an unknown device; see [Scanner.SkipLive].
type Opaque []byte

// Put implements [LiveBody].
func (b Opaque) Put(w *qemufile.Writer) { w.Write(b) }

// A LiveDecoder reads the body of one live section, and exactly that: r is after the
// header, and has to be left before the footer. It decides what to keep; of a guest's
// memory, a summary or a file is best. If the decoder does not know the device,
// it returns [ErrUnknownSection] before it reads anything.
type LiveDecoder interface {
	DecodeLive(h Header, r *qemufile.Reader) (LiveBody, error)
}

// A Learner is a [LiveDecoder] that is told of each record of the stream, in order, before the
// live bodies behind it are read: how a guest's memory is to be read depends on what the
// configuration says of capabilities and of the size of pages. A decoder that embeds a ram.Walker is one.
type Learner interface {
	Learn(rec *Record)
}

// Put writes the record. For a live section it writes the header, and the body if Live has
// one; the footer is a Record of its own.
func (rec *Record) Put(w *qemufile.Writer) {
	switch rec.Type {
	case FileHeader:
		PutFileHeader(w)
	case Configured:
		PutConfiguration(w, rec.Configuration)
	case SectionStart, SectionPart, SectionEnd:
		rec.Header.Put(w)
		if rec.Live != nil {
			rec.Live.Put(w)
		}
	case Footer:
		PutFooter(w, rec.Header.ID)
	case SectionFull:
		if rec.Elided {
			w.Fail(fmt.Errorf("vmstate: the body of %s was not kept", rec.Header))
		}
		rec.Header.Put(w)
		w.Write(rec.Body)
		if !rec.NoFooter {
			PutFooter(w, rec.Header.ID)
		}
	case CommandRecord:
		PutCommand(w, rec.Command)
		for i := range rec.Package {
			rec.Package[i].Put(w)
		}
	case Description:
		PutDescription(w, rec.Body)
	default:
		PutEOF(w)
	}
}

// Decode decodes the body of a FULL section. Its error wraps [ErrDescription] if no
// description fits the section; if one exists that does not fit, it is a [*MisfitError].
func (rec *Record) Decode() (Struct, error) {
	if rec.Misfit != nil {
		return Struct{}, rec.Misfit
	}
	if rec.Desc == nil {
		return Struct{}, fmt.Errorf("vmstate: no %w of %s", ErrDescription, rec.Header)
	}
	return rec.Desc.Decode(rec.Body)
}

// A Document is a whole stream, taken apart without knowing its devices. Writing
// it again gives the same bytes. Who changes a device sets the Body of its record, as
// [DeviceDesc.Encode] makes it.
type Document struct {
	Records []Record
	// VMDesc describes the devices; nil if the stream does not have it.
	VMDesc *VMDesc
}

// maxRecords bounds the records of a Document, and maxDocument their bytes, in which those of
// live bodies count that nobody decodes. A record takes some hundred bytes of memory, and may
// be five of the stream. A QEMU whose memory is on its way writes some dozen in a second. There
// is room for as much device state as a Scanner takes, and as much of everything else.
const (
	maxRecords  = 1 << 18
	maxDocument = 512 << 20
)

// ReadDocument reads a stream from its file header to its description, or to
// its EOF where it has none. Bodies of live sections are left to live, which may be a [Learner],
// and those it does not know are kept as [Opaque]; a nil live stands for a stream without
// any. All the rest, packages and bodies that are Opaque included, may be 512 MiB of the
// stream, besides the bounds that a [Scanner] has by default, and 262144 records, those in
// packages among them: more is [ErrBounds]. When it fails, the Document has what was read
// before.
func ReadDocument(r *qemufile.Reader, live LiveDecoder) (*Document, error) {
	return readDocument(r, live, maxRecords, maxDocument)
}

func readDocument(r *qemufile.Reader, live LiveDecoder, most int, room int64) (*Document, error) {
	d := &Document{}
	left, free := most, room
	learner, _ := live.(Learner)
	s := Scanner{Record: func(rec *Record) error {
		if left -= 1 + len(rec.Package); left < 0 {
			return streamError(rec.Offset, fmt.Errorf("more than %d records: %w", most, ErrBounds))
		}
		if free -= rec.Length; free < 0 {
			return streamError(rec.Offset, fmt.Errorf("more than %d bytes: %w", room, ErrBounds))
		}
		d.Records = append(d.Records, *rec)
		if learner != nil {
			learner.Learn(rec)
		}
		return nil
	}}
	s.Described = func(rec *Record) {
		i, _ := slices.BinarySearchFunc(d.Records, rec.Offset, func(r Record, at int64) int { return cmp.Compare(r.Offset, at) })
		d.Records[i].Desc, d.Records[i].Misfit = rec.Desc, rec.Misfit
	}
	if live != nil {
		s.Live = func(h Header, r *qemufile.Reader) error {
			at := len(d.Records) - 1
			start := r.Offset()
			body, err := live.DecodeLive(h, r)
			if errors.Is(err, ErrUnknownSection) && r.Offset() == start {
				var opaque Opaque
				s.MaxSkip = uint64(max(1, min(free, maxPackaged)))
				err = s.SkipLive(h, r, func(p []byte) { opaque = append(opaque, p...) })
				if errors.Is(err, qemufile.ErrTooLong) && free < maxPackaged {
					err = fmt.Errorf("more than %d bytes: %w: %w", room, ErrBounds, err)
				}
				free -= int64(len(opaque))
				body = opaque
			}
			d.Records[at].Live = body
			return err
		}
	}
	err := s.Stream(r)
	d.VMDesc = s.Devices
	return d, err
}

// Put writes the document to w, which it does not flush, and returns w's error.
func (d *Document) Put(w *qemufile.Writer) error {
	for i := range d.Records {
		d.Records[i].Put(w)
	}
	return w.Err()
}
