package qemufile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// readBuffer bounds what a Reader reads ahead. Pages are copied out of it, so
	// it has to stay in the second-level cache; see BenchmarkReaderPages.
	readBuffer = 128 << 10

	// firstBuffer is the first size of the buffer of a Reader or a Writer. The buffer grows when
	// more comes at a time: of the streams of a host with hundreds of guests most are idle.
	firstBuffer = 4 << 10

	// directRead is the length from which a read that finds the buffer empty
	// goes straight to its destination.
	directRead = 32 << 10

	// bytesChunk is how much memory Bytes takes on the word of a peer before
	// the bytes themselves have arrived.
	bytesChunk = 64 << 10
)

// A Reader takes the values of a migration stream from an [io.Reader].
//
// It reads ahead as much as its source has ready, but it never waits for more
// than was asked of it. The first error sticks: later reads give zero values
// and leave the offset where it is.
//
// A Reader belongs to one goroutine at a time.
type Reader struct {
	src     io.Reader // nil when reading memory
	own     []byte    // the buffer, while buf is a caller's memory
	buf     []byte
	r, w    int   // buf[r:w] is read ahead
	base    int64 // offset of buf[0] in the stream
	err     error // the first error, which sticks
	pending error // the source's error, met while reading ahead
	full    bool  // the source has filled the buffer: it may have more than there is room for
}

// NewReader returns a Reader of src. The caller goes on owning src: a Reader
// never closes it.
func NewReader(src io.Reader) *Reader {
	return &Reader{src: src, buf: make([]byte, firstBuffer)}
}

// Reset makes r read src from offset 0 and forgets everything else, its sticky
// error included. It keeps the buffer.
func (r *Reader) Reset(src io.Reader) {
	buf := r.buf
	if r.src == nil {
		buf = r.own
	}
	if len(buf) == 0 {
		buf = make([]byte, firstBuffer)
	}
	*r = Reader{src: src, buf: buf}
}

// ResetBytes makes r read p from offset 0. The memory is used in place and must
// not change while r reads it; a view that r returns is a part of p.
// The zero Reader followed by ResetBytes reads memory without a buffer.
func (r *Reader) ResetBytes(p []byte) {
	own := r.own
	if r.src != nil {
		own = r.buf
	}
	*r = Reader{own: own, buf: p, w: len(p), pending: io.EOF}
}

// Byte reads one byte.
func (r *Reader) Byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

// BE16 reads a big-endian 16-bit integer.
func (r *Reader) BE16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

// BE32 reads a big-endian 32-bit integer.
func (r *Reader) BE32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// BE64 reads a big-endian 64-bit integer.
func (r *Reader) BE64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// CountedString reads a string that is preceded by its length in one byte.
func (r *Reader) CountedString() string { return string(r.CountedBytes()) }

// CountedBytes reads what [Reader.CountedString] reads, as a view that is valid
// until the next call. It is nil on error and empty for an empty string.
func (r *Reader) CountedBytes() []byte {
	n := r.take(1)
	if n == nil {
		return nil
	}
	b := r.take(int(n[0]))
	if b == nil {
		r.err = NoEOF(r.err)
	}
	return b
}

// ReadFull fills p. Its error is io.EOF if the stream ended before the first
// byte and io.ErrUnexpectedEOF if it ended after it, both within an [Error].
func (r *Reader) ReadFull(p []byte) error {
	if r.err != nil {
		return r.err
	}
	n := copy(p, r.buf[r.r:r.w])
	r.r += n
	for n < len(p) {
		if r.pending != nil {
			return r.failed(n)
		}
		r.rewind()
		if rest := p[n:]; len(rest) >= min(directRead, len(r.buf)) {
			m := r.read(rest)
			r.base += int64(m)
			n += m
			continue
		}
		r.ahead()
		m := copy(p[n:], r.buf[:r.w])
		r.r = m
		n += m
	}
	return nil
}

// Bytes reads n bytes into fresh memory, which the caller may keep. A length n that
// the peer chose is bounded by max, beyond which the Reader fails with
// [ErrTooLong]; and even below it memory is taken only as the bytes arrive.
func (r *Reader) Bytes(n, max uint64) []byte {
	if r.err != nil {
		return nil
	}
	if n > max {
		r.fail(fmt.Errorf("%d bytes where at most %d are allowed: %w", n, max, ErrTooLong))
		return nil
	}
	if n <= bytesChunk {
		p := make([]byte, n)
		if r.ReadFull(p) != nil {
			return nil
		}
		return p
	}
	p := make([]byte, 0, bytesChunk)
	for uint64(len(p)) < n {
		if len(p) == cap(p) {
			// Doubling, by hand: what was read bounds what is taken next.
			grown := make([]byte, len(p), min(n, 2*uint64(cap(p))))
			copy(grown, p)
			p = grown
		}
		got := len(p)
		p = p[:cap(p)]
		if r.ReadFull(p[got:]) != nil {
			if got > 0 {
				r.err = NoEOF(r.err)
			}
			return nil
		}
	}
	return p
}

// Next consumes n bytes and returns them as a view which is valid until the
// next call of any method. It is nil on error. The view cannot be longer than
// the read buffer (at least 64 KiB): a larger n fails with [ErrTooLong].
func (r *Reader) Next(n int) []byte { return r.take(n) }

// Peek returns up to n bytes without consuming them, as a view that is valid
// until the next call. It waits for n bytes and returns fewer only where the
// stream ends or fails; the failure itself is met by the next read. It returns
// at most a buffer full.
func (r *Reader) Peek(n int) []byte {
	if r.err != nil || n <= 0 {
		return nil
	}
	if r.w-r.r < n {
		r.fill(min(n, r.most()))
	}
	return r.buf[r.r:min(r.w, r.r+n)]
}

// PeekByte returns the next byte without consuming it; ok is false where the
// stream ends or fails. [Reader.Failure] tells which.
func (r *Reader) PeekByte() (b byte, ok bool) {
	if p := r.Peek(1); len(p) == 1 {
		return p[0], true
	}
	return 0, false
}

// Failure tells the two ways apart in which PeekByte finds nothing: it returns the error where
// the stream fails, and nil where it has come to its end. It consumes nothing, and returns nil
// where a byte follows.
func (r *Reader) Failure() error {
	if _, more := r.PeekByte(); more {
		return nil
	}
	if err := r.failed(0); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// Skip consumes n bytes. Many of them are not read where the source is an
// io.Seeker, such as a file: holes in it cost nothing.
func (r *Reader) Skip(n uint64) {
	var sought uint64
	if n > seekFrom+uint64(r.w-r.r) && r.err == nil && r.pending == nil {
		sought = r.seek(n)
		n -= sought
	}
	for skipped := sought > 0; n > 0 && r.err == nil; skipped = true {
		if r.r == r.w && !r.fill(1) {
			r.failed(0)
			if skipped {
				r.err = NoEOF(r.err)
			}
			return
		}
		m := min(n, uint64(r.w-r.r))
		r.r += int(m)
		n -= m
	}
}

// Unread puts back p, the bytes that were consumed last: they are read again,
// and Offset is before them. The Reader keeps p, which must not change, until it
// has been read. It does nothing after an error.
func (r *Reader) Unread(p []byte) {
	if r.err != nil || len(p) == 0 {
		return
	}
	if len(p) <= r.r && &p[0] == &r.buf[r.r-len(p)] {
		r.r -= len(p) // they are still there
		return
	}
	at := r.Offset() - int64(len(p))
	ahead := append([]byte(nil), r.buf[r.r:r.w]...)
	rest := r.src
	if pending := r.pending; rest == nil || pending != nil {
		rest = &failing{err: pending}
	}
	buf := r.own
	if r.src != nil {
		buf = r.buf
	}
	if len(buf) == 0 {
		buf = make([]byte, firstBuffer)
	}
	*r = Reader{src: io.MultiReader(bytes.NewReader(p), bytes.NewReader(ahead), rest), buf: buf, base: at}
}

// failing is a source that has failed already.
type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

// seekFrom is the length from which a skip beyond what is buffered seeks.
const seekFrom = 1 << 20

// seek skips up to n bytes, what is buffered among them, by moving the source, and
// returns how many. It does not go beyond the source's end.
func (r *Reader) seek(n uint64) uint64 {
	s, ok := r.src.(io.Seeker)
	if !ok {
		return 0
	}
	at, err := s.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0 // a pipe
	}
	end, err := s.Seek(0, io.SeekEnd)
	if err != nil {
		return 0
	}
	buffered := uint64(r.w - r.r)
	ahead := min(n-buffered, uint64(max(end-at, 0)))
	if _, err := s.Seek(at+int64(ahead), io.SeekStart); err != nil {
		r.pending = err
		return 0
	}
	r.r = r.w
	r.rewind()
	r.base += int64(ahead)
	return buffered + ahead
}

// Offset returns the number of bytes consumed.
func (r *Reader) Offset() int64 { return r.base + int64(r.r) }

// Buffered returns the number of bytes that can be read without asking the
// source.
func (r *Reader) Buffered() int { return r.w - r.r }

// Fail makes err the sticky error, unless there is one or err is nil.
func (r *Reader) Fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// Err returns the first error. An end of the stream is io.EOF between values
// and io.ErrUnexpectedEOF inside one; test with errors.Is.
func (r *Reader) Err() error { return r.err }

// take consumes n bytes of the buffer, filling it as needed.
func (r *Reader) take(n int) []byte {
	if r.err != nil {
		return nil
	}
	if r.w-r.r < n && !r.need(n) {
		return nil
	}
	b := r.buf[r.r : r.r+n : r.r+n]
	r.r += n
	return b
}

// need fills the buffer up to n bytes or fails.
func (r *Reader) need(n int) bool {
	if r.src != nil && n > r.most() {
		r.fail(fmt.Errorf("%d bytes at once: %w", n, ErrTooLong))
		return false
	}
	if r.fill(n) {
		return true
	}
	r.failed(r.w - r.r)
	return false
}

// fill reads until n bytes are in the buffer, and reports whether they are.
func (r *Reader) fill(n int) bool {
	if r.pending != nil {
		return r.w-r.r >= n
	}
	if r.r == r.w {
		r.rewind()
	}
	if len(r.buf)-r.r < n {
		to := r.buf
		if n > len(to) {
			to = make([]byte, larger(len(to), n, readBuffer))
		}
		r.base += int64(r.r)
		r.w = copy(to, r.buf[r.r:r.w])
		r.r, r.buf = 0, to
	}
	for r.w-r.r < n {
		if r.pending != nil {
			return false
		}
		r.ahead()
	}
	return true
}

// most returns how much can be in the buffer.
func (r *Reader) most() int {
	if r.src == nil {
		return len(r.buf)
	}
	return readBuffer
}

// ahead reads what the source has, as far as there is room in the buffer.
func (r *Reader) ahead() {
	r.w += r.read(r.buf[r.w:])
	r.full = r.w == len(r.buf)
}

// rewind makes the whole of the empty buffer available for reading ahead. If the last read
// has filled the buffer, so that the source may have more, it first takes a larger one.
func (r *Reader) rewind() {
	r.base += int64(r.r)
	r.r, r.w = 0, 0
	if r.full && r.src != nil && len(r.buf) < readBuffer {
		r.buf = make([]byte, larger(len(r.buf), 0, readBuffer))
	}
	r.full = false
}

// larger returns the size of the buffer that takes the place of one of n bytes: four times
// as much, again and again until want bytes fit, and at most most.
func larger(n, want, most int) int {
	n = max(4*n, firstBuffer)
	for n < want {
		n *= 4
	}
	return min(n, most)
}

// read reads from the source once, or again if that returns neither bytes nor
// an error. It keeps an error in pending, until the bytes before it have been
// consumed.
func (r *Reader) read(p []byte) int {
	for range 100 {
		n, err := r.src.Read(p)
		if n < 0 || n > len(p) {
			r.pending = fmt.Errorf("reader returned %d of %d bytes", n, len(p))
			return 0
		}
		if err != nil {
			r.pending = err
		}
		if n > 0 || err != nil {
			return n
		}
	}
	r.pending = io.ErrNoProgress
	return 0
}

// failed makes the source's error sticky. have is how much of the wanted value
// had arrived.
func (r *Reader) failed(have int) error {
	err := r.pending
	if err == io.EOF && have > 0 {
		err = io.ErrUnexpectedEOF
	}
	r.fail(err)
	return r.err
}

func (r *Reader) fail(err error) {
	if r.err == nil {
		r.err = &Error{Op: "read", Offset: r.Offset(), Err: err}
	}
}
