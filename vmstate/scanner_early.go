package vmstate

import (
	"bytes"

	"github.com/gocolo/lockstep/qemufile"
)

// maxEarly bounds the early devices of a stream, in bytes: what a Reader can
// always look ahead.
const maxEarly = 64 << 10

// earlyLength looks ahead from a FULL section: if a live section begins behind a
// footer, what comes before it are early devices, and their length is returned.
// Otherwise it is 0. Nothing is consumed.
func (s *Scanner) earlyLength(r *qemufile.Reader) int {
	if s.ended || s.NoFooters {
		return 0
	}
	look := earlySearch{s: s, tries: maxEarlyTries}
	for n := 1; n <= maxEarly && !look.done; {
		p := r.Peek(max(n, min(r.Buffered(), maxEarly)))
		end := len(p) < n // of the stream
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
	tries   int
	settled int // it does not begin before here
	done    bool
	length  int // what was found
}

// in goes on in p, which has grown. Where more of p may tell more, it stops,
// unless p is all there will be.
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
			// Do not wait for what comes behind the description.
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
	// maxEarlyTries bounds the work on what only looks like early devices.
	maxEarlyTries = 8
	// maxHeader is the longest header of a section.
	maxHeader = 1 + 4 + 1 + 255 + 4 + 4
)

// describes reports whether a description begins with p, as far as p goes.
func describes(p []byte) bool {
	return len(p) >= 7 && SectionType(p[0]) == Description && string(p[5:7]) == `{"`
}

// earlySections reads n bytes of early devices.
func (s *Scanner) earlySections(r *qemufile.Reader, n int) error {
	start := r.Offset()
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

// describeEarly tells what the early devices are, now that it is known.
func (s *Scanner) describeEarly(d *VMDesc) {
	for i := range s.early {
		rec := &s.early[i]
		rec.Desc, rec.Misfit = nil, nil
		if dev := d.Find(rec.Header.Name, rec.Header.Instance); dev == nil {
			rec.Misfit = undescribed(rec.Header, len(rec.Body))
		} else if rec.Misfit = dev.fits(len(rec.Body)); rec.Misfit == nil {
			rec.Desc = dev
		}
		if s.Described != nil {
			s.Described(rec)
		}
	}
}
