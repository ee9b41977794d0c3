package vmstate

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// splitDescribed cuts device sections by a description that must fit exactly:
// the same devices in the same order, and EOF.
func (s *Scanner) splitDescribed(state []byte, base int64, devices *VMDesc) ([]Record, bool) {
	var r qemufile.Reader
	r.ResetBytes(state)
	records := make([]Record, 0, len(devices.Devices)+2)
	if !s.describesEarly(devices) {
		return nil, false
	}
	next := len(s.early)
	for {
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
			if d.Name != h.Name || d.Instance != h.Instance || n < 0 || n > int64(r.Buffered()) {
				return nil, false
			}
			body := r.Next(int(n))
			if !s.NoFooters && ReadFooter(&r, h.ID) != nil {
				return nil, false
			}
			records = append(records, s.full(h, base+start, r.Offset()-start, body, d))
		default:
			return nil, false
		}
	}
}

func (s *Scanner) full(h Header, offset, length int64, body []byte, d *DeviceDesc) Record {
	return Record{Offset: offset, Length: length, Type: SectionFull, Header: h, Body: body, Desc: d, NoFooter: s.NoFooters}
}

// split cuts device sections and commands without a description that must fit.
// Bounds of a section are guessed: first the length that Devices gives, then
// each footer of the right id, and the first guess that lets the rest be cut as
// well wins. With an error come the sections before it, cut as well as that can
// be done.
func (s *Scanner) split(state []byte, base int64, until ending) ([]Record, error) {
	c := cutter{s: s, state: state, base: base, until: until, dead: make(map[int]bool), budget: 64*len(state) + 1<<20}
	if c.cut(0) {
		return c.records, nil
	}
	err := c.err
	if err == nil {
		err = fmt.Errorf("%w: sections cannot be told apart", ErrDescription)
	}
	return c.plain(), streamError(base+int64(c.furthest), err)
}

// An ending is where sections that are to be split end; nothing may follow.
type ending int

const (
	untilEOF   ending = iota // a device state
	untilRun                 // a nested stream: RUN or EOF
	untilLimit               // early sections: whatever comes next was cut off
)

// plain cuts what cannot be cut to the end: each section ends where its
// description says, or at its first footer that something follows. What a broken
// stream has before the break is worth seeing.
func (c *cutter) plain() []Record {
	c.records = nil
	for at := 0; len(c.records) < maxSections; {
		var r qemufile.Reader
		r.ResetBytes(c.state[at:])
		if t := SectionType(r.Byte()); t != SectionFull || c.s.NoFooters {
			break
		}
		h, err := ReadHeader(SectionFull, &r)
		if err != nil {
			break
		}
		body := at + int(r.Offset())
		d, end := c.described(h, body)
		after := end + 5
		if end >= 0 {
			r.ResetBytes(c.state[end:])
		}
		if end < 0 || ReadFooter(&r, h.ID) != nil {
			d = nil
			if end, after = c.footer(h.ID, body); end < 0 {
				break
			}
		}
		c.records = append(c.records, c.s.full(h, c.base+int64(at), int64(after-at), c.state[body:end], d))
		at = after
	}
	return c.records
}

// described returns the description that a section had in the initial migration
// and where its body then ends; nil and -1 without one.
func (c *cutter) described(h Header, body int) (d *DeviceDesc, end int) {
	if c.s.Devices == nil {
		return nil, -1
	}
	if d = c.s.Devices.Find(h.Name, h.Instance); d == nil {
		return nil, -1
	}
	if n := d.Len(); n >= 0 && n <= int64(len(c.state)-body) {
		return d, body + int(n)
	}
	return nil, -1
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

// maxSections bounds the depth of a cutter's recursion.
const maxSections = 1 << 14

type cutter struct {
	s        *Scanner
	state    []byte
	base     int64
	until    ending
	records  []Record
	dead     map[int]bool // positions from which nothing leads to the end
	budget   int          // bytes that may still be looked at
	furthest int
	err      error // what went wrong there
}

// cut cuts state[at:] and reports whether that works out.
func (c *cutter) cut(at int) bool {
	if c.dead[at] || len(c.records) > maxSections {
		return false
	}
	mark := len(c.records)
	if c.next(at) {
		return true
	}
	c.records = c.records[:mark]
	c.dead[at] = true
	return false
}

func (c *cutter) wrong(at int, err error) bool {
	if e, ok := err.(*qemufile.Error); ok {
		err = e.Err // its offset is not the stream's
	}
	if at >= c.furthest {
		c.furthest, c.err = at, err
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
		if n := r.Buffered(); n > 0 {
			return c.wrong(at, fmt.Errorf("%d %w", n, ErrTrailing))
		}
		c.records = append(c.records, Record{Offset: offset, Length: 1, Type: EOF})
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

// full tries the ends that a section may have.
func (c *cutter) full(h Header, at, body int) bool {
	d, tried := c.described(h, body)
	if d != nil && c.ends(h, at, body, tried, d) {
		return true
	}
	if c.s.NoFooters {
		return c.wrong(body, fmt.Errorf("%w: nothing tells the length of %s", ErrDescription, h))
	}
	footer := binary.BigEndian.AppendUint32([]byte{byte(Footer)}, h.ID)
	for end := body; ; end++ {
		i := bytes.Index(c.state[end:], footer)
		if i < 0 {
			return c.wrong(body, fmt.Errorf("%w of %s is missing", ErrFooter, h))
		}
		if c.budget -= i + 1; c.budget < 0 {
			return c.wrong(body, fmt.Errorf("%w: too many ways to cut %s", ErrDescription, h))
		}
		if end += i; end != tried && c.ends(h, at, body, end, nil) {
			return true
		}
	}
}

// ends tries one end of a section's body.
func (c *cutter) ends(h Header, at, body, end int, d *DeviceDesc) bool {
	after := end
	if !c.s.NoFooters {
		var r qemufile.Reader
		r.ResetBytes(c.state[end:])
		if err := ReadFooter(&r, h.ID); err != nil {
			return c.wrong(end, err)
		}
		after += 5
	}
	mark := len(c.records)
	c.records = append(c.records, c.s.full(h, c.base+int64(at), int64(after-at), c.state[body:end], d))
	if c.cut(after) {
		return true
	}
	c.records = c.records[:mark]
	return false
}
