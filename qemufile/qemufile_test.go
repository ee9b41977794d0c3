package qemufile

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"testing/iotest"
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
