package qemufile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// put writes one of everything and returns what it must look like.
func put(w *Writer, ref []byte) []byte {
	w.PutByte(0x7e)
	w.PutBE16(0x0102)
	w.PutBE32(0x03040506)
	w.PutBE64(0x0708090a0b0c0d0e)
	w.PutCountedString("ram")
	w.Write([]byte("copied"))
	w.WriteRef(ref)
	w.WriteString("tail")
	want := []byte("\x7e\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x03ramcopied")
	want = append(want, ref...)
	return append(want, "tail"...)
}

func check(t *testing.T, why string, r *Reader, ref []byte) {
	t.Helper()
	if b, ok := r.PeekByte(); !ok || b != 0x7e {
		t.Errorf("%s: peek %#x %t", why, b, ok)
	}
	got := []uint64{uint64(r.Byte()), uint64(r.BE16()), uint64(r.BE32()), r.BE64()}
	for i, want := range []uint64{0x7e, 0x0102, 0x03040506, 0x0708090a0b0c0d0e} {
		if got[i] != want {
			t.Errorf("%s: value %d is %#x, want %#x", why, i, got[i], want)
		}
	}
	if s := r.CountedString(); s != "ram" {
		t.Errorf("%s: string %q", why, s)
	}
	if b := r.Next(6); string(b) != "copied" {
		t.Errorf("%s: next %q", why, b)
	}
	p := make([]byte, len(ref))
	if err := r.ReadFull(p); err != nil || !bytes.Equal(p, ref) {
		t.Errorf("%s: reference of %d bytes differs, %v", why, len(ref), err)
	}
	if b := r.Bytes(4, 4); string(b) != "tail" {
		t.Errorf("%s: bytes %q", why, b)
	}
	if r.Err() != nil {
		t.Errorf("%s: %v", why, r.Err())
	}
	if r.Byte(); !errors.Is(r.Err(), io.EOF) {
		t.Errorf("%s: end is %v, want io.EOF", why, r.Err())
	}
}

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

func TestWhatIsPutIsRead(t *testing.T) {
	for _, size := range []int{0, 1, smallRef, smallRef + 1, 4096, directWrite, writeBuffer, writeBuffer + 1, 3 << 20} {
		if testing.Short() && size > 1<<20 {
			continue
		}
		ref := make([]byte, size)
		for i := range ref {
			ref[i] = byte(rand.Uint32())
		}
		var direct bytes.Buffer
		var copied bytes.Buffer
		var gathered vectored
		for name, w := range map[string]*Writer{
			"memory": NewWriter(&direct), "plain": NewWriter(plain{&copied}), "vectored": NewWriter(&gathered),
		} {
			want := put(w, ref)
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			if n := w.Transferred(); n != int64(len(want)) {
				t.Errorf("%s: transferred %d, want %d", name, n, len(want))
			}
			got := map[string][]byte{"memory": direct.Bytes(), "plain": copied.Bytes(), "vectored": gathered.Bytes()}[name]
			if !bytes.Equal(got, want) {
				t.Errorf("%s: a reference of %d bytes changes the stream", name, size)
			}
			check(t, name, NewReader(bytes.NewReader(got)), ref)
			check(t, name+", byte by byte", NewReader(iotest.OneByteReader(bytes.NewReader(got))), ref)
			check(t, name+", data with the error", NewReader(iotest.DataErrReader(bytes.NewReader(got))), ref)
			var r Reader
			r.ResetBytes(got)
			check(t, name+", in place", &r, ref)
			r.Reset(bytes.NewReader(got))
			check(t, name+", reset", &r, ref)
		}
	}
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

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestEveryTruncationIsTold(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	put(w, make([]byte, 100))
	w.Flush()
	for n := range b.Len() {
		r := NewReader(bytes.NewReader(b.Bytes()[:n]))
		r.Byte()
		r.BE16()
		r.BE32()
		r.BE64()
		r.CountedString()
		r.Skip(6)
		r.ReadFull(make([]byte, 100))
		r.Bytes(4, 4)
		between := map[int]bool{0: true, 1: true, 3: true, 7: true, 15: true, 19: true, 25: true, 125: true}[n]
		want := io.ErrUnexpectedEOF
		if between {
			want = io.EOF
		}
		var e *Error
		if err := r.Err(); !errors.Is(err, want) || !errors.As(err, &e) || e.Op != "read" {
			t.Errorf("cut at %d: %v, want %v", n, err, want)
		} else if e.Offset > int64(n) {
			t.Errorf("cut at %d: offset %d", n, e.Offset)
		}
	}
}

func TestNoEOF(t *testing.T) {
	r := NewReader(strings.NewReader(""))
	r.Byte()
	if err := NoEOF(r.Err()); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		t.Errorf("inside: %v", err)
	}
	if !errors.Is(r.Err(), io.EOF) {
		t.Errorf("the Reader's own error changed")
	}
	if NoEOF(nil) != nil || NoEOF(io.EOF) != io.ErrUnexpectedEOF || NoEOF(ErrTooLong) != ErrTooLong {
		t.Error("other errors must stay")
	}
}

func TestALengthIsBoundedBeforeMemoryIsTaken(t *testing.T) {
	r := NewReader(strings.NewReader("short"))
	if p := r.Bytes(1<<40, 1<<20); p != nil || !errors.Is(r.Err(), ErrTooLong) {
		t.Errorf("%d bytes, %v", len(p), r.Err())
	}
	// Even an allowed length takes no more than a small multiple of what comes.
	r = NewReader(bytes.NewReader(make([]byte, 100<<10)))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if r.Bytes(1<<40, 1<<62) != nil || !errors.Is(r.Err(), io.ErrUnexpectedEOF) {
		t.Error(r.Err())
	}
	runtime.ReadMemStats(&after)
	allocated := after.TotalAlloc - before.TotalAlloc
	if allocated > 1<<20 {
		t.Errorf("%d bytes allocated for 100 KiB that came", allocated)
	}
	r = NewReader(strings.NewReader("x"))
	if p := r.Next(readBuffer + 1); p != nil || !errors.Is(r.Err(), ErrTooLong) {
		t.Errorf("next beyond the buffer: %v", r.Err())
	}
	r = NewReader(bytes.NewReader(make([]byte, 3<<20)))
	if p := r.Bytes(3<<20, 3<<20); len(p) != 3<<20 || r.Offset() != 3<<20 {
		t.Errorf("%d bytes, %v", len(p), r.Err())
	}
}

func TestPeekWaitsOnlyForWhatItIsAsked(t *testing.T) {
	asked := 0
	r := NewReader(readerFunc(func(p []byte) (int, error) {
		if asked++; asked > 2 {
			t.Fatal("asked the source again with enough at hand")
		}
		return copy(p, "\x05\x03abc"[(asked-1)*2:asked*3-1]), nil
	}))
	if p := r.Peek(2); string(p) != "\x05\x03" {
		t.Fatalf("peek %q", p)
	}
	if p := r.Peek(5); string(p) != "\x05\x03abc" {
		t.Fatalf("peek %q", p)
	}
	if r.Offset() != 0 || r.Buffered() != 5 {
		t.Errorf("peek consumed")
	}
	r = NewReader(strings.NewReader("ab"))
	if p := r.Peek(5); string(p) != "ab" || r.Err() != nil {
		t.Errorf("peek at the end %q, %v", p, r.Err())
	}
	if r.BE16() != 0x6162 {
		t.Errorf("peek at the end consumed")
	}
	if p := r.Peek(1); len(p) != 0 || r.Err() != nil {
		t.Errorf("peek behind the end %q, %v", p, r.Err())
	}
	r = NewReader(bytes.NewReader(make([]byte, 1<<20)))
	if n := len(r.Peek(1 << 20)); n != readBuffer {
		t.Errorf("peek of %d bytes", n)
	}
}

func TestALazySourceIsGivenUp(t *testing.T) {
	r := NewReader(readerFunc(func(p []byte) (int, error) { return 0, nil }))
	if r.Byte(); !errors.Is(r.Err(), io.ErrNoProgress) {
		t.Errorf("%v", r.Err())
	}
	r = NewReader(readerFunc(func(p []byte) (int, error) { return len(p) + 1, nil }))
	if r.Byte(); r.Err() == nil {
		t.Error("an impossible count was believed")
	}
}

func TestASourcesErrorComesAfterItsData(t *testing.T) {
	boom := errors.New("boom")
	r := NewReader(io.MultiReader(strings.NewReader("ab"), iotest.ErrReader(boom)))
	if r.BE16() != 0x6162 || r.Err() != nil {
		t.Fatalf("data lost: %v", r.Err())
	}
	r.Byte()
	var e *Error
	if !errors.Is(r.Err(), boom) || !errors.As(r.Err(), &e) || e.Offset != 2 {
		t.Errorf("%v", r.Err())
	}
	if r.Fail(io.EOF); !errors.Is(r.Err(), boom) {
		t.Errorf("first error lost: %v", r.Err())
	}
	r.Skip(1)
	if r.Next(1) != nil || r.Peek(1) != nil || r.Bytes(1, 1) != nil || r.ReadFull(nil) == nil || r.Offset() != 2 {
		t.Error("a failed Reader goes on")
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	page := make([]byte, 4096)
	for name, dst := range map[string]io.Writer{"plain": io.Discard, "vectored": &sink{}} {
		w := NewWriter(dst)
		if n := testing.AllocsPerRun(100, func() {
			for range 64 {
				w.PutBE64(8)
				w.WriteRef(page)
			}
			w.PutCountedString("ram")
			w.Write(page)
			w.Flush()
			w.Rate()
		}); n != 0 {
			t.Errorf("%s writer: %v allocations", name, n)
		}
	}
	r := NewReader(zeros{})
	if n := testing.AllocsPerRun(100, func() {
		for range 64 {
			r.BE64()
			r.ReadFull(page)
			r.Peek(4)
		}
		r.CountedBytes()
		r.Skip(1 << 20)
	}); n != 0 {
		t.Errorf("reader: %v allocations", n)
	}
}

// sink is a connection that takes vectored writes and forgets them.
type sink struct{ n int64 }

func (s *sink) Write(p []byte) (int, error) { s.n += int64(len(p)); return len(p), nil }
func (s *sink) WriteBuffers(b *net.Buffers) (int64, error) {
	var n int64
	for _, p := range *b {
		n += int64(len(p))
	}
	*b = (*b)[len(*b):]
	s.n += n
	return n, nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

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

func TestRateIsOfTheLastWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWriter(io.Discard)
		if w.Rate() != 0 || w.RateDelay() != 0 {
			t.Error("a rate before anything was sent")
		}
		send := func(n int) {
			w.Write(make([]byte, n))
			w.Flush()
		}
		send(1 << 20)
		time.Sleep(50 * time.Millisecond)
		if r := w.Rate(); r != 20<<20 {
			t.Errorf("in the first window %.0f", r)
		}
		time.Sleep(50 * time.Millisecond)
		if r := w.Rate(); r != 10<<20 {
			t.Errorf("after the first window %.0f", r)
		}
		send(1000)
		time.Sleep(200 * time.Millisecond)
		if r := w.Rate(); r != 5000 {
			t.Errorf("after the second window %.0f", r)
		}
	})
}

func TestTheRateLimitSpreadsOverAWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWriter(io.Discard)
		w.SetRateLimit(10 << 20)
		start := time.Now()
		for sent := 0; sent < 10<<20; sent += 64 << 10 {
			if d := w.RateDelay(); d > 0 {
				time.Sleep(d)
			}
			w.Write(make([]byte, 64<<10))
		}
		if d := time.Since(start); d < 900*time.Millisecond || d > 1100*time.Millisecond {
			t.Errorf("10 MiB at 10 MiB/s took %v", d)
		}
		w.SetRateLimit(0)
		if w.RateExceeded() {
			t.Error("no limit is exceeded")
		}
	})
}

func TestWhatIsPutBackIsReadAgain(t *testing.T) {
	whole := make([]byte, 300<<10)
	for i := range whole {
		whole[i] = byte(i * 7 >> 3)
	}
	broken := errors.New("broken")
	for how, src := range map[string]func() *Reader{
		"at once":      func() *Reader { return NewReader(bytes.NewReader(whole)) },
		"in pieces":    func() *Reader { return NewReader(iotest.HalfReader(bytes.NewReader(whole))) },
		"from memory":  func() *Reader { r := new(Reader); r.ResetBytes(whole); return r },
		"until broken": func() *Reader { return NewReader(io.MultiReader(bytes.NewReader(whole), iotest.ErrReader(broken))) },
	} {
		for _, n := range []int{0, 1, 100, 64 << 10, 200 << 10, len(whole)} {
			r := src()
			r.Skip(uint64(min(10, n)))
			head := r.Bytes(uint64(n-min(10, n)), 1<<20)
			r.Unread(head)
			if at := int64(min(10, n)); r.Offset() != at {
				t.Fatalf("%s: %d bytes put back, at %d", how, n, r.Offset())
			}
			got := r.Bytes(uint64(len(whole))-uint64(r.Offset()), 1<<20)
			if !bytes.Equal(got, whole[min(10, n):]) || r.Offset() != int64(len(whole)) {
				t.Fatalf("%s: %d bytes put back, others read; %v", how, n, r.Err())
			}
			r.Byte()
			if want := map[bool]error{true: broken, false: io.EOF}[how == "until broken"]; !errors.Is(r.Err(), want) {
				t.Errorf("%s: at the end %v, want %v", how, r.Err(), want)
			}
			r.Unread([]byte{1})
			if r.Byte() != 0 {
				t.Errorf("%s: an error is over", how)
			}
		}
	}
}

func TestALongSkipReadsNothingOfAFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const end = 1 << 30
	if _, err := f.WriteAt([]byte("abc"), end-3); err != nil {
		t.Fatal(err)
	}
	src := &countedFile{File: f}
	r := NewReader(src)
	r.Byte()
	r.Skip(end - 1 - 3)
	if got := r.Bytes(3, 3); string(got) != "abc" || r.Offset() != end {
		t.Errorf("%q at %d, %v", got, r.Offset(), r.Err())
	}
	if src.n > 1<<20 {
		t.Errorf("%d bytes were read", src.n)
	}
	// Where the file is too short, it fails at its end.
	r.Reset(f)
	f.Seek(0, io.SeekStart)
	r.Skip(2 * end)
	if !errors.Is(r.Err(), io.ErrUnexpectedEOF) || r.Offset() != end {
		t.Errorf("beyond the end: %v at %d", r.Err(), r.Offset())
	}
}

type countedFile struct {
	*os.File
	n int
}

func (f *countedFile) Read(p []byte) (int, error) {
	n, err := f.File.Read(p)
	f.n += n
	return n, err
}
