package vmstate

import (
	"cmp"
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// A Scanner reads a stream of unknown devices and reports its records in order.
//
// The sections of devices have no length, and what describes them comes last.
// So from the first FULL section on, a Scanner keeps what it reads (at most
// MaxState bytes) until the description arrives. Everything before, above all
// the guest's memory, passes by in constant memory. Early devices, which come
// before the memory, are cut by their footers, and checked against the
// description when that comes.
//
// It remembers section ids and the description from call to call, so that after
// Stream has read an initial migration, Sections and State read the checkpoints
// that follow it. It belongs to one goroutine.
type Scanner struct {
	// Record is called with each record, which it may keep. An error ends the scan.
	// Required.
	Record func(*Record) error
	// Live reads the body of a live section, after Record has seen its header;
	// it calls SkipLive for a device that it does not know. Nil: a live section
	// ends the scan with ErrUnknownSection.
	Live func(h Header, r *qemufile.Reader) error
	// Described, if not nil, is called once more with each early device, with Desc
	// set, right before Record is called with the description.
	Described func(*Record)
	// NoConfiguration and NoFooters say that the stream has none, as those of
	// very old machine types. Stream sets them where it finds that out, which it
	// does from the byte after the header, and from what follows the first
	// section.
	NoConfiguration, NoFooters bool
	// Large, if not nil, lets device sections be longer than MaxState: they then
	// end at their first footer behind which something begins, and bodies that
	// do not fit into MaxState are not kept ([Record].Elided). Their bytes, all
	// of them from the first device section to EOF, go to Large as views that
	// are valid during the call; their records come at the end.
	Large func([]byte)
	// Padding says that zeros may follow the EOF of a stream without a
	// description. Stream leaves them unread. Otherwise they are [ErrTrailing].
	Padding bool
	// MaxSkip bounds the bytes that SkipLive skips, and those of a section that Large is
	// given. 0: MaxState.
	MaxSkip uint64
	// MaxState bounds the device sections, and each PACKAGED, in bytes.
	// 0: 256 MiB.
	MaxState uint64
	// MaxDescription bounds the description, in bytes. 0: 16 MiB.
	MaxDescription uint64
	// Devices describes the devices. Stream sets it when it finds a description;
	// a caller may set it for a stream that has none, and to another stream's of
	// the same machine for what no description covers (a PACKAGED).
	Devices *VMDesc

	live    map[uint32]Header // by section id
	early   []Record          // of this stream; their Desc is missing
	earlies int               // bytes of early devices in this stream
	footed  bool              // a footer was found where one belongs
	started bool              // a START has come in this stream
	ended   bool              // an END has come in this stream
}

const maxLiveSections = 1 << 16

func (s *Scanner) maxState() uint64 {
	if s.MaxState == 0 {
		return maxPackaged
	}
	return s.MaxState
}

// Stream reads from the file header to the description, or to EOF if the stream
// ends there. It consumes nothing after it. Errors are as those of
// [Registry.Load].
func (s *Scanner) Stream(r *qemufile.Reader) error {
	start := r.Offset()
	s.early, s.earlies, s.started, s.ended, s.footed = nil, 0, false, false, false
	if err := ReadFileHeader(r); err != nil {
		return err
	}
	if err := s.Record(&Record{Offset: start, Length: 8, Type: FileHeader}); err != nil {
		return err
	}
	if t, ok := r.PeekByte(); ok && !s.NoConfiguration {
		switch SectionType(t) {
		case SectionStart, SectionFull, CommandRecord:
			s.NoConfiguration = true
		}
	}
	if !s.NoConfiguration {
		start = r.Offset()
		c, err := ReadConfiguration(r)
		if err != nil {
			return err
		}
		rec := &Record{Offset: start, Length: r.Offset() - start, Type: Configured, Configuration: c}
		if err := s.Record(rec); err != nil {
			return err
		}
	}
	described, err := s.sections(r, true)
	if err != nil || described {
		return err
	}
	// A stream without devices may still have a description.
	t, ok := r.PeekByte()
	if !ok {
		return streamError(r.Offset(), r.Failure()) // a description may have been lost
	}
	if SectionType(t) != Description {
		return nil
	}
	start = r.Offset()
	text, err := ReadVMDesc(r, s.MaxDescription)
	if err == nil {
		var desc *VMDesc
		if desc, err = ParseVMDesc(text); err == nil && !s.identical(nil, desc) {
			err = fmt.Errorf("%w of devices that are not there", ErrDescription)
		}
		if err == nil {
			s.Devices = desc
			s.describeEarly(desc)
			if !s.describesEarly(desc) {
				err = fmt.Errorf("%w does not fit the only devices there are", ErrDescription)
			}
			err = cmp.Or(s.Record(&Record{Offset: start, Length: r.Offset() - start, Type: Description, Body: text}), err)
		}
	}
	return sectionError(Header{Type: Description}, start, err)
}

// Sections reads live sections and commands up to and including EOF, as a
// checkpoint sends them.
func (s *Scanner) Sections(r *qemufile.Reader) error {
	_, err := s.sections(r, false)
	return err
}

// sections reads up to EOF; with devices, it goes on to the description and says
// whether there was one.
func (s *Scanner) sections(r *qemufile.Reader, devices bool) (described bool, err error) {
	for {
		start := r.Offset()
		t, ok := r.PeekByte()
		if !ok {
			r.Byte()
			return false, streamError(start, r.Err())
		}
		switch t := SectionType(t); t {
		case EOF:
			r.Byte()
			return false, s.Record(&Record{Offset: start, Length: 1, Type: EOF})
		case SectionStart, SectionPart, SectionEnd:
			err = s.liveSection(r)
		case CommandRecord:
			err = s.command(r)
		case SectionFull:
			if devices {
				if n := s.earlyLength(r); n > 0 {
					err = s.earlySections(r, n)
					break
				}
				return s.tail(r)
			}
			fallthrough
		default:
			err = streamError(start, fmt.Errorf("%w %d", ErrSectionType, byte(t)))
		}
		if err != nil {
			return false, err
		}
	}
}

func (s *Scanner) liveSection(r *qemufile.Reader) error {
	start := r.Offset()
	h, err := ReadHeader(SectionType(r.Byte()), r)
	s.started = s.started || h.Type == SectionStart
	s.ended = s.ended || h.Type == SectionEnd
	if err == nil {
		if h.Type.introduces() {
			if s.live == nil {
				s.live = make(map[uint32]Header)
			}
			if s.live[h.ID] = h; len(s.live) > maxLiveSections {
				err = fmt.Errorf("more than %d live devices: %w", maxLiveSections, ErrBounds)
			}
		} else if known, ok := s.live[h.ID]; ok {
			h.Name, h.Instance, h.Version = known.Name, known.Instance, known.Version
		} else {
			err = fmt.Errorf("%w: no section %d", ErrUnknownSection, h.ID)
		}
	}
	if err == nil && s.Live == nil {
		err = fmt.Errorf("%w: nothing here reads it", ErrUnknownSection)
	}
	if err == nil {
		err = s.Record(&Record{Offset: start, Length: r.Offset() - start, Type: h.Type, Header: h})
	}
	if err == nil {
		err = s.Live(h, r)
	}
	if err == nil && !s.footed && !s.NoFooters {
		s.NoFooters = s.footless(r, h.ID)
	}
	if err == nil && !s.NoFooters {
		s.footed = true
		at := r.Offset()
		if err = ReadFooter(r, h.ID); err == nil {
			err = s.Record(&Record{Offset: at, Length: 5, Type: Footer, Header: h})
		}
	}
	return sectionError(h, start, err)
}

// footless reports whether the body of a live section is followed by another
// record of the stream, instead of its footer.
func (s *Scanner) footless(r *qemufile.Reader, id uint32) bool {
	p := r.Peek(5)
	if len(p) == 0 || SectionType(p[0]) == Footer {
		return false
	}
	return SectionType(p[0]) != EOF && s.begins(follows(r, 0))
}

func (s *Scanner) command(r *qemufile.Reader) error {
	start := r.Offset()
	h := Header{Type: SectionType(r.Byte())}
	c, err := ReadCommand(r)
	rec := &Record{Offset: start, Type: CommandRecord, Command: c}
	if err == nil && c.Type == CommandPackaged {
		n, _ := c.AsPackaged()
		at := r.Offset()
		if body := r.Bytes(uint64(n), s.maxState()); r.Err() == nil {
			rec.Package, err = s.split(body, at, untilRun)
		} else {
			err = r.Err()
		}
	}
	rec.Length = r.Offset() - start
	if err == nil {
		err = s.Record(rec)
	}
	return sectionError(h, start, err)
}

// State reads a device state as a checkpoint has it: FULL sections and EOF. The
// records keep views of it. base is its offset in the stream, for the records'.
// Lengths come from Devices and, where that does not fit any more (a device may
// have another shape than in the initial migration), from the footers. Where the
// state is broken, the sections before that are reported all the same.
func (s *Scanner) State(state []byte, base int64) error {
	records, err := s.split(state, base, untilEOF)
	return cmp.Or(s.report(records), err)
}

func (s *Scanner) report(records []Record) error {
	for i := range records {
		if err := s.Record(&records[i]); err != nil {
			return err
		}
	}
	return nil
}
