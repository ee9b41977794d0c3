package vmstate

import (
	"bytes"
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// large reads device sections that are too long to be kept until their
// description comes. It keeps the shorter ones, as long as they fit.
func (s *Scanner) large(r *qemufile.Reader) (described bool, err error) {
	if s.NoFooters {
		return false, streamError(r.Offset(), fmt.Errorf("device sections without footers: %w", qemufile.ErrTooLong))
	}
	l := largeTail{s: s, r: r, room: s.maxState() / 2}
	l.w = qemufile.NewWriter(chunkWriter(s.Large))
	for err == nil && !l.done {
		err = l.next()
	}
	if err != nil {
		return false, firstError(s.report(l.records), err)
	}
	var text []byte
	at := r.Offset()
	if t, ok := r.PeekByte(); ok && SectionType(t) == Description {
		if text, err = ReadVMDesc(r, s.MaxDescription); err != nil {
			return false, firstError(s.report(l.records), err)
		}
		desc, bad := RepairVMDesc(text)
		err = bad
		s.Devices = desc
		s.describeEarly(desc)
		c := s.cutter(nil, 0, untilEOF, false)
		for i := range l.records {
			rec := &l.records[i]
			if c.judge(rec); rec.Elided {
				rec.Desc, rec.Misfit = nil, &MisfitError{Name: rec.Header.Name, Instance: rec.Header.Instance, Described: -1, Found: rec.BodyLength, Err: fmt.Errorf("%d bytes: %w", rec.BodyLength, qemufile.ErrTooLong)}
			}
		}
		l.records = append(l.records, Record{Offset: at, Length: r.Offset() - at, Type: Description, Body: text})
	}
	if err != nil {
		err = sectionError(Header{Type: Description}, at, err)
	}
	return text != nil, firstError(s.report(l.records), err)
}

func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// largeTail reads the device sections of a stream that has one too long to be kept.
type largeTail struct {
	s       *Scanner
	r       *qemufile.Reader
	w       *qemufile.Writer // writes to the device's Large
	room    uint64           // bytes of bodies that may still be taken
	records []Record
	done    bool
}

// next reads the next record.
func (l *largeTail) next() error {
	r, start := l.r, l.r.Offset()
	t := SectionType(r.Byte())
	if err := r.Err(); err != nil {
		return streamError(start, err)
	}
	rec := Record{Offset: start, Type: t}
	switch {
	case len(l.records) > maxSections:
		return streamError(start, fmt.Errorf("more than %d sections: %w", maxSections, ErrBounds))
	case t == EOF:
		l.done = true
		l.w.PutByte(byte(EOF))
	case t == CommandRecord:
		c, err := ReadCommand(r)
		if err == nil && c.Type == CommandPackaged {
			err = fmt.Errorf("%w: %v", ErrCommand, c)
		}
		if err != nil {
			return sectionError(Header{Type: t}, start, err)
		}
		rec.Command = c
		PutCommand(l.w, c)
	case t == SectionFull:
		h, err := ReadHeader(t, r)
		rec.Header = h
		h.Put(l.w)
		if err == nil {
			err = l.body(&rec)
		}
		if err == nil {
			err = ReadFooter(r, h.ID)
			PutFooter(l.w, h.ID)
		}
		if err != nil {
			return sectionError(h, start, err)
		}
	default:
		return streamError(start, fmt.Errorf("%w %d", ErrSectionType, byte(t)))
	}
	rec.Length = r.Offset() - start
	l.records = append(l.records, rec)
	return l.w.Flush()
}

// body reads the body of a section, and keeps it if there is room.
func (l *largeTail) body(rec *Record) error {
	var kept bytes.Buffer
	err := l.s.SkipLive(rec.Header, l.r, func(p []byte) {
		l.w.Write(p)
		l.w.Flush()
		rec.BodyLength += int64(len(p))
		if rec.Elided = rec.Elided || uint64(rec.BodyLength) > l.room; rec.Elided {
			kept = bytes.Buffer{}
			return
		}
		kept.Write(p)
	})
	if !rec.Elided {
		rec.Body = kept.Bytes()
		l.room -= uint64(len(rec.Body))
	}
	return err
}

// chunkWriter makes a function an io.Writer.
type chunkWriter func([]byte)

func (w chunkWriter) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}
