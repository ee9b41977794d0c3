package nbd

import (
	"bufio"
	"errors"
	"io"
)

// reader reads what a peer sends. Heads and short data come by way of a buffer, many with
// one system call; the greater part of long data is read to where it belongs, since to
// copy it costs more than a system call. One goroutine at a time uses a reader.
type reader struct {
	*bufio.Reader
	src source
}

// source is the connection below the buffer of a reader.
type source struct {
	conn io.Reader
	now  func(p []byte) (int, error) // reads what is there, without waiting; nil: cannot
	poll bool                        // only what is there is to be read
	err  error                       // met by now, to be returned
	long bool                        // the data that came last was long, so that what follows the next head is too, probably
	full bool                        // the last read has filled the buffer, so that there may be more to read at a time
	last error                       // of the last read: the buffer may not have returned it yet
	kept []byte                      // what a smaller buffer had, which comes first
}

const (
	readBuffer = 64 << 10
	// firstRead is the length of the buffer until there is more to read at a time: most disks
	// are idle.
	firstRead = 16 << 10
	// longData is the length from which on data is not read by way of the buffer.
	longData = 16 << 10
	// aroundHead is how many bytes are buffered at a time while data is long: a head, and
	// as much of its data as costs little to copy.
	aroundHead = 4 << 10
)

func newReader(conn io.Reader) *reader {
	r := &reader{src: source{conn: conn, now: readNow(conn)}}
	r.Reader = bufio.NewReaderSize(&r.src, firstRead)
	return r
}

// Peek returns the next n bytes without taking them. The buffer may grow for it: slices that it
// returned before are no longer valid.
func (r *reader) Peek(n int) ([]byte, error) {
	if (r.src.full || n > r.Size()) && r.Size() < readBuffer {
		r.grow()
	}
	return r.Reader.Peek(n)
}

// grow makes the buffer as large as it becomes.
func (r *reader) grow() {
	have, _ := r.Reader.Peek(r.Buffered())
	if r.src.err == nil {
		r.src.err = r.src.last
	}
	r.src.kept, r.src.full = have, false
	r.Reader = bufio.NewReaderSize(&r.src, readBuffer)
	if len(have) > 0 {
		r.Reader.Peek(len(have))
	}
}

// reset forgets what is buffered, and reads from conn from now on.
func (r *reader) reset(conn io.Reader) {
	r.src = source{conn: conn, now: readNow(conn)}
	r.Reset(&r.src)
}

func (s *source) Read(p []byte) (int, error) {
	if len(s.kept) > 0 {
		n := copy(p, s.kept)
		s.kept = s.kept[n:]
		return n, nil
	}
	n, err := s.read(p)
	s.full, s.last = n == len(p) && err == nil, err
	if err == errNothing {
		s.last = nil
	}
	return n, err
}

func (s *source) read(p []byte) (int, error) {
	if s.long && len(p) > aroundHead {
		p = p[:aroundHead]
	}
	if err := s.err; err != nil {
		s.err = nil
		return 0, err
	}
	if !s.poll {
		return s.conn.Read(p)
	}
	n, err := s.now(p)
	if err != errNothing {
		s.err = err // the buffer forgets it
	}
	return n, err
}

// errNothing says that a read that does not wait has found nothing to read.
var errNothing = errors.New("nothing to read")

// more buffers what has come, and reports whether that is anything. It does not wait.
func (r *reader) more() bool {
	if r.src.now == nil || r.src.err != nil || r.Buffered() > copied {
		return false
	}
	r.src.poll = true
	before := r.Buffered()
	r.Peek(before + 1)
	r.src.poll = false
	return r.Buffered() > before
}

// data reads all of p. The end of the stream is unexpected.
func (r *reader) data(p []byte) error {
	r.src.long = len(p) >= longData
	if n := r.Buffered(); len(p)-n >= longData {
		r.Read(p[:n]) // what is buffered is there as a whole
		return readFull(r.src.conn, p[n:])
	}
	return readFull(r, p)
}
