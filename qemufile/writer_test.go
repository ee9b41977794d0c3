package qemufile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
)

// plain hides what else a writer can do.
type plain struct{ io.Writer }

// vectored counts the calls it forwards to memory.
type vectored struct {
	bytes.Buffer
	writes, vectors int
}

func (v *vectored) Write(p []byte) (int, error) { v.writes++; return v.Buffer.Write(p) }

func (v *vectored) WriteBuffers(b *net.Buffers) (int64, error) {
	v.vectors++
	return b.WriteTo(&v.Buffer)
}

func TestAFlushIsOneVectoredWrite(t *testing.T) {
	var v vectored
	w := NewWriter(&v)
	page := bytes.Repeat([]byte{7}, 4096)
	for range 100 {
		w.PutBE64(8)
		w.WriteRef(page)
	}
	if v.vectors+v.writes != 0 {
		t.Errorf("something left before the flush")
	}
	w.Flush()
	if v.vectors != 1 || v.writes != 0 || v.Len() != 100*4104 {
		t.Errorf("%d vectored and %d plain writes of %d bytes", v.vectors, v.writes, v.Len())
	}
	if err := w.Flush(); err != nil || v.vectors != 1 {
		t.Errorf("an empty flush writes")
	}
}

func TestAReferenceIsReadWhenItIsSent(t *testing.T) {
	var v vectored
	w := NewWriter(&v)
	page := bytes.Repeat([]byte{1}, 4096)
	w.WriteRef(page)
	page[0] = 2
	w.Flush()
	if v.Bytes()[0] != 2 {
		t.Error("the page was copied when it was queued")
	}
}

func TestTheQueueIsBounded(t *testing.T) {
	var v vectored
	w := NewWriter(&v)
	w.WriteRef(make([]byte, maxQueueBytes))
	if v.vectors+v.writes != 1 {
		t.Errorf("%d bytes wait", maxQueueBytes)
	}
	for range maxQueue {
		w.PutByte(1)
		w.WriteRef(make([]byte, smallRef+1))
	}
	if v.vectors+v.writes < 2 {
		t.Errorf("%d pieces wait", maxQueue)
	}
}

func TestTheFirstWriteErrorSticks(t *testing.T) {
	boom := errors.New("boom")
	for _, ref := range []int{0, 4096, 1 << 20} {
		w := NewWriter(plain{writerFunc(func(p []byte) (int, error) { return min(3, len(p)), boom })})
		w.PutBE64(1)
		w.WriteRef(make([]byte, ref))
		err := w.Flush()
		var e *Error
		if !errors.Is(err, boom) || !errors.As(err, &e) || e.Op != "write" || e.Offset != 3 {
			t.Errorf("flush: %v", err)
		}
		w.PutBE64(1)
		w.PutCountedString(strings.Repeat("x", 300))
		if _, err2 := w.Write(make([]byte, 1<<20)); err2 != err || w.Err() != err || w.Flush() != err {
			t.Errorf("a later error replaced the first")
		}
		if w.Transferred() != 3 {
			t.Errorf("%d bytes put, want the 3 that left", w.Transferred())
		}
	}
	w := NewWriter(writerFunc(func(p []byte) (int, error) { return 0, nil }))
	w.PutByte(1)
	if err := w.Flush(); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("short write: %v", err)
	}
	w = NewWriter(io.Discard)
	w.PutCountedString(strings.Repeat("x", 256))
	if err := w.Flush(); !errors.Is(err, ErrTooLong) {
		t.Errorf("string of 256 bytes: %v", err)
	}
	w.Reset(io.Discard)
	w.Fail(nil)
	w.Fail(boom)
	w.Fail(io.EOF)
	if w.Flush() != boom {
		t.Errorf("fail: %v", w.Err())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestSocketsGetReferencesInOrder(t *testing.T) {
	here, there := tcpPair(t)
	w := NewWriter(here)
	r := NewReader(there)
	done := make(chan error, 1)
	go func() {
		page := make([]byte, 4096)
		for i := range uint64(1000) {
			if r.BE64() != i {
				done <- errors.New("header out of order")
				return
			}
			r.ReadFull(page)
			if binary.BigEndian.Uint64(page[4088:]) != i {
				done <- errors.New("page out of order")
				return
			}
		}
		done <- r.Err()
	}()
	for i := range uint64(1000) {
		page := make([]byte, 4096)
		binary.BigEndian.PutUint64(page[4088:], i)
		w.PutBE64(i)
		w.WriteRef(page)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func tcpPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}
