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

// tail reads device sections, EOF, and a description if there is one. Bytes that look like
// a description are believed to be one if it accounts for every byte of the sections
// before, or names every one of these: then footers show where the sections end that it
// does not fit. Otherwise they are believed if the stream ends without a better one.
func (s *Scanner) tail(r *qemufile.Reader) (described bool, err error) {
	t := tailScan{s: s, r: r, base: r.Offset(), tries: maxTailTries, work: maxTailWork}
	looked := 1 // state[:looked] has no description
	for {
		if _, ok := r.PeekByte(); !ok {
			break
		}
		chunk := r.Peek(r.Buffered())
		if limit := s.maxState() + s.maxDescription(); uint64(len(t.state)+len(chunk)) > limit || s.Large != nil && uint64(len(t.state)) > s.maxState() {
			if s.Large != nil {
				r.Unread(t.state)
				return s.large(r)
			}
			return false, streamError(t.base, fmt.Errorf("device sections: %w", qemufile.ErrTooLong))
		}
		t.had = len(t.state)
		t.state = append(t.state, chunk...)
		for {
			at := describedAt(t.state, looked)
			if looked = at; at+descHead > len(t.state) {
				break
			}
			n := binary.BigEndian.Uint32(t.state[at+1:])
			if uint64(n) > s.maxDescription() {
				looked++
				continue
			}
			done, described, err := t.try(at, at+5+int(n))
			if done {
				return described, err
			}
			looked++
		}
		r.Skip(uint64(len(t.state) - t.had))
		t.had = len(t.state)
	}
	return t.ended()
}

// descHead is the length of the bytes by which a description is found: type, length, and
// the beginning of its text.
const descHead = 1 + 4 + 2

// describedAt returns where a description may begin, at from or later. If too little of
// state follows a position to tell, it returns that position.
func describedAt(state []byte, from int) int {
	for ; from+descHead <= len(state); from++ {
		i := bytes.IndexByte(state[from:], byte(Description))
		if i < 0 {
			return len(state)
		}
		if from += i; from+descHead > len(state) {
			return from
		}
		if SectionType(state[from-1]) == EOF && string(state[from+5:from+7]) == `{"` {
			return from
		}
	}
	return from
}

// tailScan is a search for the description.
type tailScan struct {
	s     *Scanner
	r     *qemufile.Reader
	base  int64
	state []byte
	had   int // state[had:] is not consumed
	tries int // loose cuts that may still be tried
	work  int // records that may still be cut by a description that has to fit
	loose *looseDesc
}

// The work for bytes that only look like a description is bounded: a stream may be full of them.
const (
	maxTailTries = 8
	maxTailWork  = 1 << 22
)

// looseDesc is a description that does not account for everything.
type looseDesc struct {
	at, end int // of its record in the state
	desc    *VMDesc
	err     error // why it cannot be read, or nil
}

// try looks at state[at:end], which may be a description. If it is one, the stream is
// done.
func (t *tailScan) try(at, end int) (done, described bool, err error) {
	s, r := t.s, t.r
	if end > len(t.state) {
		// It may be one. The rest is read, and nothing beyond it.
		r.Skip(uint64(len(t.state) - t.had))
		rest := r.Bytes(uint64(end-len(t.state)), s.maxDescription())
		if r.Err() != nil {
			records, _ := s.split(t.state[:at], t.base, untilEOF)
			err := sectionError(Header{Type: Description}, t.base+int64(at), r.Err())
			return true, false, cmp.Or(s.report(records), err)
		}
		t.state = append(t.state, rest...)
		t.had = len(t.state)
	}
	text := t.state[at+5 : end]
	desc, bad := parseVMDesc(text)
	if bad == nil {
		for _, noFooters := range s.footings() {
			if records, ok := s.splitDescribed(t.state[:at], t.base, desc, noFooters, &t.work); ok {
				return true, true, t.accept(at, end, desc, records, noFooters)
			}
		}
	}
	if t.tries == 0 {
		return false, false, nil
	}
	t.tries--
	if bad != nil {
		desc, bad = RepairVMDesc(text)
	}
	c := t.cut(at, desc, false)
	if c != nil && bad == nil && s.identical(c.records, desc) {
		return true, true, cmp.Or(t.accept(at, end, desc, c.records, c.noFooters), c.footless)
	}
	if t.loose == nil || t.loose.err != nil && bad == nil {
		t.loose = &looseDesc{at: at, end: end, desc: desc, err: bad}
	}
	return false, false, nil
}

// cut returns a cutter of state[:at] with the description desc, which may be nil.
func (t *tailScan) cut(at int, desc *VMDesc, guess bool) *cutter {
	footings := t.s.footings()
	if guess && len(footings) > 1 && !t.hasFooter() {
		footings = []bool{true}
	}
	for _, noFooters := range footings {
		c := t.s.cutter(t.state[:at], t.base, untilEOF, noFooters)
		c.devices = desc
		if c.run(guess) {
			return c
		}
	}
	return nil
}

// accept reports the sections and their description, in state[at:end].
func (t *tailScan) accept(at, end int, desc *VMDesc, records []Record, noFooters bool) error {
	s := t.s
	t.r.Skip(uint64(max(end-t.had, 0)))
	s.NoFooters = noFooters
	s.Devices = desc
	s.describeEarly(desc)
	return s.report(append(records, Record{
		Offset: t.base + int64(at), Length: int64(end - at), Type: Description, Body: t.state[at+5 : end],
	}))
}

// ended reports as much as possible of a stream that ends without a description that fits.
func (t *tailScan) ended() (described bool, err error) {
	s, r := t.s, t.r
	if l := t.loose; l != nil {
		c := t.cut(l.at, l.desc, false)
		if c == nil {
			c = t.cut(l.at, l.desc, true)
		}
		if c != nil {
			err := c.footless
			switch {
			case l.err != nil:
				err = l.err
			case err == nil && !s.resembles(c.records, l.desc):
				// A stream that was cut off looks the same.
				err = fmt.Errorf("%w of other devices: %w", ErrDescription, io.ErrUnexpectedEOF)
			}
			if err != nil {
				err = sectionError(Header{Type: Description}, t.base+int64(l.at), err)
			}
			if e := t.accept(l.at, l.end, l.desc, c.records, c.noFooters); e != nil {
				return true, e
			}
			r.Unread(t.state[l.end:])
			return true, err
		}
	}
	until := untilEOF
	if s.Padding {
		until = untilPadding
	}
	// There is no description: the footers, or the looks of the bytes, have to do.
	var broken error
	for _, guess := range []bool{false, true} {
		for _, noFooters := range s.footings() {
			if guess && (!noFooters || !s.NoFooters && (!s.NoConfiguration || t.hasFooter())) {
				// Only the old machine types that lack the configuration too
				// lack footers; elsewhere, a footer that is missing means
				// that the stream was cut.
				continue
			}
			c := s.cutter(t.state, t.base, until, noFooters)
			if c.run(guess) {
				s.NoFooters = noFooters
				r.Unread(t.state[c.end:])
				return false, cmp.Or(s.report(c.records), c.footless)
			}
			if broken == nil {
				broken = c.failure()
			}
		}
	}
	records := s.cutter(t.state, t.base, until, s.NoFooters).plain()
	if r.Byte(); errors.Is(r.Err(), io.EOF) {
		// Bad sections and a cut look the same from here.
		err = fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, broken)
	} else {
		err = r.Err()
	}
	return false, cmp.Or(s.report(records), streamError(t.base+int64(len(t.state)), err))
}

// hasFooter reports whether the first section seems to have a footer.
func (t *tailScan) hasFooter() bool {
	return !t.s.NoFooters && len(t.state) > 5 && bytes.Contains(t.state[5:], append([]byte{byte(Footer)}, t.state[1:5]...))
}

// footings returns the values of NoFooters to try, in their order.
func (s *Scanner) footings() []bool {
	switch {
	case s.NoFooters:
		return []bool{true}
	case s.footed:
		return []bool{false}
	}
	return []bool{false, true}
}

// identical reports whether a description lists exactly the devices of the
// stream: the early ones and then those among records.
func (s *Scanner) identical(records []Record, d *VMDesc) bool {
	next := 0
	same := func(rec *Record) bool {
		if rec.Type != SectionFull {
			return true
		}
		if next == len(d.Devices) {
			return false
		}
		dev := &d.Devices[next]
		next++
		return dev.Name == rec.Header.Name && dev.Instance == rec.Header.Instance
	}
	for i := range s.early {
		if !same(&s.early[i]) {
			return false
		}
	}
	for i := range records {
		if !same(&records[i]) {
			return false
		}
	}
	return next == len(d.Devices)
}

// resembles reports whether a description has most of the devices of the stream. If so, a
// device that it lacks, or has under another name, is a sign of damage.
func (s *Scanner) resembles(records []Record, d *VMDesc) bool {
	listed := make(map[Alias]bool, len(d.Devices))
	for i := range d.Devices {
		listed[Alias{d.Devices[i].Name, d.Devices[i].Instance}] = true
	}
	all, known := 0, 0
	for _, list := range [][]Record{s.early, records} {
		for i := range list {
			if rec := &list[i]; rec.Type == SectionFull {
				all++
				if listed[Alias{rec.Header.Name, rec.Header.Instance}] {
					known++
				}
			}
		}
	}
	return known > 0 && 2*known >= max(all, len(listed))
}

func (s *Scanner) maxDescription() uint64 {
	if s.MaxDescription == 0 {
		return maxDescription
	}
	return s.MaxDescription
}
