package vmstate

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// SkipLive skips the body of a live section whose device is unknown; a Live function calls
// it. The body has no length. Its end is guessed: it is taken to be at the first footer of
// the section after which a record of the stream begins, or, in a stream without footers,
// where the header of a section seems to begin, which is a worse guess. The skipped bytes
// go to body, if that is not nil, as views that are valid during the call. Memory is
// constant; more than MaxSkip bytes are refused with [qemufile.ErrTooLong].
func (s *Scanner) SkipLive(h Header, r *qemufile.Reader, body func([]byte)) error {
	if s.NoFooters {
		return s.skipFootless(h, r, body)
	}
	footer := binary.BigEndian.AppendUint32([]byte{byte(Footer)}, h.ID)
	limit := s.skipLimit()
	take := func(n int) {
		if p := r.Next(n); body != nil && len(p) > 0 {
			body(p)
		}
	}
	for start := r.Offset(); ; {
		if uint64(r.Offset()-start) > limit {
			return fmt.Errorf("unknown device %s/%d: %w", h.Name, h.Instance, qemufile.ErrTooLong)
		}
		const head = 5 + 1 // a footer, and the type of what follows
		p := r.Peek(max(head, r.Buffered()))
		if len(p) < head {
			r.Skip(head) // fails, since the stream ends
			return qemufile.NoEOF(r.Err())
		}
		i := bytes.Index(p, footer)
		if i < 0 || i+head > len(p) {
			// The footer may begin in the last bytes of p.
			take(len(p) - head + 1)
			continue
		}
		take(i)
		if s.begins(follows(r, len(footer))) {
			return nil
		}
		take(1)
	}
}

// skipFootless does what SkipLive does, for a stream without footers.
func (s *Scanner) skipFootless(h Header, r *qemufile.Reader, body func([]byte)) error {
	for start := r.Offset(); ; {
		if limit := s.skipLimit(); uint64(r.Offset()-start) > limit {
			return fmt.Errorf("unknown device %s/%d: %w", h.Name, h.Instance, qemufile.ErrTooLong)
		}
		p := r.Peek(2 * maxHeader)
		n := len(p)
		for i := range p {
			if s.seemsToBegin(p[i:]) {
				n = i
				break
			}
			if len(p) == 2*maxHeader && i == maxHeader {
				n = i // the decision about the rest needs more bytes
				break
			}
		}
		if n == len(p) {
			r.Skip(uint64(n) + 1) // the stream ends here
			return fmt.Errorf("%w: nothing here reads it, nor tells its length: %w", ErrUnknownSection, qemufile.NoEOF(r.Err()))
		}
		if view := r.Next(n); body != nil && n > 0 {
			body(view)
		}
		if n < len(p) && (len(p) < 2*maxHeader || n < maxHeader) {
			return nil
		}
		if s.seemsToBegin(r.Peek(maxHeader)) {
			return nil
		}
	}
}

// seemsToBegin reports whether p begins with what looks like the header of a section.
func (s *Scanner) seemsToBegin(p []byte) bool {
	if len(p) == 0 || !s.begins(p) {
		return false
	}
	var r qemufile.Reader
	r.ResetBytes(p[1:])
	switch t := SectionType(p[0]); t {
	case SectionStart, SectionFull:
		h, err := ReadHeader(t, &r)
		return err == nil && h.likely()
	case SectionPart, SectionEnd:
		return true
	}
	return false
}

func (s *Scanner) skipLimit() uint64 {
	if s.MaxSkip == 0 {
		return s.maxState()
	}
	return s.MaxSkip
}

// follows returns the beginning of the record that starts n bytes ahead, as far
// as begins needs it. It waits for no more than such a record has.
func follows(r *qemufile.Reader, n int) []byte {
	size := 1
	switch SectionType(r.Peek(n + size)[n]) {
	case SectionStart, SectionFull:
		size = 1 + 4 + 1
		if p := r.Peek(n + size); len(p) == n+size {
			size += int(p[n+size-1]) + 4 + 4
		}
	case SectionPart, SectionEnd, CommandRecord:
		size = 1 + 4
	}
	return r.Peek(n + size)[n:]
}

// begins reports whether p begins with a whole record of the main sequence, as far as
// begins can tell by its first bytes.
func (s *Scanner) begins(p []byte) bool {
	var r qemufile.Reader
	r.ResetBytes(p)
	switch t := SectionType(r.Byte()); t {
	case EOF:
		return r.Err() == nil
	case SectionStart, SectionFull:
		h, err := ReadHeader(t, &r)
		if err != nil {
			return false
		}
		for _, c := range []byte(h.Name) {
			if c < ' ' || c > '~' {
				return false
			}
		}
		return true
	case SectionPart, SectionEnd:
		id := r.BE32()
		_, known := s.live[id]
		return r.Err() == nil && known
	case CommandRecord:
		t, n := CommandType(r.BE16()), int(r.BE16())
		return r.Err() == nil && t != CommandInvalid && int(t) < len(commands) && (commands[t].size < 0 || commands[t].size == n)
	}
	return false
}
