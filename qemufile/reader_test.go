package qemufile

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

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

// once is a source that fails once, and would go on.
type once struct{ reads int }

func (o *once) Read(p []byte) (int, error) {
	if o.reads++; o.reads == 1 {
		return copy(p, "abc"), io.ErrClosedPipe
	}
	return copy(p, "never"), nil
}

func TestASourceThatHasFailedIsNotReadAfterUnread(t *testing.T) {
	src := new(once)
	r := NewReader(src)
	r.Next(2)
	r.Unread([]byte("ab")) // another memory than the buffer
	got := make([]byte, 3)
	if err := r.ReadFull(got); err != nil || string(got) != "abc" {
		t.Fatalf("%q, %v", got, err)
	}
	if r.Byte(); !errors.Is(r.Err(), io.ErrClosedPipe) || src.reads != 1 {
		t.Errorf("%d reads, %v", src.reads, r.Err())
	}
}
