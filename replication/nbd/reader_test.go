package nbd

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"testing"
	"testing/iotest"

	"github.com/gocolo/lockstep/internal/socket"
)

// readInto is a connection that notes where it was to read to.
type readInto struct {
	io.Reader
	asked [][]byte
}

func (c *readInto) Read(p []byte) (int, error) {
	c.asked = append(c.asked, p)
	return c.Reader.Read(p)
}

// message returns a head of 28 bytes and n bytes of data, different for each i.
func message(i, n int) []byte {
	p := make([]byte, requestLen+n)
	for k := range p {
		p[k] = byte(k*7 + i)
	}
	return p
}

func TestLongDataIsReadToWhereItBelongs(t *testing.T) {
	const n = 64 << 10
	var stream []byte
	for i := range 4 {
		stream = append(stream, message(i, n)...)
	}
	c := &readInto{Reader: bytes.NewReader(stream)}
	r := newReader(c)
	data := make([]byte, n)
	for i := range 4 {
		head, err := r.Peek(requestLen)
		must(t, err)
		want := message(i, n)
		if !bytes.Equal(head, want[:requestLen]) {
			t.Fatalf("head %d is wrong", i)
		}
		r.Discard(requestLen)
		c.asked = nil
		must(t, r.data(data))
		if !bytes.Equal(data, want[requestLen:]) {
			t.Fatalf("data %d is wrong", i)
		}
		if i == 0 {
			continue // it was in the buffer already, but for its end
		}
		if len(c.asked) != 1 || len(c.asked[0]) < n-aroundHead || &c.asked[0][0] != &data[n-len(c.asked[0])] {
			t.Errorf("data %d came with %d reads, not with one to its place", i, len(c.asked))
		}
	}
}

func TestShortDataComesManyTogether(t *testing.T) {
	var stream []byte
	for i := range 10 {
		stream = append(stream, message(i, 4096)...)
	}
	c := &readInto{Reader: bytes.NewReader(stream)}
	r := newReader(c)
	must(t, r.data(make([]byte, 0)))
	for i := range 10 {
		p := make([]byte, requestLen+4096)
		head, err := r.Peek(requestLen)
		must(t, err)
		r.Discard(copy(p, head))
		must(t, r.data(p[requestLen:]))
		if !bytes.Equal(p, message(i, 4096)) {
			t.Fatalf("message %d is wrong", i)
		}
	}
	if len(c.asked) > 3 { // the buffer, what the first message lacked then, and a larger buffer
		t.Errorf("ten short messages came with %d reads", len(c.asked))
	}
}

// An idle disk's connection has a small buffer. It grows when a read has filled it, and keeps what it
// had, and an error that came with that.
func TestTheBufferGrowsWithWhatThereIsToRead(t *testing.T) {
	stream := message(1, 100<<10)
	for _, n := range []int{1, firstRead - 1, firstRead, firstRead + 1, readBuffer, len(stream)} {
		for name, pieces := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "end": iotest.DataErrReader, "time": iotest.TimeoutReader,
		} {
			r := newReader(pieces(bytes.NewReader(stream[:n])))
			must(t, func() error { _, err := r.Peek(1); return err }())
			if r.Size() != firstRead {
				t.Errorf("%s: a buffer of %d bytes before it was filled", name, r.Size())
			}
			var all []byte
			var err error
			for err == nil {
				var head []byte
				head, err = r.Peek(min(requestLen, max(1, r.Buffered())))
				n, _ := r.Discard(len(head))
				all = append(all, head[:n]...)
			}
			if name == "time" && err == iotest.ErrTimeout { // as of a deadline: the next read goes on
				rest, e := io.ReadAll(r)
				all, err = append(all, rest...), e
				if e == nil {
					err = io.EOF
				}
			}
			if err != io.EOF || !bytes.Equal(all, stream[:n]) {
				t.Errorf("%s: %d bytes of %d, %v", name, len(all), n, err)
			}
			if grown := r.Size() == readBuffer; name == "whole" && n != firstRead && grown != (n > firstRead) || name == "bytes" && grown {
				t.Errorf("%s: a buffer of %d bytes for %d", name, r.Size(), n)
			}
		}
	}
}

// A head that is longer than the buffer is read all the same.
func TestALongAnswerIsBufferedWhole(t *testing.T) {
	stream := message(1, 3*firstRead)
	r := newReader(iotest.OneByteReader(bytes.NewReader(stream)))
	must(t, func() error { _, err := r.Peek(requestLen); return err }())
	if p, err := r.Peek(len(stream)); err != nil || !bytes.Equal(p, stream) {
		t.Errorf("%d bytes, %v", len(p), err)
	}
	if p, err := r.Peek(len(stream) + 1); err != io.EOF || !bytes.Equal(p, stream) {
		t.Errorf("%d bytes, %v", len(p), err)
	}
}

// TestReaderInPieces has messages of all lengths come in pieces of one byte, of half of
// what was asked for, and with the end of the stream beside the last.
func TestReaderInPieces(t *testing.T) {
	lengths := []int{0, 1, longData - 1, longData, 3, longData + 1, 64 << 10, 64<<10 + 1, 4096, 300 << 10, 64<<10 - 28, 5}
	var stream []byte
	for i, n := range lengths {
		stream = append(stream, message(i, n)...)
	}
	for name, pieces := range map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "halves": iotest.HalfReader, "bytes": iotest.OneByteReader, "end": iotest.DataErrReader,
	} {
		t.Run(name, func(t *testing.T) {
			r := newReader(pieces(bytes.NewReader(stream)))
			for i, n := range lengths {
				head, err := r.Peek(requestLen)
				must(t, err)
				p := bytes.Clone(head)
				r.Discard(requestLen)
				data := make([]byte, n)
				must(t, r.data(data))
				if !bytes.Equal(append(p, data...), message(i, n)) {
					t.Fatalf("message %d of %d bytes is wrong", i, n)
				}
			}
			if err := r.data(make([]byte, longData)); err != io.ErrUnexpectedEOF {
				t.Errorf("at the end of the stream: %v", err)
			}
		})
	}
}

// What has come is buffered without waiting for more, and an end that is met so is met
// again by the next read.
func TestMoreBuffersWhatHasComeAndDoesNotWait(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(socket.Dir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := newReader(conn)
	if r.more() {
		t.Error("more where nothing was sent")
	}
	client.Write([]byte("abc"))
	if !r.more() || r.Buffered() != 3 {
		t.Errorf("%d bytes are buffered, of 3", r.Buffered())
	}
	client.Write([]byte("de"))
	if !r.more() || r.more() || r.Buffered() != 5 {
		t.Errorf("%d bytes are buffered, of 5", r.Buffered())
	}
	if n := testing.AllocsPerRun(100, func() { r.more() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	client.Close()
	if r.more() {
		t.Error("more after the end")
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "abcde" {
		t.Errorf("read %q, %v", got, err)
	}
}

// endsOnce returns what it has together with an error that it returns only then.
type endsOnce struct{ p []byte }

func (e *endsOnce) Read(p []byte) (int, error) {
	if e.p == nil {
		panic("it was read after its error")
	}
	n := copy(p, e.p)
	e.p = nil
	return n, io.ErrClosedPipe
}

func TestAnErrorThatCameWithDataOutlivesTheGrowthOfTheBuffer(t *testing.T) {
	stream := message(1, 100)
	r := newReader(&endsOnce{stream})
	must(t, func() error { _, err := r.Peek(requestLen); return err }())
	if p, err := r.Peek(2 * firstRead); err != io.ErrClosedPipe || !bytes.Equal(p, stream) {
		t.Errorf("%d bytes of %d, %v", len(p), len(stream), err)
	}
}
