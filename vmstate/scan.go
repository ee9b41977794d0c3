package vmstate

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

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
	// Record is told of each record; what it is given is its to keep. An error
	// ends the scan. Required.
	Record func(*Record) error
	// Live reads the body of a live section, after Record has seen its header;
	// SkipLive is for those it does not know. Nil: a live section ends the scan
	// with ErrUnknownSection.
	Live func(h Header, r *qemufile.Reader) error
	// Described, if not nil, is told of each early device once more, with Desc,
	// right before Record is told of the description.
	Described func(*Record)
	// NoConfiguration and NoFooters say that the stream has none (very old
	// machine types); it does not tell.
	NoConfiguration, NoFooters bool
	// MaxState bounds the device sections, and each PACKAGED, in bytes.
	// 0: 256 MiB.
	MaxState uint64
	// MaxDescription bounds the description, in bytes. 0: 16 MiB.
	MaxDescription uint64
	// Devices describes the devices. Stream sets it when it finds a description;
	// a caller may set it for a stream that has none.
	Devices *VMDesc

	live    map[uint32]Header // by section id
	early   []Record          // of this stream; their Desc is missing
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
	s.early, s.started, s.ended = nil, false, false
	if err := ReadFileHeader(r); err != nil {
		return err
	}
	if err := s.Record(&Record{Offset: start, Length: 8, Type: FileHeader}); err != nil {
		return err
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
	if t, ok := r.PeekByte(); !ok || SectionType(t) != Description {
		return nil
	}
	start = r.Offset()
	text, err := ReadVMDesc(r, s.MaxDescription)
	if err == nil {
		if s.Devices, err = ParseVMDesc(text); err == nil && (!s.describesEarly(s.Devices) || len(s.Devices.Devices) > len(s.early)) {
			err = fmt.Errorf("%w of devices that are not there", ErrDescription)
		}
	}
	if err != nil {
		return sectionError(Header{Type: Description}, start, err)
	}
	s.describeEarly(s.Devices)
	return s.Record(&Record{Offset: start, Length: r.Offset() - start, Type: Description, Body: text})
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
	if err == nil && !s.NoFooters {
		at := r.Offset()
		if err = ReadFooter(r, h.ID); err == nil {
			err = s.Record(&Record{Offset: at, Length: 5, Type: Footer, Header: h})
		}
	}
	return sectionError(h, start, err)
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

// tail reads device sections, EOF, and the description if it comes. It finds the
// description by its looks, and believes it if it accounts for every byte of the
// sections before it.
func (s *Scanner) tail(r *qemufile.Reader) (described bool, err error) {
	base := r.Offset()
	var state []byte
	looked := 1 // state[:looked] has no description
	for {
		if _, ok := r.PeekByte(); !ok {
			break
		}
		chunk := r.Peek(r.Buffered())
		if uint64(len(state)+len(chunk)) > s.maxState()+s.maxDescription() {
			return false, streamError(base, fmt.Errorf("device sections: %w", qemufile.ErrTooLong))
		}
		had := len(state)
		state = append(state, chunk...)
		const head = 1 + 4 + 2 // type, length, {"
		for ; looked+head <= len(state); looked++ {
			i := bytes.IndexByte(state[looked:], byte(Description))
			if i < 0 {
				looked = len(state)
				break
			}
			if looked += i; looked+head > len(state) {
				break
			}
			n := binary.BigEndian.Uint32(state[looked+1:])
			if state[looked-1] != byte(EOF) || string(state[looked+5:looked+7]) != `{"` || uint64(n) > s.maxDescription() {
				continue
			}
			end := looked + 5 + int(n)
			if end > len(state) {
				// Maybe. Get the rest, but not more than that.
				r.Skip(uint64(len(state) - had))
				rest := r.Bytes(uint64(end-len(state)), s.maxDescription())
				if r.Err() != nil {
					records, _ := s.split(state[:looked], base, untilEOF)
					err := sectionError(Header{Type: Description}, base+int64(looked), r.Err())
					return false, cmp.Or(s.report(records), err)
				}
				state = append(state, rest...)
				had = len(state)
			}
			devices, err := ParseVMDesc(state[looked+5 : end])
			if err != nil {
				continue
			}
			records, ok := s.splitDescribed(state[:looked], base, devices)
			if !ok {
				continue
			}
			r.Skip(uint64(max(end-had, 0)))
			s.Devices = devices
			s.describeEarly(devices)
			records = append(records, Record{
				Offset: base + int64(looked), Length: int64(end - looked), Type: Description, Body: state[looked+5 : end],
			})
			return true, s.report(records)
		}
		r.Skip(uint64(len(state) - had))
	}
	// No description: what can be told from the footers.
	records, err := s.split(state, base, untilEOF)
	if err != nil {
		if r.Byte(); errors.Is(r.Err(), io.EOF) {
			// Bad sections and a cut look the same from here.
			err = fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err)
		} else {
			err = r.Err()
		}
		err = streamError(base+int64(len(state)), err)
	}
	return false, cmp.Or(s.report(records), err)
}

func (s *Scanner) maxDescription() uint64 {
	if s.MaxDescription == 0 {
		return maxDescription
	}
	return s.MaxDescription
}
