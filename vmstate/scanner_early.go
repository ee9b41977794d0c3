package vmstate

import (
	"bytes"
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// maxEarly bounds the early devices of a stream, in bytes. It is as far as a Reader can
// always look ahead.
const maxEarly = 64 << 10

// earlyLength looks ahead from a FULL section. If a live section begins after a footer,
// the sections before that are early devices, and it returns their length in bytes;
// otherwise 0. It consumes nothing.
func (s *Scanner) earlyLength(r *qemufile.Reader) int {
	if s.ended || s.NoFooters {
		return 0
	}
	look := earlySearch{s: s, tries: maxEarlyTries}
	for n := 1; n <= maxEarly && !look.done; {
		p := r.Peek(max(n, min(r.Buffered(), maxEarly)))
		end := len(p) < n // the stream ends with p
		if look.in(p, end); end {
			break
		}
		n = len(p) + 1
	}
	return look.length
}

// earlySearch is a search for the first live section behind a footer.
type earlySearch struct {
	s       *Scanner
	tries   int // how many candidates for the first live section may still be tried
	settled int // the first live section does not begin before this
	done    bool
	length  int // the length of the early devices, once found
}

// in continues the search in p, which has grown. It stops where more bytes could change
// the result, unless all says that p is all of the stream.
func (e *earlySearch) in(p []byte, all bool) {
	for !e.done {
		i := bytes.IndexByte(p[e.settled:], byte(Footer))
		if i < 0 {
			e.settled = len(p)
			return
		}
		e.settled += i
		next := e.settled + 5
		if next >= len(p) {
			return
		}
		known := all || len(p)-next >= maxHeader
		switch t := SectionType(p[next]); t {
		case EOF:
			// There is no need to wait for bytes after the description.
			e.done = describes(p[next+1:])
		case SectionStart, SectionPart, SectionEnd, CommandRecord:
			if t != SectionStart && !e.s.started {
				known = true
			} else if e.s.begins(p[next:]) {
				known = true
				if _, err := e.s.split(p[:next], 0, untilLimit); err == nil {
					e.done, e.length = true, next
				} else if e.tries--; e.tries == 0 {
					e.done = true
				}
			}
		default:
			known = true
		}
		if !known {
			return
		}
		e.settled++
	}
}

const (
	// maxEarlyTries bounds the work for sections that only seem to be early devices.
	maxEarlyTries = 8
	// maxHeader is the longest header of a section.
	maxHeader = 1 + 4 + 1 + 255 + 4 + 4
)

// describes reports whether p is, as far as it goes, the beginning of a description.
func describes(p []byte) bool {
	return len(p) >= 7 && SectionType(p[0]) == Description && string(p[5:7]) == `{"`
}

// earlySections reads n bytes of early devices.
func (s *Scanner) earlySections(r *qemufile.Reader, n int) error {
	start := r.Offset()
	if s.earlies += n; s.earlies > maxEarly {
		// They are kept until the description comes, and live sections may part them.
		return streamError(start, fmt.Errorf("%d bytes of early devices, at most %d: %w", s.earlies, maxEarly, qemufile.ErrTooLong))
	}
	body := r.Bytes(uint64(n), maxEarly)
	if err := r.Err(); err != nil {
		return streamError(start, err)
	}
	records, err := s.split(body, start, untilLimit)
	if err != nil {
		return err
	}
	for _, rec := range records {
		if rec.Type == SectionFull {
			s.early = append(s.early, rec)
		}
	}
	return s.report(records)
}

// describesEarly reports whether a description begins with the early devices,
// and fits them.
func (s *Scanner) describesEarly(d *VMDesc) bool {
	if len(d.Devices) < len(s.early) {
		return false
	}
	for i := range s.early {
		rec, dev := &s.early[i], &d.Devices[i]
		if dev.Name != rec.Header.Name || dev.Instance != rec.Header.Instance || dev.fits(len(rec.Body)) != nil {
			return false
		}
	}
	return true
}

// describeEarly calls Described for the early devices, when the description has come.
func (s *Scanner) describeEarly(d *VMDesc) {
	c := cutter{devices: d}
	for i := range s.early {
		rec := &s.early[i]
		rec.Desc, rec.Misfit = nil, nil
		if dev := c.find(rec.Header); dev.DeviceDesc == nil {
			rec.Misfit = undescribed(rec.Header, len(rec.Body))
		} else if rec.Misfit = dev.misfit(dev.n, len(rec.Body)); rec.Misfit == nil {
			rec.Desc = dev.DeviceDesc
		}
		if s.Described != nil {
			s.Described(rec)
		}
	}
}
