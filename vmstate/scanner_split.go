package vmstate

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// splitDescribed cuts device sections by a description that must fit exactly: it has the
// same devices in the same order, and EOF follows the last. Each record takes one of work,
// which is how many may still be looked at.
func (s *Scanner) splitDescribed(state []byte, base int64, devices *VMDesc, noFooters bool, work *int) ([]Record, bool) {
	var r qemufile.Reader
	r.ResetBytes(state)
	if !s.describesEarly(devices) {
		return nil, false
	}
	records := make([]Record, 0, min(len(devices.Devices), maxSections)+2)
	next := len(s.early)
	for {
		if *work--; *work < 0 || len(records) > maxSections {
			return nil, false
		}
		start := r.Offset()
		switch SectionType(r.Byte()) {
		case EOF:
			if r.Err() != nil || r.Buffered() > 0 || next != len(devices.Devices) {
				return nil, false
			}
			return append(records, Record{Offset: base + start, Length: 1, Type: EOF}), true
		case CommandRecord:
			c, err := ReadCommand(&r)
			if err != nil || c.Type == CommandPackaged {
				return nil, false
			}
			records = append(records, Record{Offset: base + start, Length: r.Offset() - start, Type: CommandRecord, Command: c})
		case SectionFull:
			h, err := ReadHeader(SectionFull, &r)
			if err != nil || next == len(devices.Devices) {
				return nil, false
			}
			d := &devices.Devices[next]
			next++
			n := d.Len()
			if d.Name != h.Name || d.Instance != h.Instance || d.Broken != nil || n < 0 || n > int64(r.Buffered()) {
				return nil, false
			}
			body := r.Next(int(n))
			if !noFooters && ReadFooter(&r, h.ID) != nil {
				return nil, false
			}
			rec := fullRecord(h, base+start, r.Offset()-start, body)
			rec.Desc, rec.NoFooter = d, noFooters
			records = append(records, rec)
		default:
			return nil, false
		}
	}
}

func fullRecord(h Header, offset, length int64, body []byte) Record {
	return Record{Offset: offset, Length: length, Type: SectionFull, Header: h, Body: body, BodyLength: int64(len(body))}
}

// split cuts device sections and commands without such a description. The end of a section
// is guessed: first by the length that Devices gives, then at each footer with the right
// id; the first guess after which the rest can be cut too is taken. If there is none, it
// returns an error, and the sections before the fault, cut as well as possible.
func (s *Scanner) split(state []byte, base int64, until ending) ([]Record, error) {
	c := s.cutter(state, base, until, s.NoFooters)
	if c.run(false) {
		return c.records, nil
	}
	return c.plain(), c.failure()
}

// cutter returns a cutter of state.
func (s *Scanner) cutter(state []byte, base int64, until ending, noFooters bool) *cutter {
	return &cutter{s: s, devices: s.Devices, state: state, base: base, until: until, noFooters: noFooters}
}

// An ending says what comes after the last of the sections that are to be split.
type ending int

const (
	untilEOF     ending = iota // a device state
	untilRun                   // a nested stream: RUN or EOF
	untilLimit                 // early sections: whatever comes next was cut off
	untilPadding               // a device state; zeros may follow
)

// maxSections bounds the depth of a cutter's recursion.
const maxSections = 1 << 14

// lengthOf is a description of a device, and what it adds up to, which is summed once: a stream
// may have many sections of a device whose description is long.
type lengthOf struct {
	*DeviceDesc
	n int64 // as Len returns it
}

type cutter struct {
	s         *Scanner
	devices   *VMDesc // may be nil, and may be wrong
	index     map[Alias]lengthOf
	state     []byte
	base      int64
	until     ending
	noFooters bool
	guess     bool // the end of a section may be guessed by the next header
	records   []Record
	dead      []uint64 // bitmap of positions from which no cut leads to the end
	budget    int      // how many bytes may still be looked at
	furthest  int      // the greatest position at which a cut has failed
	err       error    // what went wrong there
	end       int      // behind EOF
	footless  error    // the first section whose footer is not there, in a guess
}

// run cuts all of the state and reports whether that succeeds. With guess, a section may
// also end where the next header, or EOF, seems to be.
func (c *cutter) run(guess bool) bool {
	c.guess = guess
	c.records, c.furthest, c.err, c.footless = nil, 0, nil, nil
	c.dead = make([]uint64, len(c.state)/64+1)
	c.budget = 64*len(c.state) + 1<<20
	if !c.cut(0) {
		return false
	}
	for i := range c.records {
		c.judge(&c.records[i])
	}
	return true
}

// judge compares the section with its description, and sets Desc or Misfit.
func (c *cutter) judge(rec *Record) {
	if rec.Type != SectionFull {
		return
	}
	if rec.NoFooter && !c.noFooters && c.footless == nil {
		c.footless = sectionError(rec.Header, rec.Offset, fmt.Errorf("%w is missing", ErrFooter))
	}
	rec.Guessed = rec.NoFooter
	if c.devices == nil {
		return
	}
	d := c.find(rec.Header)
	if d.DeviceDesc == nil {
		rec.Misfit = undescribed(rec.Header, len(rec.Body))
		return
	}
	if rec.Misfit = d.misfit(d.n, len(rec.Body)); rec.Misfit == nil {
		rec.Desc, rec.Guessed = d.DeviceDesc, false
	}
}

// find does what Devices.Find does, in constant time.
func (c *cutter) find(h Header) lengthOf {
	if c.index == nil {
		c.index = make(map[Alias]lengthOf, len(c.devices.Devices))
		for i := range c.devices.Devices {
			d := &c.devices.Devices[i]
			if key := (Alias{d.Name, d.Instance}); c.index[key].DeviceDesc == nil {
				c.index[key] = lengthOf{d, d.Len()}
			}
		}
	}
	return c.index[Alias{h.Name, h.Instance}]
}

// failure returns the error of a run that did not succeed.
func (c *cutter) failure() error {
	err := c.err
	if err == nil {
		err = fmt.Errorf("%w: sections cannot be told apart", ErrDescription)
	}
	return streamError(c.base+int64(c.furthest), err)
}

// plain cuts a state that cannot be cut to its end: each section ends where its
// description says, or at its first footer after which something can begin. So an
// inspector sees what a broken stream has before the fault.
func (c *cutter) plain() []Record {
	c.records = nil
	for at := 0; len(c.records) < maxSections; {
		var r qemufile.Reader
		r.ResetBytes(c.state[at:])
		if t := SectionType(r.Byte()); t != SectionFull || c.noFooters {
			break
		}
		h, err := ReadHeader(SectionFull, &r)
		if err != nil {
			break
		}
		body := at + int(r.Offset())
		end := c.described(h, body)
		after := end + 5
		if end >= 0 {
			r.ResetBytes(c.state[end:])
		}
		if end < 0 || ReadFooter(&r, h.ID) != nil {
			if end, after = c.footer(h.ID, body); end < 0 {
				break
			}
		}
		rec := fullRecord(h, c.base+int64(at), int64(after-at), c.state[body:end])
		c.judge(&rec)
		c.records = append(c.records, rec)
		at = after
	}
	return c.records
}

// described returns where the body of a section ends according to its description; -1
// without one.
func (c *cutter) described(h Header, body int) (end int) {
	if c.devices == nil {
		return -1
	}
	d := c.find(h)
	if d.DeviceDesc == nil || d.Broken != nil {
		return -1
	}
	if d.n >= 0 && d.n <= int64(len(c.state)-body) {
		return body + int(d.n)
	}
	return -1
}

// footer finds the first footer of a section behind which the stream ends or
// something can begin; end is -1 if there is none.
func (c *cutter) footer(id uint32, body int) (end, after int) {
	footer := binary.BigEndian.AppendUint32([]byte{byte(Footer)}, id)
	for end = body; ; end++ {
		i := bytes.Index(c.state[end:], footer)
		if i < 0 {
			return -1, 0
		}
		end += i
		after = end + len(footer)
		if after == len(c.state) || c.state[after] == byte(EOF) || c.state[after] == byte(SectionFull) {
			return end, after
		}
	}
}

// cut cuts state[at:] and reports whether that succeeds.
func (c *cutter) cut(at int) bool {
	if c.dead[at>>6]>>(at&63)&1 != 0 || len(c.records) > maxSections {
		return false
	}
	mark := len(c.records)
	if c.next(at) {
		return true
	}
	c.records = c.records[:mark]
	c.dead[at>>6] |= 1 << (at & 63)
	return false
}

func (c *cutter) wrong(at int, err error) bool {
	if at >= c.furthest {
		c.furthest, c.err = at, withoutOffset(err)
	}
	return false
}

func (c *cutter) next(at int) bool {
	if c.until == untilLimit && at == len(c.state) {
		return true
	}
	var r qemufile.Reader
	r.ResetBytes(c.state[at:])
	offset := c.base + int64(at)
	switch t := SectionType(r.Byte()); {
	case r.Err() != nil:
		return c.wrong(at, qemufile.NoEOF(r.Err()))
	case t == EOF && c.until != untilLimit:
		if n := r.Buffered(); n > 0 && (c.until != untilPadding || !allZero(c.state[at:])) {
			return c.wrong(at, fmt.Errorf("%d %w", n, ErrTrailing))
		}
		c.records = append(c.records, Record{Offset: offset, Length: 1, Type: EOF})
		c.end = at + 1
		return true
	case t == CommandRecord:
		cmd, err := ReadCommand(&r)
		if err != nil {
			return c.wrong(at, err)
		}
		if cmd.Type == CommandPackaged {
			return c.wrong(at, fmt.Errorf("%w: %v inside %v", ErrCommand, cmd, cmd))
		}
		n := int(r.Offset())
		c.records = append(c.records, Record{Offset: offset, Length: int64(n), Type: CommandRecord, Command: cmd})
		if c.until == untilRun && cmd.Type == CommandPostcopyRun && r.Buffered() == 0 {
			return true
		}
		return c.cut(at + n)
	case t == SectionFull:
		h, err := ReadHeader(t, &r)
		if err != nil {
			return c.wrong(at, err)
		}
		return c.full(h, at, at+int(r.Offset()))
	default:
		return c.wrong(at, fmt.Errorf("%w %d", ErrSectionType, byte(t)))
	}
}

func allZero(p []byte) bool { return len(bytes.TrimLeft(p, "\x00")) == 0 }

// full tries the ends that a section may have.
func (c *cutter) full(h Header, at, body int) bool {
	tried := c.described(h, body)
	if tried >= 0 && c.ends(h, at, body, tried, c.noFooters) {
		return true
	}
	if !c.noFooters {
		footer := binary.BigEndian.AppendUint32([]byte{byte(Footer)}, h.ID)
		for end := body; ; end++ {
			i := bytes.Index(c.state[end:], footer)
			if i < 0 {
				c.wrong(body, fmt.Errorf("%w of %s is missing", ErrFooter, h))
				break
			}
			if c.budget -= i + 1; c.budget < 0 {
				return c.wrong(body, fmt.Errorf("%w: too many ways to cut %s", ErrDescription, h))
			}
			if end += i; end != tried && c.ends(h, at, body, end, false) {
				return true
			}
		}
	}
	if !c.guess {
		return c.noFooters && c.wrong(body, fmt.Errorf("%w: nothing tells the length of %s", ErrDescription, h))
	}
	if tried >= 0 && !c.noFooters && c.ends(h, at, body, tried, true) {
		return true
	}
	for end := body; end < len(c.state); end++ {
		i := bytes.IndexByte(c.state[end:], byte(SectionFull))
		if i < 0 {
			break
		}
		if c.budget -= i + 1; c.budget < 0 {
			break
		}
		if end += i; end != tried && c.headerAt(end) && c.ends(h, at, body, end, true) {
			return true
		}
	}
	if last := len(c.state) - 1; c.until != untilLimit && last >= body && SectionType(c.state[last]) == EOF {
		return c.ends(h, at, body, last, true)
	}
	return c.wrong(body, fmt.Errorf("%w: nothing tells the length of %s", ErrDescription, h))
}

// headerAt reports whether the bytes at a position look like the header of a section.
func (c *cutter) headerAt(at int) bool {
	var r qemufile.Reader
	r.ResetBytes(c.state[at+1:])
	h, err := ReadHeader(SectionFull, &r)
	return err == nil && h.likely()
}

// likely reports whether a header that was found by its looks is probably one.
func (h Header) likely() bool {
	if h.ID >= 1<<16 || h.Version >= 1<<16 || len(h.Name) < 2 {
		return false
	}
	for _, c := range []byte(h.Name) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

// ends tries one end of a section's body.
func (c *cutter) ends(h Header, at, body, end int, noFooter bool) bool {
	after := end
	if !noFooter {
		var r qemufile.Reader
		r.ResetBytes(c.state[end:])
		if err := ReadFooter(&r, h.ID); err != nil {
			return c.wrong(end, err)
		}
		after += 5
	}
	mark := len(c.records)
	rec := fullRecord(h, c.base+int64(at), int64(after-at), c.state[body:end])
	rec.NoFooter = noFooter
	c.records = append(c.records, rec)
	if c.cut(after) {
		return true
	}
	c.records = c.records[:mark]
	return false
}
